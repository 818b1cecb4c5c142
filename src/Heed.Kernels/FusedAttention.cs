using System.Numerics.Tensors;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>Attention without the Nq x Nk map: softmax(scale * Q K^T + bias) V in tiles, on the CPU.</summary>
public static unsafe class FusedAttention
{
    /// <summary>Computes the output, and the log-sum-exp and statistics that the arguments ask for.</summary>
    /// <exception cref="ArgumentException">Shapes or options do not fit together.</exception>
    public static void Forward(in AttentionArguments arguments) => Forward(arguments, default(UnmodifiedScore), default(AllPairs));

    /// <summary>As <see cref="Forward(in AttentionArguments)"/>, with a score modifier and a mask predicate compiled into the tile loop.</summary>
    public static void Forward<TScore, TMask>(in AttentionArguments arguments, TScore modifier, TMask predicate)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        RefusePredicateWithRuns<TMask>(arguments);
        var problem = new CheckedProblem(arguments);
        problem.CheckOutput();
        if (DecodingAttention.TryForward<TScore, TMask>(problem))
        {
            return;
        }

        if (Vector512.IsHardwareAccelerated)
        {
            Forward<Vector512<float>, Vector512Operations, TScore, TMask>(problem, modifier, predicate);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            Forward<Vector256<float>, Vector256Operations, TScore, TMask>(problem, modifier, predicate);
        }
        else
        {
            Forward<Vector128<float>, Vector128Operations, TScore, TMask>(problem, modifier, predicate);
        }
    }

    /// <summary>Computes gradients. Needs the output and (softmax) the log-sum-exp that <see cref="Forward(in AttentionArguments)"/> left in the arguments.</summary>
    public static void Backward(in AttentionArguments arguments, in AttentionGradients gradients) =>
        Backward(arguments, gradients, default(UnmodifiedScore), default(AllPairs));

    /// <summary>As <see cref="Backward(in AttentionArguments, in AttentionGradients)"/>, with the modifier and predicate of the forward pass.</summary>
    public static void Backward<TScore, TMask>(in AttentionArguments arguments, in AttentionGradients gradients, TScore modifier, TMask predicate)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        RefusePredicateWithRuns<TMask>(arguments);
        BackwardAttention.Compute(arguments, gradients, modifier, predicate);
    }

    /// <summary>Mass that each key receives, summed over the queries of each query head. Needs the log-sum-exp in the arguments.</summary>
    /// <param name="arguments">The problem; value and output are not read.</param>
    /// <param name="mass">Receives <c>[B, H, Nk]</c>, contiguous.</param>
    /// <param name="entropy">Receives, where given, the entropy in nats of every key's weights as shares of its mass, <c>[B, H, Nk]</c>, contiguous; 0 for a key without mass. Softmax only.</param>
    public static void MassPerKey(in AttentionArguments arguments, float* mass, float* entropy = null) => MassPerKey(arguments, mass, default(UnmodifiedScore), default(AllPairs), entropy);

    /// <summary>As <see cref="MassPerKey(in AttentionArguments, float*, float*)"/>, with a modifier and predicate.</summary>
    public static void MassPerKey<TScore, TMask>(in AttentionArguments arguments, float* mass, TScore modifier, TMask predicate, float* entropy = null)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        RefusePredicateWithRuns<TMask>(arguments);
        MassPerKeyPass.Compute(arguments, mass, modifier, predicate, entropy);
    }

    /// <summary>Merges two partial results over disjoint sets of keys into the first: o = (e^la oa + e^lb ob) / (e^la + e^lb).</summary>
    /// <param name="output">The first result <c>[B, H, Nq, Dv]</c>; receives the merged one.</param>
    /// <param name="logSumExp">Its log-sum-exp <c>[B, H, Nq]</c>; receives the merged one.</param>
    /// <param name="other">The second result.</param>
    /// <param name="otherLogSumExp">Its log-sum-exp.</param>
    /// <exception cref="ArgumentException">The results have different shapes, or one is not given.</exception>
    public static void Merge(TensorView output, float* logSumExp, TensorView other, float* otherLogSumExp)
    {
        CheckMerge(output, logSumExp, other, otherLogSumExp);
        long index = 0;
        for (var batch = 0; batch < output.Batch; batch++)
        {
            for (var head = 0; head < output.Heads; head++)
            {
                for (var row = 0; row < output.Length; row++, index++)
                {
                    var (first, second) = (logSumExp[index], otherLogSumExp[index]);

                    // A part that saw no pair has nothing to add, and two such parts stay empty.
                    if (float.IsNegativeInfinity(second))
                    {
                        continue;
                    }

                    var larger = MathF.Max(first, second);
                    var (left, right) = (MathF.Exp(first - larger), MathF.Exp(second - larger));
                    var sum = left + right;
                    logSumExp[index] = larger + MathF.Log(sum);
                    var into = new Span<float>(output.Row(batch, head, row), (int)output.Width);
                    TensorPrimitives.Multiply(into, left / sum, into);
                    TensorPrimitives.MultiplyAdd(new ReadOnlySpan<float>(other.Row(batch, head, row), into.Length), right / sum, into, into);
                }
            }
        }
    }

    private static void RefusePredicateWithRuns<TMask>(in AttentionArguments arguments)
    {
        if (typeof(TMask) != typeof(AllPairs) && arguments.KeyRuns is not null)
        {
            throw new ArgumentException("Key runs cannot be combined with a mask predicate: leave the pairs that it forbids out of the runs.", nameof(arguments));
        }
    }

    private static void CheckMerge(TensorView output, float* logSumExp, TensorView other, float* otherLogSumExp)
    {
        if (output.Batch != other.Batch || output.Heads != other.Heads || output.Length != other.Length || output.Width != other.Width)
        {
            throw new ArgumentException(
                $"Results to merge need the same shape; they are [{output.Batch}, {output.Heads}, {output.Length}, {output.Width}] and "
                + $"[{other.Batch}, {other.Heads}, {other.Length}, {other.Width}].",
                nameof(other));
        }

        if (output.Type != ElementType.Float32 || other.Type != ElementType.Float32)
        {
            throw new ArgumentException($"Results to merge must be float32; they are {output.Type} and {other.Type}.", nameof(other));
        }

        if (output.Batch * output.Heads * output.Length > 0 && (logSumExp == null || otherLogSumExp == null || ((!output.IsGiven || !other.IsGiven) && output.Width > 0)))
        {
            throw new ArgumentException("Merging needs both results and both log-sum-exps; one of them points to no memory.", nameof(other));
        }
    }

    /// <summary>The tiled forward pass of a checked problem at one width of vectors.</summary>
    internal static void Forward<TVector, TOps, TScore, TMask>(CheckedProblem problem, TScore modifier, TMask predicate)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        ClearAbsentRows<TVector, TOps>(problem);
        if (problem.IsGathered && typeof(TScore) == typeof(UnmodifiedScore) && typeof(TMask) == typeof(AllPairs) && !problem.Arguments.Statistics.Any)
        {
            GatheredForward<TVector, TOps>.Compute(problem);
        }
        else
        {
            ForwardKernel<TVector, TOps, TScore, TMask>.Compute(problem.WithBlockMask(), modifier, predicate);
        }
    }

    /// <summary>Writes the results of the rows that lie in no sequence: zeros, and minus infinity for the log-sum-exp.</summary>
    private static void ClearAbsentRows<TVector, TOps>(CheckedProblem problem)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        ref readonly var a = ref problem.Arguments;
        if (a.QueryOffsets == null && a.QueryLengths == null)
        {
            return;
        }

        for (var batch = 0; batch < problem.Batch; batch++)
        {
            long end = 0;
            for (var sequence = problem.IsPacked ? 0 : batch; sequence < (problem.IsPacked ? problem.Sequences : batch + 1); sequence++)
            {
                var slice = problem.Sequence(sequence);
                ClearRows<TVector, TOps>(problem, batch, end, slice.QueryStart);
                end = slice.QueryStart + slice.QueryLength;
            }

            ClearRows<TVector, TOps>(problem, batch, end, problem.Queries);
        }
    }

    private static void ClearRows<TVector, TOps>(CheckedProblem problem, long batch, long start, long end)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        ref readonly var a = ref problem.Arguments;
        for (var head = 0; head < problem.Heads; head++)
        {
            for (var row = start; row < end; row++)
            {
                new Span<float>(a.Output.Row(batch, head, row), problem.ValueWidth).Clear();
                var index = (((batch * problem.Heads) + head) * problem.Queries) + row;
                if (a.LogSumExp != null)
                {
                    a.LogSumExp[index] = float.NegativeInfinity;
                }

                if (a.Statistics.Any)
                {
                    ForwardStatistics<TVector, TOps>.WriteEmpty(a.Statistics, index);
                }
            }
        }
    }
}
