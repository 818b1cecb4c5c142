using TorchSharp;

namespace Heed;

/// <summary>One attention call as hooks see it.</summary>
public sealed class AttentionCall
{
    internal AttentionCall(AttentionSite site, torch.Tensor query, torch.Tensor key, torch.Tensor value, AttentionOptions options)
    {
        Site = site;
        Query = query;
        Key = key;
        Value = value;
        Options = options;
    }

    /// <summary>Where the call stands in the model.</summary>
    public AttentionSite Site { get; }

    /// <summary>Queries <c>[B, H, Nq, D]</c>.</summary>
    public torch.Tensor Query { get; set; }

    /// <summary>Keys <c>[B, Hkv, Nk, D]</c>.</summary>
    public torch.Tensor Key { get; set; }

    /// <summary>Values <c>[B, Hkv, Nk, Dv]</c>.</summary>
    public torch.Tensor Value { get; set; }

    /// <summary>The options of the call.</summary>
    public AttentionOptions Options { get; set; }

    /// <summary>What the tokens of the sequence stand for; null where the model did not say.</summary>
    public TokenLayout? Layout { get; internal init; }

    /// <summary>The position of the first query in its sequence, where the model tells it (<see cref="AttentionHooks.FirstPosition"/>); 0 elsewhere.</summary>
    internal long FirstPosition { get; init; }

    /// <summary>The weights as the hooks left them, where the call materialises the map.</summary>
    internal torch.Tensor? Map { get; set; }

    /// <summary>Log-sum-exp of every row, float32 <c>[B, H, Nq]</c>, at the stage output of a fused call whose hooks asked for statistics.</summary>
    internal torch.Tensor? LogSumExp { get; set; }

    /// <summary>The pairs that exist by the options' causality, window, masks and lengths, materialised: for pictures, tests and comparisons.</summary>
    /// <returns>Boolean, broadcastable to <c>[B, H, Nq, Nk]</c>.</returns>
    public torch.Tensor Pairs() => PlainAttention.Allowed(Query, Key, Options);

    /// <summary>The weights of chosen heads and query rows, computed on demand in O(heads * rows * Nk) without materialising the rest.
    /// Where a hook at the site changes scores or weights, they are seen as it leaves them at the stages <see cref="AttentionStages.Map"/>
    /// and <see cref="AttentionStages.Statistics"/>.</summary>
    /// <param name="heads">Query heads; null: all.</param>
    /// <param name="rows">Query rows; null: all.</param>
    /// <returns><c>[B, heads, rows, Nk]</c>.</returns>
    /// <exception cref="ArgumentException">There is no such head or row.</exception>
    public torch.Tensor Weights(IReadOnlyList<int>? heads, IReadOnlyList<long>? rows = null)
    {
        CheckChoice("weights", heads, rows);
        return Map is null ? PlainAttention.Weights(Query, Key, Options, heads, rows) : PlainAttention.Choose(Map, heads, rows).alias();
    }

    /// <summary>The scores of chosen heads and query rows before the normaliser, as inputs and options make them (what hooks at the stage <see cref="AttentionStages.Scores"/> change is not seen), computed on demand in
    /// O(heads * rows * Nk).</summary>
    /// <param name="heads">Query heads; null: all.</param>
    /// <param name="rows">Query rows; null: all.</param>
    /// <returns><c>[B, heads, rows, Nk]</c>, minus infinity where there is no pair.</returns>
    /// <exception cref="ArgumentException">There is no such head or row.</exception>
    public torch.Tensor Scores(IReadOnlyList<int>? heads, IReadOnlyList<long>? rows = null)
    {
        CheckChoice("scores", heads, rows);
        return PlainAttention.ScoresOf(Query, Key, Options, heads, rows);
    }

    /// <summary>The weights of chosen keys, in O(heads * rows * keys) where the rows' log-sum-exps are known (at the stage <see cref="AttentionStages.Output"/>, for hooks that asked for statistics), and otherwise as
    /// dear as <see cref="Weights"/>.</summary>
    /// <param name="keys">Keys, in any order.</param>
    /// <param name="heads">Query heads; null: all.</param>
    /// <param name="rows">Query rows; null: all.</param>
    /// <returns><c>[B, heads, rows, keys]</c>, in float32 or wider.</returns>
    /// <exception cref="ArgumentException">There is no such key, head or row.</exception>
    public torch.Tensor ColumnWeights(IReadOnlyList<long> keys, IReadOnlyList<int>? heads = null, IReadOnlyList<long>? rows = null)
    {
        ArgumentNullException.ThrowIfNull(keys);
        CheckChoice("weights", heads, rows);
        Check(keys);
        using var scope = torch.NewDisposeScope();
        var columns = torch.tensor(keys.ToArray(), device: Query.device);
        if (Map is not null || LogSumExp is null || Options.Normalizer != Kernels.Normalizer.Softmax)
        {
            return Weights(heads, rows).index_select(3, columns).MoveToOuterDisposeScope();
        }

        // A row without a pair has the log-sum-exp minus infinity and no score above it: infinity keeps its weights at zero.
        using Scalar nothing = double.NegativeInfinity, everything = double.PositiveInfinity;
        var logSumExp = PlainAttention.Choose(LogSumExp.unsqueeze(-1), heads, rows);
        var scores = PlainAttention.ColumnScores(Query, Key, Options, columns, heads, rows);
        return (scores - logSumExp.masked_fill(logSumExp.eq(nothing), everything)).exp().MoveToOuterDisposeScope();
    }

    /// <summary>The scores of chosen keys before the normaliser, minus infinity where there is no pair: O(heads * rows * keys).</summary>
    /// <param name="keys">Keys, in any order.</param>
    /// <param name="heads">Query heads; null: all.</param>
    /// <param name="rows">Query rows; null: all.</param>
    /// <returns><c>[B, heads, rows, keys]</c>, in float32 or wider.</returns>
    /// <exception cref="ArgumentException">There is no such key, head or row.</exception>
    public torch.Tensor ColumnScores(IReadOnlyList<long> keys, IReadOnlyList<int>? heads = null, IReadOnlyList<long>? rows = null)
    {
        ArgumentNullException.ThrowIfNull(keys);
        CheckChoice("scores", heads, rows);
        Check(keys);
        using var columns = torch.tensor(keys.ToArray(), device: Query.device);
        return PlainAttention.ColumnScores(Query, Key, Options, columns, heads, rows);
    }

    private void Check(IReadOnlyList<long> keys)
    {
        foreach (var key in keys)
        {
            if (key < 0 || key >= Key.size(2))
            {
                throw new ArgumentException($"The call at the site '{Site}' has keys 0 to {Key.size(2) - 1}; key {key} was asked for.", nameof(keys));
            }
        }
    }

    private void CheckChoice(string what, IReadOnlyList<int>? heads, IReadOnlyList<long>? rows)
    {
        foreach (var head in heads ?? [])
        {
            if (head < 0 || head >= Query.size(1))
            {
                throw new ArgumentException($"The call at the site '{Site}' has heads 0 to {Query.size(1) - 1}; the {what} of head {head} were asked for.", nameof(heads));
            }
        }

        foreach (var row in rows ?? [])
        {
            if (row < 0 || row >= Query.size(2))
            {
                throw new ArgumentException($"The call at the site '{Site}' has query rows 0 to {Query.size(2) - 1}; the {what} of row {row} were asked for.", nameof(rows));
            }
        }
    }
}
