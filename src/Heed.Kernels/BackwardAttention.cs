using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>Checks a backward call and picks the loop that is compiled for its normaliser and for the vectors of this machine.</summary>
internal static unsafe class BackwardAttention
{
    /// <inheritdoc cref="FusedAttention.Backward{TScore, TMask}(in AttentionArguments, in AttentionGradients, TScore, TMask)"/>
    public static void Compute<TScore, TMask>(in AttentionArguments arguments, in AttentionGradients gradients, TScore modifier,
        TMask predicate)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        if (Vector512.IsHardwareAccelerated)
        {
            Compute<Vector512<float>, Vector512Operations, TScore, TMask>(arguments, gradients, modifier, predicate);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            Compute<Vector256<float>, Vector256Operations, TScore, TMask>(arguments, gradients, modifier, predicate);
        }
        else
        {
            Compute<Vector128<float>, Vector128Operations, TScore, TMask>(arguments, gradients, modifier, predicate);
        }
    }

    /// <summary>As <see cref="Compute{TScore, TMask}"/> with vectors of a given width.</summary>
    internal static void Compute<TVector, TOps, TScore, TMask>(
        in AttentionArguments arguments, in AttentionGradients gradients, TScore modifier, TMask predicate)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        var problem = new CheckedProblem(arguments);
        problem = typeof(TScore) == typeof(UnmodifiedScore) ? problem : problem.WithBlockMask();
        Check(problem, gradients);
        switch (problem.Arguments.Normalizer)
        {
            case Normalizer.ReluOverPosition:
                new BackwardLoop<TVector, TOps, ReluGradient, TScore, TMask>(problem, gradients, modifier, predicate).Run();
                break;
            case Normalizer.Sigmoid:
                new BackwardLoop<TVector, TOps, SigmoidGradient, TScore, TMask>(problem, gradients, modifier, predicate).Run();
                break;
            default:
                new BackwardLoop<TVector, TOps, SoftmaxGradient, TScore, TMask>(problem, gradients, modifier, predicate).Run();
                break;
        }
    }

    private static void Check(CheckedProblem problem, in AttentionGradients gradients)
    {
        ref readonly var a = ref problem.Arguments;
        var softmax = a.Normalizer == Normalizer.Softmax;
        Require(gradients.Output.IsGiven || Empty(problem.Queries, problem.ValueWidth, problem), "gradients",
            "The backward pass starts from the gradient of the output: set Output of the gradients.");
        CheckView(gradients.Output, "gradient of the output", problem.Batch, problem.Heads, problem.Queries, problem.ValueWidth,
            written: false);
        CheckView(gradients.Query, "query gradient", problem.Batch, problem.Heads, problem.Queries, problem.Width);
        CheckView(gradients.Key, "key gradient", problem.Batch, problem.KeyHeads, problem.Keys, problem.Width);
        CheckView(gradients.Value, "value gradient", problem.Batch, problem.KeyHeads, problem.Keys, problem.ValueWidth);
        CheckView(gradients.LowRankQuery, "gradient of the low-rank query factors", problem.Batch, problem.Heads, problem.Queries,
            problem.Rank);
        CheckView(gradients.LowRankKey, "gradient of the low-rank key factors", problem.Batch, problem.Heads, problem.Keys, problem.Rank);
        Require(
            !softmax || (a.Output.IsGiven && a.LogSumExp != null) || Empty(problem.Queries, 1, problem),
            "arguments",
            "The backward pass of a softmax reads the output and the log-sum-exp: give the forward pass a place for both and keep them.");
        if (softmax)
        {
            CheckView(a.Output, "output", problem.Batch, problem.Heads, problem.Queries, problem.ValueWidth, written: false);
        }

        Require(
            softmax || gradients.LogSumExp == null,
            "gradients",
            $"Only a softmax has a log-sum-exp, and with it a gradient of it; the normalizer is {a.Normalizer}: leave the gradient null.");
        Require(gradients.Sinks == null || a.Sinks != null, "gradients",
            "The gradient of the sinks is asked for, but the problem has no sinks.");
        Require(gradients.AlibiSlopes == null || a.AlibiSlopes != null, "gradients",
            "The gradient of the ALiBi slopes is asked for, but the problem has no slopes.");
        Require(!gradients.LowRankQuery.IsGiven || problem.HasLowRank, "gradients",
            "The gradient of low-rank factors is asked for, but the problem has no low-rank bias.");
        Require(!gradients.LowRankKey.IsGiven || problem.HasLowRank, "gradients",
            "The gradient of low-rank factors is asked for, but the problem has no low-rank bias.");
        CheckBias(gradients.Bias, a.Bias, "dense bias");
        CheckBias(gradients.KeyBias, a.KeyBias, "per-key bias");
    }

    private static bool Empty(long rows, long width, CheckedProblem problem) =>
        problem.Batch == 0 || problem.Heads == 0 || rows == 0 || width == 0;

    private static void CheckView(in TensorView view, string name, long batch, long heads, long length, long width, bool written = true)
    {
        if (!view.IsGiven)
        {
            return;
        }

        Require(
            view.Batch == batch && view.Heads == heads && view.Length == length && view.Width == width,
            "gradients",
            $"The {name} must be [{batch}, {heads}, {length}, {width}] but is [{view.Batch}, {view.Heads}, {view.Length}, {view.Width}].");
        Require(view.Type == ElementType.Float32, "gradients", $"The {name} must be float32 but is {view.Type}.");
        Require(
            !written || width == 0 || ((batch < 2 || view.BatchStride != 0)
                && (heads < 2 || view.HeadStride != 0) && (length < 2 || view.RowStride != 0)),
            "gradients",
            $"The rows of the {name} must not share memory: a stride of a dimension longer than one is zero; sum over it afterwards.");
    }

    private static void CheckBias(in BiasView gradient, in BiasView bias, string name)
    {
        Require(!gradient.IsGiven || bias.IsGiven, "gradients", $"The gradient of the {name} is asked for, but the problem has none.");
        Require(
            !gradient.IsGiven || gradient with { Data = bias.Data } == bias,
            "gradients",
            $"The gradient of the {name} needs the strides of the bias ({Strides(bias)}) but has {Strides(gradient)}.");
    }

    private static string Strides(in BiasView view) => $"{view.BatchStride}, {view.HeadStride}, {view.QueryStride}, {view.KeyStride}";

    private static void Require(bool condition, string argument, string message)
    {
        if (!condition)
        {
            throw new ArgumentException(message, argument);
        }
    }
}
