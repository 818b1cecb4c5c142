using TorchSharp;

namespace Heed.Probes;

/// <summary>What a gate on the attention output does (arXiv 2505.06708, table 4 and section 4.2).</summary>
/// <param name="MeanScore">Mean gate score.</param>
/// <param name="ShareBelowHalf">Share of scores below 0.5.</param>
/// <param name="MeanBefore">Mean absolute attention output before the gate.</param>
/// <param name="MeanAfter">Mean absolute attention output after the gate.</param>
public sealed record GateStatistics(double MeanScore, double ShareBelowHalf, double MeanBefore, double MeanAfter)
{
    /// <summary>Statistics of one or more layers.</summary>
    /// <param name="scores">Gate scores after the activation, broadcastable to <paramref name="output"/>.</param>
    /// <param name="output">The attention output per head before the gate, <c>[B, N, H, D]</c> or any other order that the scores share.</param>
    /// <exception cref="ArgumentException">There is no element.</exception>
    public static GateStatistics Of(torch.Tensor scores, torch.Tensor output)
    {
        Check(scores, output);
        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        var (gate, before) = (scores.to(torch.float64), output.to(torch.float64));
        return new GateStatistics(
            gate.mean().item<double>(), (gate < 0.5).to(torch.float64).mean().item<double>(), before.abs().mean().item<double>(), (before * gate).abs().mean().item<double>());
    }

    /// <summary>Share of the gated output's elements that are smaller than a threshold.</summary>
    /// <param name="scores">Gate scores after the activation, broadcastable to <paramref name="output"/>.</param>
    /// <param name="output">The attention output per head before the gate.</param>
    /// <param name="threshold">The threshold of the absolute value; the paper uses 1e-2 and 1e-3.</param>
    /// <exception cref="ArgumentException">There is no element.</exception>
    public static double SparsityAfter(torch.Tensor scores, torch.Tensor output, double threshold)
    {
        Check(scores, output);
        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        return ((output.to(torch.float64) * scores.to(torch.float64)).abs() < threshold).to(torch.float64).mean().item<double>();
    }

    /// <summary>How often scores fall into equal bins between 0 and 1, as shares of all scores.</summary>
    /// <param name="scores">Gate scores after the activation.</param>
    /// <param name="bins">Number of bins, at least 1.</param>
    /// <exception cref="ArgumentException">There is no score or no bin.</exception>
    public static double[] Histogram(torch.Tensor scores, int bins = 20)
    {
        ArgumentNullException.ThrowIfNull(scores);
        if (scores.numel() == 0 || bins < 1)
        {
            throw new ArgumentException($"A histogram needs at least one score and one bin, not {scores.numel()} and {bins}.", nameof(scores));
        }

        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        var bin = (scores.to(torch.float64).flatten() * bins).floor().clamp(0, bins - 1).to(torch.int64);
        return [.. bin.bincount(null, bins).to(torch.float64).div(scores.numel()).data<double>()];
    }

    private static void Check(torch.Tensor scores, torch.Tensor output)
    {
        ArgumentNullException.ThrowIfNull(scores);
        ArgumentNullException.ThrowIfNull(output);
        if (scores.numel() == 0 || output.numel() == 0)
        {
            throw new ArgumentException("Gate statistics need at least one score and one output element.", nameof(scores));
        }
    }
}
