using System.Numerics.Tensors;
using System.Runtime.InteropServices;
using Heed.Kernels;
using Heed.Masks;
using static TorchSharp.torch;
using Tensor = TorchSharp.torch.Tensor;

namespace Heed.Interop;

/// <summary>
/// Attention over selected blocks by gathering: for every key block, the queries that selected it are brought together and attend to it as a packed sequence; each query's parts are merged by their log-sum-exps.
/// Work is proportional to what is selected, however scattered it lies, where a block mask pays for every block of queries that any of its queries selected.
/// </summary>
internal sealed unsafe class GatheredBlocks
{
    // Gathered rows that are computed at once: enough to keep every thread busy, few enough that the buffers stay small.
    private const int MostRows = 1 << 16;
    private const int RowsPerItem = 256;

    private readonly BlockSelection _selection;
    private readonly List<Chunk> _chunks = [];
    private readonly int _threads;
    private readonly float _scale;

    /// <summary>Plans the gathering.</summary>
    /// <param name="selection">What is selected. Not causal: as many queries as keys.</param>
    /// <param name="scale">Factor of the products.</param>
    public GatheredBlocks(BlockSelection selection, double scale)
    {
        (_selection, _scale, _threads) = (selection, (float)scale, get_num_threads());
        for (var batch = 0; batch < selection.Batches; batch++)
        {
            var everything = selection.FallsBack(batch);
            for (var head = 0; head < selection.Heads; head++)
            {
                for (var block = 0; block < selection.Blocks;)
                {
                    var chunk = new Chunk(selection, batch, head, block, everything);
                    _chunks.Add(chunk);
                    block = chunk.EndBlock;
                }
            }
        }
    }

    private int LargestChunk => _chunks.Count == 0 ? 0 : _chunks.Max(chunk => chunk.Rows.Length);

    /// <summary>Computes output <c>[B, H, N, Dv]</c> and log-sum-exp <c>[B, H, N]</c> from float32 tensors with contiguous rows and equal numbers of heads.</summary>
    public void Forward(Tensor query, Tensor key, Tensor value, Tensor output, Tensor logSumExp)
    {
        var (q, k, v, o) = (TensorMemory.View(query), TensorMemory.View(key), TensorMemory.View(value), TensorMemory.View(output));
        var sums = (float*)TensorMemory.Data(logSumExp);
        new Span<float>(sums, checked((int)logSumExp.numel())).Fill(float.NegativeInfinity);
        var (width, valueWidth) = ((int)q.Width, (int)v.Width);
        using var memory = new Scratch((long)LargestChunk * (width + valueWidth + 1));
        foreach (var chunk in _chunks)
        {
            var rows = chunk.Rows.Length;
            var queries = memory.Data;
            var parts = queries + ((long)rows * width);
            var partSums = parts + ((long)rows * valueWidth);
            Gather(q, chunk, queries);
            fixed (long* queryOffsets = chunk.QueryOffsets, keyOffsets = chunk.KeyOffsets)
            {
                var arguments = Arguments(chunk, queries, Keys(k, chunk), Keys(v, chunk), parts, partSums, queryOffsets, keyOffsets);
                FusedAttention.Forward(arguments);
            }

            var headSums = sums + ((((long)chunk.Batch * _selection.Heads) + chunk.Head) * _selection.Queries);
            ForRows(chunk, query => Merge(chunk, query, parts, partSums, o.Row(chunk.Batch, chunk.Head, query), valueWidth, headSums + query));
        }

        GC.KeepAlive((query, key, value, output, logSumExp));
    }

