using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>Initial values of the parameters of a selective scan (arXiv 2312.00752, section 3.6), as every Mamba uses them.</summary>
internal static class ScanParameters
{
    private const double SmallestStep = 1e-3;
    private const double LargestStep = 0.1;
    private const double StepFloor = 1e-4;

    /// <summary>Rank of the step's projection where none is given: a sixteenth of the width, rounded up.</summary>
    public static int StepRank(int width) => (width + 15) / 16;

    /// <summary><c>A_log</c> <c>[channels, states]</c>: the logarithm of 1 to N in every channel.</summary>
    public static Parameter LogDecay(long channels, long states) => Parameters.Make([channels, states], tensor =>
    {
        using var scope = NewDisposeScope();
        tensor.copy_(arange(1, states + 1, dtype: float32).log().expand(channels, states));
    });

    /// <summary>D: one in every channel.</summary>
    public static Parameter Skip(long channels) => Parameters.Make([channels], tensor => tensor.fill_(1));

    /// <summary>Weights of the step's projection: uniform within the inverse root of their rank, which stands last.</summary>
    public static void FillStepWeight(Tensor weight)
    {
        var bound = 1 / Math.Sqrt(weight.shape[^1]);
        weight.uniform_(-bound, bound);
    }

    /// <summary>Biases of the step: such that the steps after softplus are spread evenly in their logarithm.</summary>
    public static void FillStepBias(Tensor bias)
    {
        using var scope = NewDisposeScope();
        using Scalar low = Math.Log(SmallestStep);
        using Scalar range = Math.Log(LargestStep) - Math.Log(SmallestStep);
        using Scalar floor = StepFloor;
        var step = rand(bias.shape, dtype: float32).mul_(range).add_(low).exp_().clamp_(min: floor);
        // The inverse of softplus.
        bias.copy_(step + (-(-step).expm1()).log());
    }

    /// <summary>A projection of so many inputs (which stand last), as libtorch initialises linear layers.</summary>
    public static void FillProjection(Tensor weight)
    {
        var bound = 1 / Math.Sqrt(weight.shape[^1]);
        weight.uniform_(-bound, bound);
    }
}
