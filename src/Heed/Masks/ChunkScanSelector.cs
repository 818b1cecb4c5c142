using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>One stage of a chunk scan.</summary>
/// <param name="ChunkSize">Keys of a chunk.</param>
/// <param name="BlockStrideQ">Every how many rows of a query block vote.</param>
/// <param name="Keep">Keys that enter the stage, as whole chunks of the stage before; null: all. The first stage takes all.</param>
public sealed record ChunkScanStage(int ChunkSize, int BlockStrideQ, int? Keep = null);

/// <summary>The options of attention by chunk scans; the defaults are those of HiP's release 1.2. Immutable.</summary>
public sealed record ChunkScanOptions
{
    /// <summary>The stages, from large chunks to small ones: each chunk size is a multiple of the next.</summary>
    public IReadOnlyList<ChunkScanStage> Stages { get; init; } = [new(256, 4), new(32, 4, 32768), new(8, 1, 8192)];

    /// <summary>Keys kept per query block after the last stage, as whole chunks of it.</summary>
    public int Keep { get; init; } = 2048;

    /// <summary>Queries that share a selection.</summary>
    public int BlockSizeQ { get; init; } = 64;

    /// <summary>The last keys of the visible past, which every query of a block sees without a scan.</summary>
    public int SlidingWindow { get; init; } = 1024;

    /// <summary>First keys of the sequence that every query sees.</summary>
    public int SinkSize { get; init; } = 256;

    /// <summary>In decoding, the steps for which a selection is used before it is made anew.</summary>
    public int RefreshInterval { get; init; } = 8;

    /// <summary>Refuses options that make no scan.</summary>
    /// <exception cref="ArgumentException">An option is out of its range.</exception>
    public void Validate()
    {
        if (Stages.Count == 0 || BlockSizeQ < 1 || RefreshInterval < 1 || SlidingWindow < 0 || SinkSize < 0)
        {
            throw new ArgumentException(
                $"{nameof(ChunkScanOptions)} need at least one stage, one query a block and one step a selection, and a window and sinks from 0; {Stages.Count}, {BlockSizeQ}, {RefreshInterval}, {SlidingWindow} and {SinkSize} were given.");
        }

        for (var i = 0; i < Stages.Count; i++)
        {
            var stage = Stages[i];
            if (stage.ChunkSize < 1 || stage.BlockStrideQ < 1 || stage.BlockStrideQ > BlockSizeQ || (i > 0 && Stages[i - 1].ChunkSize % stage.ChunkSize != 0))
            {
                throw new ArgumentException(
                    $"Stage {i} of a chunk scan has chunks of {stage.ChunkSize} and a stride of {stage.BlockStrideQ}: chunks divide those of the stage before, and strides are 1 to {BlockSizeQ}.");
            }

            if (i > 0 && stage.Keep is { } keep && keep < Stages[i - 1].ChunkSize)
            {
                throw new ArgumentException($"Stage {i} of a chunk scan keeps {keep} keys: at least one chunk of {Stages[i - 1].ChunkSize} is needed.");
            }
        }

        if (Keep < Stages[^1].ChunkSize)
        {
            throw new ArgumentException($"A chunk scan keeps at least one chunk of {Stages[^1].ChunkSize} keys, not {Keep}.");
        }
    }
}

/// <summary>
/// Attention to the chunks of keys that several scans leave (release 1.2 of HiP, arXiv 2406.09827; the pruning of InfiniteHiP, arXiv 2502.08910): each stage scans (<see cref="ChunkScan"/>) the chunks that the stage before ranked highest, in
/// smaller pieces. Training-free.
/// </summary>
/// <remarks>The first stage reads O(N / chunk) keys for every block of queries, so that its cost grows with N squared, however slowly; HiP's tree (<see cref="HipSelector"/>) does not. All stages are refreshed together in
/// decoding: the authors refresh them at intervals of their own. Of equal scores the earlier chunk stays.</remarks>
public sealed class ChunkScanSelector : PruningSelector
{
    private readonly ChunkScanOptions _options;

    /// <summary>Initializes the selector.</summary>
    /// <param name="options">The options; null: the defaults.</param>
    /// <exception cref="ArgumentException">An option is out of its range.</exception>
    public ChunkScanSelector(ChunkScanOptions? options = null)
    {
        _options = options ?? new();
        _options.Validate();
    }

    /// <summary>The options.</summary>
    public ChunkScanOptions Options => _options;