    /// <summary>Computes the gradients of query, key and value.</summary>
    /// <param name="query">As in the forward pass.</param>
    /// <param name="key">As in the forward pass.</param>
    /// <param name="value">As in the forward pass.</param>
    /// <param name="output">The output.</param>
    /// <param name="logSumExp">The log-sum-exp.</param>
    /// <param name="outputGradient">The output's gradient, rows contiguous.</param>
    /// <param name="queryGradient">Receives the query's.</param>
    /// <param name="keyGradient">Receives the key's.</param>
    /// <param name="valueGradient">Receives the value's.</param>
    public void Backward(
        Tensor query, Tensor key, Tensor value, Tensor output, Tensor logSumExp, Tensor outputGradient, Tensor queryGradient, Tensor keyGradient, Tensor valueGradient)
    {
        var (q, k, v, o) = (TensorMemory.View(query), TensorMemory.View(key), TensorMemory.View(value), TensorMemory.View(output));
        var (incoming, dq, dk, dv) = (TensorMemory.View(outputGradient), TensorMemory.View(queryGradient), TensorMemory.View(keyGradient), TensorMemory.View(valueGradient));
        var sums = (float*)TensorMemory.Data(logSumExp);
        var (width, valueWidth) = ((int)q.Width, (int)v.Width);
        queryGradient.zero_();
        using var memory = new Scratch((long)LargestChunk * ((2L * width) + (2L * valueWidth) + 1));
        foreach (var chunk in _chunks)
        {
            long rows = chunk.Rows.Length;
            var queries = memory.Data;
            var outputs = queries + (rows * width);
            var outputGradients = outputs + (rows * valueWidth);
            var queryGradients = outputGradients + (rows * valueWidth);
            var wholeSums = queryGradients + (rows * width);
            Gather(q, chunk, queries);
            Gather(o, chunk, outputs);
            Gather(incoming, chunk, outputGradients);
            var headSums = sums + ((((long)chunk.Batch * _selection.Heads) + chunk.Head) * _selection.Queries);
            for (var row = 0; row < rows; row++)
            {
                wholeSums[row] = headSums[chunk.Rows[row]];
            }

            fixed (long* queryOffsets = chunk.QueryOffsets, keyOffsets = chunk.KeyOffsets)
            {
                // The output and log-sum-exp over all blocks stand for those of the part: what comes out is the part's share of the gradients of the whole.
                var arguments = Arguments(chunk, queries, Keys(k, chunk), Keys(v, chunk), outputs, wholeSums, queryOffsets, keyOffsets);
                var gradients = new AttentionGradients
                {
                    Output = new TensorView(outputGradients, 1, 1, rows, valueWidth),
                    Query = new TensorView(queryGradients, 1, 1, rows, width),
                    Key = Keys(dk, chunk),
                    Value = Keys(dv, chunk),
                };
                FusedAttention.Backward(arguments, gradients);
            }

            ForRows(chunk, query =>
            {
                var into = new Span<float>(dq.Row(chunk.Batch, chunk.Head, query), width);
                foreach (var part in chunk.PartsOf(query))
                {
                    TensorPrimitives.Add(into, new ReadOnlySpan<float>(queryGradients + ((long)part * width), width), into);
                }
            });
        }

        GC.KeepAlive((query, key, value, output, logSumExp, (outputGradient, queryGradient, keyGradient, valueGradient)));
    }

    private AttentionArguments Arguments(
        Chunk chunk, float* queries, TensorView keys, TensorView values, float* outputs, float* logSumExp, long* queryOffsets, long* keyOffsets) =>
        new(new TensorView(queries, 1, 1, chunk.Rows.Length, keys.Width), keys, values, new TensorView(outputs, 1, 1, chunk.Rows.Length, values.Width))
        {
            Scale = _scale,
            LogSumExp = logSumExp,
            QueryOffsets = queryOffsets,
            KeyOffsets = keyOffsets,
            Sequences = chunk.QueryOffsets.Length - 1,
            Threads = _threads,
        };

    /// <summary>The keys of a chunk's blocks as the keys of a single head.</summary>
    private static TensorView Keys(in TensorView view, Chunk chunk) => view with
    {
        Data = (nint)view.Row(chunk.Batch, chunk.Head, chunk.FirstKey), Batch = 1, Heads = 1, Length = chunk.KeyOffsets[^1], BatchStride = 0, HeadStride = 0,
    };

    private static void Merge(Chunk chunk, int query, float* parts, float* partSums, float* output, int width, float* sum)
    {
        var entries = chunk.PartsOf(query);
        if (entries.Length == 0)
        {
            return;
        }

        var largest = *sum;
        foreach (var part in entries)
        {
            largest = MathF.Max(largest, partSums[part]);
        }

        var into = new Span<float>(output, width);
        var total = 0f;
        if (float.IsNegativeInfinity(*sum))
        {
            into.Clear();
        }
        else
        {
            total = MathF.Exp(*sum - largest);
            TensorPrimitives.Multiply(into, total, into);
        }

        foreach (var part in entries)
        {
            var weight = MathF.Exp(partSums[part] - largest);
            total += weight;
            TensorPrimitives.MultiplyAdd(new ReadOnlySpan<float>(parts + ((long)part * width), width), weight, into, into);
        }

        TensorPrimitives.Multiply(into, 1 / total, into);
        *sum = largest + MathF.Log(total);
    }

