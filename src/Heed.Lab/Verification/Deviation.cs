using static TorchSharp.torch;

namespace Heed.Lab.Verification;

/// <summary>The element of a tensor that is worst against its tolerance.</summary>
/// <param name="Name">The tensor's name in the case.</param>
/// <param name="Error">Absolute error of that element; infinite where one is not finite and the other differs.</param>
/// <param name="Tolerance">What is allowed there: <c>atol + rtol |expected|</c>.</param>
internal sealed record Deviation(string Name, double Error, double Tolerance)
{
    /// <summary>Error over tolerance: above 1 is too much.</summary>
    public double Excess => Error == 0 ? 0 : Error / Tolerance;

    /// <summary>Whether every element is within tolerance.</summary>
    public bool IsWithin => Error <= Tolerance;

    /// <summary>Compares tensors of one shape. NaN equals NaN, an infinity equals itself, and nothing else equals either.</summary>
    public static Deviation Between(string name, Tensor value, Tensor expected, double absolute, double relative)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (actual, wanted) = (value.detach().to(float64).flatten(), expected.detach().to(float64).flatten());
        var allowed = wanted.abs() * relative + absolute;
        var same = (actual == wanted).logical_or(actual.isnan().logical_and(wanted.isnan()));
        var finite = actual.isfinite().logical_and(wanted.isfinite());
        var error = (actual - wanted).abs().masked_fill(finite.logical_not(), double.PositiveInfinity).masked_fill(same, 0);
        if (error.numel() == 0)
        {
            return new Deviation(name, 0, absolute);
        }

        var excess = where(error == 0, zeros_like(error), error / allowed.masked_fill(allowed.isfinite().logical_not(), absolute));
        var worst = excess.argmax().item<long>();
        return new Deviation(name, error[worst].item<double>(), double.IsFinite(allowed[worst].item<double>()) ? allowed[worst].item<double>() : absolute);
    }
}