    private protected override PruningShape Shape => new(_options.BlockSizeQ, _options.SlidingWindow, _options.SinkSize, false, _options.RefreshInterval);

    private protected override HipSelection Search(Tensor query, Tensor key, long[] queries, long[] keys, int threads)
    {
        for (var batch = 0; batch < keys.Length; batch++)
        {
            if (keys[batch] < queries[batch])
            {
                throw new ArgumentException($"A chunk scan aligns the last query with the last key: at least as many keys as queries are needed, not {keys[batch]} for {queries[batch]}.");
            }
        }

        var chunk = _options.Stages[^1].ChunkSize;
        var selection = new HipSelection((int)query.size(0), (int)query.size(1), QueryBlocks(query), _options.Keep / chunk, chunk);
        ForEachBlock(query.size(0), query.size(1), selection.QueryBlocks, threads, () => new Scans(_options, query, key), (scans, batch, head, queryBlock) =>
        {
            var searchable = (int)Math.Max(0, Visible(queryBlock, queries[batch], keys[batch]) - _options.SlidingWindow);
            var list = selection.List(batch, head, queryBlock);
            selection.KeptBlocks[list] = scans.Run(batch, head, queryBlock, (int)queries[batch], searchable, selection.Blocks.AsSpan(list * selection.Slots, selection.Slots));
        });
        return selection;
    }

    /// <summary>The stages for one block of queries; one instance serves one thread.</summary>
    private sealed class Scans
    {
        private readonly ChunkScanOptions _options;
        private readonly ChunkScanSearch[] _stages;
        private readonly int[] _chunks;
        private readonly int[] _left;
        private readonly int[] _right;
        private readonly double[] _scores;
        private readonly long[] _order;
        private readonly int[] _kept;

        public Scans(ChunkScanOptions options, Tensor query, Tensor key)
        {
            _options = options;
            var most = 0;
            var entering = key.size(2) + options.Stages[0].ChunkSize;
            _stages = [.. options.Stages.Select((stage, index) =>
            {
                entering = index == 0 ? entering : Math.Min(entering, stage.Keep ?? entering);
                var chunks = (int)(entering / stage.ChunkSize) + 1;
                most = Math.Max(most, chunks);
                return new ChunkScanSearch(query, key, options.BlockSizeQ, stage.BlockStrideQ, chunks);
            })];
            (_chunks, _left, _right, _scores, _order, _kept) = (new int[most], new int[most], new int[most], new double[most], new long[most], new int[most]);
        }

        /// <summary>The chunks of the last stage that are kept, ascending.</summary>
        public int Run(int batch, int head, int queryBlock, int queries, int searchable, Span<int> kept)
        {
            var stages = _options.Stages;
            var count = (searchable + stages[0].ChunkSize - 1) / stages[0].ChunkSize;
            for (var i = 0; i < count; i++)
            {
                _chunks[i] = i;
            }

            for (var stage = 0; stage < stages.Count; stage++)
            {
                var size = stages[stage].ChunkSize;
                if (stage > 0)
                {
                    count = Refine(count, stages[stage - 1].ChunkSize / size, size, searchable);
                }

                var budget = stage == stages.Count - 1 ? _options.Keep : stages[stage + 1].Keep;
                if (budget is not { } most || count <= most / size)
                {
                    continue;
                }

                for (var i = 0; i < count; i++)
                {
                    (_left[i], _right[i]) = (_chunks[i] * size, Math.Min((_chunks[i] + 1) * size, searchable));
                }

                _stages[stage].Choose(batch, head, queryBlock, queries);
                _stages[stage].Scan(_left.AsSpan(0, count), _right.AsSpan(0, count), _scores.AsSpan(0, count));
                count = LargestScores.Keep(_scores.AsSpan(0, count), _order, most / size, _kept);
                for (var i = 0; i < count; i++)
                {
                    _chunks[i] = _chunks[_kept[i]];
                }
            }

            _chunks.AsSpan(0, count).CopyTo(kept);
            return count;
        }

        /// <summary>Cuts the chunks into those of the next stage, in place, from the end.</summary>
        private int Refine(int count, int pieces, int size, int searchable)
        {
            var last = (searchable + size - 1) / size;
            for (var i = count - 1; i >= 0; i--)
            {
                for (var piece = pieces - 1; piece >= 0; piece--)
                {
                    _chunks[(i * pieces) + piece] = (_chunks[i] * pieces) + piece;
                }
            }

            count *= pieces;
            while (count > 0 && _chunks[count - 1] >= last)
            {
                count--;
            }

            return count;
        }
    }
}
