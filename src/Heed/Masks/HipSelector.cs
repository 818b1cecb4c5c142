using Heed.Interop;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>
/// HiP attention (hierarchically pruned attention, arXiv 2406.09827): for every block of queries, the most relevant keys by a beam search down a binary tree over the past, in O(log N) rounds of O(k) products, without training. The
/// attention then reads the kept blocks, the first keys and a window.
/// </summary>
/// <remarks>
/// <para>The search relies on locality: neighbouring keys score alike. Where they do not, it finds little more than chance (see the reproduction).</para>
/// <para>Follows the authors' release 1.1 in its exact form: float arithmetic without quantisation, starts not aligned to powers of two. Of equal scores the lower piece stays. Left out: release 1.0, calls that are not
/// causal.</para>
/// <para>In decoding, every <see cref="HipOptions.RefreshInterval"/>th step searches; the steps between use its selection, and the window reaches back to where it ended then. A call of several queries, or a key length
/// that does not go on from the last step's, starts afresh. Decoding gives the last row of a prefill where the prefill has one query a block (<see cref="HipOptions.BlockSizeQ"/> 1) and every step searches: in a longer block
/// all queries vote on one selection.</para>
/// </remarks>
public sealed class HipSelector : PruningSelector
{
    private readonly HipOptions _options;

    /// <summary>Initializes the selector.</summary>
    /// <param name="options">The options; null: the defaults.</param>
    /// <exception cref="ArgumentException">An option is out of its range.</exception>
    public HipSelector(HipOptions? options = null)
    {
        _options = options ?? new();
        _options.Validate();
    }

    /// <summary>The options.</summary>
    public HipOptions Options => _options;

    private protected override PruningShape Shape =>
        new(_options.BlockSizeQ, _options.SlidingWindow, _options.SinkSize, _options.WindowAlignment == HipWindowAlignment.Query, _options.RefreshInterval);

    private protected override HipSelection Search(Tensor query, Tensor key, long[] queries, long[] keys, int threads)
    {
        var (batches, heads, group) = (query.size(0), query.size(1), _options.BlockSizeKGroup);
        if (heads % _options.HeadGroup != 0)
        {
            throw new ArgumentException($"The heads that share a budget divide the number of heads; {nameof(HipOptions)}.{nameof(HipOptions.HeadGroup)} {_options.HeadGroup} does not divide {heads}.");
        }

        for (var batch = 0; batch < batches; batch++)
        {
            if (keys[batch] < queries[batch])
            {
                throw new ArgumentException($"HiP aligns the last query with the last key: at least as many keys as queries are needed, not {keys[batch]} for {queries[batch]}.");
            }

            if (keys[batch] % group != 0 && _options.SlidingWindow < group)
            {
                throw new ArgumentException(
                    $"Groups of {group} keys leave a rest of {keys[batch] % group} of {keys[batch]} keys that no search sees: give a window of at least {group}, or a length that {group} divides.");
            }
        }

        var selection = new HipSelection((int)batches, (int)heads, QueryBlocks(query), _options.Slots * _options.HeadGroup, _options.BlockTokens);
        var searched = group == 1 ? key : MinimaAndMaxima(key, group);
        var keysPerBlock = group == 1 ? _options.BlockSizeK : 2 * _options.BlockSizeK;
        ForEachBlock(batches, heads / _options.HeadGroup, selection.QueryBlocks, threads, () => new HipSearch(_options, selection, query, searched, keysPerBlock), (search, batch, headGroup, queryBlock) =>
        {
            var visible = Visible(queryBlock, queries[batch], keys[batch]);
            var searchable = (int)Math.Max(0, (visible / group) - (_options.SlidingWindow / group));
            search.Select(batch, headGroup * _options.HeadGroup, queryBlock, (int)queries[batch], searchable);
        });
        return selection;
    }

    /// <summary>Element-wise minimum and maximum of groups of keys, side by side: a group becomes two keys, and the larger of their products is its score. <c>[B, Hkv, 2 Nk / group, D]</c>; a rest is left out.</summary>
    private static Tensor MinimaAndMaxima(Tensor key, int group)
    {
        var groups = key.size(2) / group;
        var grouped = key.narrow(2, 0, groups * group).reshape(key.size(0), key.size(1), groups, group, key.size(3));
        return TensorMemory.WithContiguousRows(stack([grouped.amin([3L]), grouped.amax([3L])], 3).reshape(key.size(0), key.size(1), 2 * groups, key.size(3)));
    }
}
