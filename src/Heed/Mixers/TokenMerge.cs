using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>A plan that merges similar tokens of a grid before an expensive layer and gives every token its result afterwards (arXiv 2303.17604), and that can merge further, into the agents of
/// <see cref="AgentAttention"/> (arXiv 2312.08874, appendix on Stable Diffusion).</summary>
/// <remarks>
/// Every cell of <c>strideY x strideX</c> has one destination; all other tokens, also those of a border that the strides leave over, are sources. The sources nearest to their best destination by cosine similarity are
/// averaged into it. Merged order: sources that stay, most similar first, then destinations in raster order. A token of length zero has similarity 0 to all (the authors divide by zero there). A tie of two
/// destinations goes to the first, a tie of two sources to the first. The plan itself has no gradient; merging and unmerging have.
/// </remarks>
public sealed class TokenMerge : IDisposable
{
    private readonly Tensor? _destinations;
    private readonly Tensor? _sources;
    private readonly Tensor? _order;
    private readonly Tensor? _best;
    private readonly long _merged;
    private readonly long _agentsMerged;

    private TokenMerge(long tokens)
    {
        Tokens = tokens;
    }

    private TokenMerge(long tokens, Tensor destinations, Tensor sources, Tensor order, Tensor best, long merged, long agentsMerged)
    {
        (Tokens, _merged, _agentsMerged) = (tokens, merged, agentsMerged);
        (_destinations, _sources, _order, _best) =
            (destinations.DetachFromDisposeScope(), sources.DetachFromDisposeScope(), order.DetachFromDisposeScope(), best.DetachFromDisposeScope());
    }

    /// <summary>Tokens N before merging.</summary>
    public long Tokens { get; }

    /// <summary>Tokens after merging.</summary>
    public long MergedTokens => Tokens - _merged;

    /// <summary>Agents; 0: the plan makes none.</summary>
    public long Agents => _agentsMerged == 0 ? 0 : Tokens - _agentsMerged;

    /// <summary>Plans a merge.</summary>
    /// <param name="metric">What similarity is measured on, <c>[B, H W, C]</c>.</param>
    /// <param name="height">Rows H.</param>
    /// <param name="width">Columns W.</param>
    /// <param name="strideX">Columns of a cell, at most W.</param>
    /// <param name="strideY">Rows of a cell, at most H.</param>
    /// <param name="mergeCount">Tokens to merge away, at most all sources; 0 or less: the plan changes nothing and makes no agents.</param>
    /// <param name="agentMergeCount">Tokens to merge away for agents, at most all sources; agents are made where they are fewer than half of the merged tokens. 0: no agents.</param>
    /// <param name="choices">The destination in each cell, <c>row * strideX + column</c> within it, int64 <c>[H / strideY, W / strideX]</c> (a trailing dimension of 1 is allowed); null: the top left token.</param>
    /// <exception cref="ArgumentException">Sizes do not fit together.</exception>
    public static TokenMerge Plan(Tensor metric, int height, int width, int strideX, int strideY, long mergeCount, long agentMergeCount = 0, Tensor? choices = null)
    {
        ArgumentNullException.ThrowIfNull(metric);
        if (metric.dim() != 3 || height < 1 || width < 1 || metric.shape[1] != (long)height * width)
        {
            throw new ArgumentException($"Tokens to merge are [batch, {height} x {width} = {(long)height * width}, channels], not {AttentionShape.Text(metric)}.", nameof(metric));
        }

        if (strideX < 1 || strideY < 1 || strideX > width || strideY > height)
        {
            throw new ArgumentException($"A cell of {strideY} x {strideX} tokens does not fit the grid of {height} x {width}: take strides from 1 to its sides.", nameof(strideX));
        }

        var tokens = metric.shape[1];
        var destinations = Destinations(height, width, strideX, strideY, choices);
        if (mergeCount <= 0)
        {
            return new(tokens);
        }

        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        using Scalar zero = 0;
        var chosen = destinations.ToHashSet();
        var others = Enumerable.Range(0, (int)tokens).Select(token => (long)token).Where(token => !chosen.Contains(token)).ToArray();
        var merged = Math.Min(others.Length, mergeCount);
        var agentsMerged = Math.Min(others.Length, agentMergeCount);
        var hasAgents = agentsMerged > 0 && 2 * (tokens - agentsMerged) < tokens - merged;
        var (destination, source) = (tensor(destinations, device: metric.device), tensor(others, device: metric.device));
        var unit = metric / linalg.norm(metric, dims: [-1], keepdim: true);
        unit = unit.masked_fill(unit.isfinite().logical_not(), zero);
        var scores = matmul(unit.index_select(1, source), unit.index_select(1, destination).transpose(1, 2));
        if (others.Length == 0)
        {
            return new(tokens);
        }

        var (similarity, nearest) = scores.max(-1);
        var (_, order) = sort(similarity, -1, descending: true, stable: true);
        return new(tokens, destination, source, order, nearest.gather(1, order), merged, hasAgents ? agentsMerged : 0);
    }

