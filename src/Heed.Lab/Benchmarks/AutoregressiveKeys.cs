using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Keys with locality: unit-variance sequences in which every key is its neighbour times a coefficient, and noise.</summary>
internal static class AutoregressiveKeys
{
    /// <summary>Makes keys of the shape <c>[shape, length, width]</c>: x_t = rho x_(t-1) + sqrt(1 - rho^2) noise.</summary>
    public static Tensor Make(long[] shape, long length, long width, double coefficient, Generator generator)
    {
        using var scope = NewDisposeScope();
        var keys = randn([.. shape, length, width], generator: generator);
        keys.narrow(-2, 1, length - 1).mul_(Math.Sqrt(1 - (coefficient * coefficient)));

        // By doubling: after a step of d every key holds the noise of the last 2 d, weighted.
        for (long reach = 1; reach < length; reach *= 2)
        {
            var share = Math.Pow(coefficient, reach);
            if (share < 1e-9)
            {
                break;
            }

            keys = cat([keys.narrow(-2, 0, reach), keys.narrow(-2, reach, length - reach) + (keys.narrow(-2, 0, length - reach) * share)], -2);
        }

        return keys.MoveToOuterDisposeScope();
    }
}
