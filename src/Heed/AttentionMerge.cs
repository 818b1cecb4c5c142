using static TorchSharp.torch;

namespace Heed;

/// <summary>Merges attention over disjoint sets of keys into attention over all of them (arXiv 2504.16922).</summary>
public static class AttentionMerge
{
    /// <summary>Merges parts that share their queries: <c>LSE = log sum e^LSE_i</c> and <c>O = sum e^(LSE_i - LSE) O_i</c>, row by row. Differentiable, and stable for any difference of the parts.</summary>
    /// <param name="outputs">Outputs of the parts, of one shape <c>[..., D]</c>: <c>[B, H, N, D]</c> as <see cref="Attention.ComputePart"/> gives them, or heads last.</param>
    /// <param name="logSumExps">Their log-sum-exps (natural logarithm), <c>[...]</c> without the last dimension.</param>
    /// <returns>Output and log-sum-exp of the whole.</returns>
    /// <exception cref="ArgumentException">There is no part, their numbers differ, or shapes do not fit.</exception>
    public static (Tensor Output, Tensor LogSumExp) Merge(IReadOnlyList<Tensor> outputs, IReadOnlyList<Tensor> logSumExps)
    {
        ArgumentNullException.ThrowIfNull(outputs);
        ArgumentNullException.ThrowIfNull(logSumExps);
        if (outputs.Count == 0 || outputs.Count != logSumExps.Count)
        {
            throw new ArgumentException($"Every part has an output and a log-sum-exp, and there is at least one part; {outputs.Count} and {logSumExps.Count} were given.", nameof(logSumExps));
        }

        for (var part = 0; part < outputs.Count; part++)
        {
            if (!outputs[part].shape.AsSpan().SequenceEqual(outputs[0].shape) || !logSumExps[part].shape.AsSpan().SequenceEqual(outputs[0].shape.AsSpan(0, (int)outputs[0].dim() - 1)))
            {
                throw new ArgumentException(
                    $"Outputs have one shape, and a log-sum-exp has it without the last dimension; part {part} has {AttentionShape.Text(outputs[part])} and {AttentionShape.Text(logSumExps[part])} "
                    + $"beside {AttentionShape.Text(outputs[0])}.", nameof(outputs));
            }
        }

        using var scope = NewDisposeScope();
        var merged = (Output: outputs[0].alias(), LogSumExp: logSumExps[0].alias());
        for (var part = 1; part < outputs.Count; part++)
        {
            merged = Attention.Merge(merged, (outputs[part], logSumExps[part]));
        }

        return (merged.Output.MoveToOuterDisposeScope(), merged.LogSumExp.MoveToOuterDisposeScope());
    }
}