    /// <summary>Draws the destination of every cell at random.</summary>
    /// <param name="height">Rows.</param>
    /// <param name="width">Columns.</param>
    /// <param name="strideX">Columns of a cell.</param>
    /// <param name="strideY">Rows of a cell.</param>
    /// <param name="generator">Where the draw comes from; null: libtorch's own generator.</param>
    /// <returns>Choices for <see cref="Plan"/>.</returns>
    public static Tensor DrawChoices(int height, int width, int strideX, int strideY, Generator? generator = null) =>
        randint(0, (long)strideX * strideY, [height / strideY, width / strideX], dtype: int64, generator: generator);

    /// <summary>The merged tokens.</summary>
    /// <param name="content"><c>[B, N, C]</c>.</param>
    /// <returns><c>[B, N - merged, C]</c>; the content itself where the plan changes nothing.</returns>
    /// <exception cref="ArgumentException">The content has another shape.</exception>
    public Tensor Merge(Tensor content)
    {
        CheckTokens(content, Tokens);
        return _order is null ? content.alias() : Merge(content, _merged);
    }

    /// <summary>The agents.</summary>
    /// <param name="content"><c>[B, N, C]</c>.</param>
    /// <returns><c>[B, agents, C]</c>; null where the plan makes none.</returns>
    /// <exception cref="ArgumentException">The content has another shape.</exception>
    public Tensor? MergeAgents(Tensor content)
    {
        CheckTokens(content, Tokens);
        return Agents == 0 ? null : Merge(content, _agentsMerged);
    }

    /// <summary>Gives every token its result: those that were merged, that of their destination.</summary>
    /// <param name="merged"><c>[B, N - merged, C]</c>.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The tensor has another shape.</exception>
    public Tensor Unmerge(Tensor merged)
    {
        CheckTokens(merged, MergedTokens);
        if (_order is null)
        {
            return merged.alias();
        }

        // Where each token finds its result: kept sources stand first, destinations last.
        using var scope = NewDisposeScope();
        var (batch, kept) = (merged.shape[0], _order.shape[1] - _merged);
        var (destinations, sources) = (_destinations!.shape[0], _sources!.shape[0]);
        using Scalar zero = 0, keptCount = kept, last = kept + destinations;
        var place = empty(batch, Tokens, dtype: int64, device: merged.device);
        place.index_copy_(1, _destinations, arange(keptCount, last, dtype: int64, device: merged.device).expand(batch, destinations));
        var ofSources = cat([_best!.narrow(1, 0, _merged).add(keptCount), arange(zero, keptCount, dtype: int64, device: merged.device).expand(batch, kept)], 1);
        place.scatter_(1, _sources.index_select(0, _order.flatten()).view(batch, sources), ofSources);
        return merged.gather(1, place.unsqueeze(-1).expand(batch, Tokens, merged.shape[2])).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _destinations?.Dispose();
        _sources?.Dispose();
        _order?.Dispose();
        _best?.Dispose();
    }

    private static long[] Destinations(int height, int width, int strideX, int strideY, Tensor? choices)
    {
        var (rows, columns) = (height / strideY, width / strideX);
        long[]? drawn = null;
        if (choices is not null)
        {
            if (choices.numel() != (long)rows * columns || choices.dim() < 2 || choices.shape[0] != rows || choices.shape[1] != columns)
            {
                throw new ArgumentException($"There is a choice for each of the {rows} x {columns} cells; {AttentionShape.Text(choices)} was given.", nameof(choices));
            }

            using var whole = choices.to(int64).cpu().contiguous();
            drawn = [.. whole.data<long>()];
            if (drawn.Any(choice => choice < 0 || choice >= (long)strideX * strideY))
            {
                throw new ArgumentException($"A choice is a place in a cell, from 0 to {((long)strideX * strideY) - 1}.", nameof(choices));
            }
        }

        var chosen = Enumerable.Range(0, rows * columns).Select(cell =>
        {
            var choice = drawn?[cell] ?? 0;
            return ((((cell / columns) * strideY) + (choice / strideX)) * width) + ((cell % columns) * strideX) + (choice % strideX);
        }).ToArray();
        Array.Sort(chosen);
        return chosen;
    }

    private static void CheckTokens(Tensor tokens, long expected)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 3 || tokens.shape[1] != expected)
        {
            throw new ArgumentException($"The plan is for [batch, {expected} tokens, channels], not {AttentionShape.Text(tokens)}.", nameof(tokens));
        }
    }

    private Tensor Merge(Tensor content, long count)
    {
        using var scope = NewDisposeScope();
        using Scalar one = 1;
        var (batch, channels) = (content.shape[0], content.shape[2]);
        var ordered = content.gather(1, _sources!.index_select(0, _order!.flatten()).view(batch, -1, 1).expand(batch, _order.shape[1], channels));
        var target = _best!.narrow(1, 0, count);
        var sum = content.index_select(1, _destinations!).scatter_add(1, target.unsqueeze(-1).expand(batch, count, channels), ordered.narrow(1, 0, count));
        var members = ones(batch, _destinations!.shape[0], dtype: content.dtype, device: content.device).scatter_add(1, target, ones(batch, count, dtype: content.dtype, device: content.device));
        return cat([ordered.narrow(1, count, ordered.shape[1] - count), sum / members.unsqueeze(-1)], 1).MoveToOuterDisposeScope();
    }
}