    private void Gather(TensorView from, Chunk chunk, float* to)
    {
        var width = (int)from.Width;
        Run((chunk.Rows.Length + RowsPerItem - 1) / RowsPerItem, item =>
        {
            var end = Math.Min(chunk.Rows.Length, (item + 1) * RowsPerItem);
            for (var row = item * RowsPerItem; row < end; row++)
            {
                new ReadOnlySpan<float>(from.Row(chunk.Batch, chunk.Head, chunk.Rows[row]), width).CopyTo(new Span<float>(to + ((long)row * width), width));
            }
        });
    }

    private void ForRows(Chunk chunk, Action<int> body) => Run((_selection.Queries + RowsPerItem - 1) / RowsPerItem, item =>
    {
        var end = Math.Min(_selection.Queries, (item + 1) * RowsPerItem);
        for (var query = item * RowsPerItem; query < end; query++)
        {
            body(query);
        }
    });

    private void Run(int items, Action<int> body) => Parallel.For(0, items, new ParallelOptions { MaxDegreeOfParallelism = _threads }, body);

    /// <summary>Some consecutive blocks of one head with the queries that selected them.</summary>
    private sealed class Chunk
    {
        private readonly int[] _firstPart;
        private readonly int[] _parts;

        public Chunk(BlockSelection selection, int batch, int head, int block, bool everything)
        {
            (Batch, Head, FirstKey) = (batch, head, selection.Block(block).Start);
            var rows = new List<int>();
            List<long> queryOffsets = [0], keyOffsets = [0];
            var first = selection.Offset(batch, head, 0, 0);
            for (EndBlock = block; EndBlock < selection.Blocks && (rows.Count == 0 || rows.Count + selection.Queries <= MostRows); EndBlock++)
            {
                var (start, end) = selection.ValidQueries(EndBlock);
                for (var query = (int)start; query < end; query++)
                {
                    if (everything || selection.Chosen[first + ((long)EndBlock * selection.Queries) + query])
                    {
                        rows.Add(query);
                    }
                }

                queryOffsets.Add(rows.Count);
                keyOffsets.Add(selection.Block(EndBlock).End - FirstKey);
            }

            (Rows, QueryOffsets, KeyOffsets) = ([.. rows], [.. queryOffsets], [.. keyOffsets]);
            _firstPart = new int[selection.Queries + 1];
            foreach (var query in Rows)
            {
                _firstPart[query + 1]++;
            }

            for (var query = 0; query < selection.Queries; query++)
            {
                _firstPart[query + 1] += _firstPart[query];
            }

            _parts = new int[Rows.Length];
            var next = _firstPart.AsSpan(0, selection.Queries).ToArray();
            for (var row = 0; row < Rows.Length; row++)
            {
                _parts[next[Rows[row]]++] = row;
            }
        }

        public int Batch { get; }

        public int Head { get; }

        /// <summary>The first key of the first block.</summary>
        public long FirstKey { get; }

        /// <summary>The block after the last.</summary>
        public int EndBlock { get; }

        /// <summary>The query of each gathered row, block after block.</summary>
        public int[] Rows { get; }

        public long[] QueryOffsets { get; }

        public long[] KeyOffsets { get; }

        /// <summary>The gathered rows of a query.</summary>
        public ReadOnlySpan<int> PartsOf(int query) => _parts.AsSpan(_firstPart[query].._firstPart[query + 1]);
    }

    /// <summary>Memory outside the managed heap for the length of a call.</summary>
    private sealed class Scratch(long floats) : IDisposable
    {
        public float* Data { get; } = (float*)NativeMemory.AlignedAlloc((nuint)Math.Max(1, floats) * sizeof(float), 64);

        public void Dispose() => NativeMemory.AlignedFree(Data);
    }
}
