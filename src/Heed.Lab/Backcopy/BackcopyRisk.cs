using static TorchSharp.torch;

namespace Heed.Lab.Backcopy;

/// <summary>How far predictions are from the truth of a <see cref="BigramBackcopy"/> language.</summary>
public static class BackcopyRisk
{
    /// <summary>Mean cross-entropy between the truth and the prediction, at triggers and at other tokens; not a number where there are none.</summary>
    /// <param name="logits">Predictions <c>[B, N, V]</c>.</param>
    /// <param name="oracle">True probabilities <c>[B, N, V]</c>.</param>
    /// <param name="triggers">Which tokens are triggers, boolean <c>[B, N]</c>.</param>
    /// <returns>Scalars, in the logits' type.</returns>
    public static (Tensor Copying, Tensor Bigram) Of(Tensor logits, Tensor oracle, Tensor triggers)
    {
        ArgumentNullException.ThrowIfNull(logits);
        ArgumentNullException.ThrowIfNull(oracle);
        ArgumentNullException.ThrowIfNull(triggers);
        using var scope = NewDisposeScope();
        var risk = PerToken(nn.functional.log_softmax(logits, -1), oracle.to(logits.dtype));
        return (Mean(risk, triggers).MoveToOuterDisposeScope(), Mean(risk, triggers.logical_not()).MoveToOuterDisposeScope());
    }

    /// <summary>The same without what no prediction can do better: the entropy of the truth itself. The mean divergence from the truth, in nats.</summary>
    /// <param name="logits">Predictions <c>[B, N, V]</c>.</param>
    /// <param name="oracle">True probabilities <c>[B, N, V]</c>.</param>
    /// <param name="triggers">Which tokens are triggers, boolean <c>[B, N]</c>.</param>
    public static (double Copying, double Bigram) Excess(Tensor logits, Tensor oracle, Tensor triggers)
    {
        ArgumentNullException.ThrowIfNull(oracle);
        ArgumentNullException.ThrowIfNull(triggers);
        using var scope = NewDisposeScope();
        using TorchSharp.Scalar zero = 0;
        var (copying, bigram) = Of(logits, oracle, triggers);
        var entropy = PerToken(oracle.log().masked_fill(oracle.eq(zero), zero), oracle);
        static double Number(Tensor value) => value.to(float64).item<double>();
        return (Number(copying) - Number(Mean(entropy, triggers)), Number(bigram) - Number(Mean(entropy, triggers.logical_not())));
    }

    // What the truth never does costs nothing, however unlikely the prediction has it.
    private static Tensor PerToken(Tensor logPredicted, Tensor oracle)
    {
        using TorchSharp.Scalar zero = 0;
        return (oracle * logPredicted.masked_fill(oracle.eq(zero), zero)).sum(-1).neg();
    }

    private static Tensor Mean(Tensor values, Tensor where) => values.masked_select(where).mean();
}
