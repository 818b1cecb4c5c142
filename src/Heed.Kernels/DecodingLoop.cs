using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>One call of <see cref="DecodingAttention"/>: an item is a chunk of the keys of one batch item and key/value head, for all the query rows that read them.</summary>
internal abstract unsafe class DecodingLoop : ParallelLoop
{
    private const int ShortestChunk = 256;
    private const int LongestChunk = 4096;

    // Enough items that a few threads end together, few enough that merging costs nothing.
    private const long WantedItems = 64;

    private AttentionArguments _arguments;

    /// <summary>The problem.</summary>
    protected ref readonly AttentionArguments Arguments => ref _arguments;

    /// <summary>Query heads per key/value head.</summary>
    protected int Group { get; private set; }

    /// <summary>Query rows that read the same keys: those of all heads of the group.</summary>
    protected int Rows { get; private set; }

    /// <summary>Keys of a chunk.</summary>
    protected int Chunk { get; private set; }

    /// <summary>Chunks of every batch item and key/value head.</summary>
    protected int Chunks { get; private set; }

    /// <summary>Floats from one row of partial output to the next.</summary>
    protected int OutputStride { get; private set; }

    /// <summary>Unscaled sums of values, <c>[items, rows, OutputStride]</c>.</summary>
    protected float* PartialOutput { get; private set; }

    /// <summary>Largest scores, <c>[items, rows]</c>.</summary>
    protected float* PartialMaximum { get; private set; }

    /// <summary>Sums of the exponentials, <c>[items, rows]</c>.</summary>
    protected float* PartialSum { get; private set; }

    /// <summary>Computes a call that <see cref="DecodingAttention"/> takes.</summary>
    public static void Compute(in AttentionArguments arguments)
    {
        if (Vector512.IsHardwareAccelerated)
        {
            DecodingKernel<Vector512<float>, Vector512Operations>.OfThread.Start(arguments);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            DecodingKernel<Vector256<float>, Vector256Operations>.OfThread.Start(arguments);
        }
        else
        {
            DecodingKernel<Vector128<float>, Vector128Operations>.OfThread.Start(arguments);
        }
    }

    private void Start(in AttentionArguments arguments)
    {
        _arguments = arguments;
        try
        {
            ref readonly var a = ref _arguments;
            Group = checked((int)(a.Query.Heads / a.Key.Heads));
            Rows = checked((int)(Group * a.Query.Length));
            var groups = a.Key.Batch * a.Key.Heads;
            var balanced = (a.Key.Length * groups / WantedItems / ShortestChunk * ShortestChunk) + ShortestChunk;
            Chunk = (int)Math.Min(balanced, LongestChunk);
            Chunks = checked((int)((a.Key.Length + Chunk - 1) / Chunk));
            OutputStride = checked((int)Workspace.Lines(a.Value.Width));
            var items = checked((int)(groups * Chunks));
            var rows = (long)items * Rows;
            PartialOutput = Workspace.OfCall.Take((rows * OutputStride) + (2 * rows));
            PartialMaximum = PartialOutput + (rows * OutputStride);
            PartialSum = PartialMaximum + rows;
            Run(items, a.Threads);
            Merge();
        }
        finally
        {
            // A block mask or the like must not live on in the thread's loop.
            _arguments = default;
        }
    }

    /// <summary>Where query i of a batch item stands and the keys it sees, first to end.</summary>
    protected (long Position, long First, long End) KeysOf(long batch, long query)
    {
        ref readonly var a = ref Arguments;
        var queries = a.QueryLengths == null ? a.Query.Length : a.QueryLengths[batch];
        var keys = a.KeyLengths == null ? a.Key.Length : a.KeyLengths[batch];
        var alignment = a.Causal == Causality.None ? a.Alignment : a.Causal;
        var position = alignment == Causality.AlignedToStart ? query : query + keys - queries;
        if (query >= queries)
        {
            return (position, 0, 0);
        }

        var end = a.Causal == Causality.None ? keys : Math.Min(keys, position + 1);
        end = a.WindowAfter < 0 ? end : Math.Min(end, SaturatingAdd(position, a.WindowAfter) + 1);
        var first = a.WindowBefore < 0 ? 0 : Math.Max(0, position - a.WindowBefore);
        return (position, first, Math.Max(first, end));
    }

    private static long SaturatingAdd(long position, long distance) => position > long.MaxValue - 1 - distance ? long.MaxValue - 1 : position + distance;

    private void Merge()
    {
        ref readonly var a = ref Arguments;
        for (long b = 0; b < a.Query.Batch; b++)
        {
            for (long h = 0; h < a.Query.Heads; h++)
            {
                for (long i = 0; i < a.Query.Length; i++)
                {
                    MergeRow(b, h, i);
                }
            }
        }
    }

    private void MergeRow(long b, long h, long i)
    {
        ref readonly var a = ref Arguments;
        var firstItem = ((b * a.Key.Heads) + (h / Group)) * Chunks;
        var row = ((h % Group) * a.Query.Length) + i;
        var output = new Span<float>(a.Output.Row(b, h, i), checked((int)a.Value.Width));
        output.Clear();

        var maximum = float.NegativeInfinity;
        var any = 0f;
        for (var c = 0; c < Chunks; c++)
        {
            var at = ((firstItem + c) * Rows) + row;
            any += PartialSum[at];
            maximum = PartialMaximum[at] > maximum ? PartialMaximum[at] : maximum;
        }

        // No pair: no sum. (NaN is not zero: it goes on.)
        if (any == 0)
        {
            if (a.LogSumExp != null)
            {
                a.LogSumExp[(((b * a.Query.Heads) + h) * a.Query.Length) + i] = float.NegativeInfinity;
            }

            return;
        }

        var sink = a.Sinks == null ? float.NegativeInfinity : a.Sinks[h];
        maximum = Math.Max(maximum, sink);
        var finite = float.IsNegativeInfinity(maximum) ? 0 : maximum;
        var sum = MathF.Exp(sink - finite);
        for (var c = 0; c < Chunks; c++)
        {
            var at = ((firstItem + c) * Rows) + row;
            if (PartialSum[at] == 0)
            {
                continue;
            }

            var factor = MathF.Exp(PartialMaximum[at] - finite);
            sum += factor * PartialSum[at];
            var partial = new ReadOnlySpan<float>(PartialOutput + (at * OutputStride), output.Length);
            System.Numerics.Tensors.TensorPrimitives.MultiplyAdd(partial, factor, output, output);
        }

        System.Numerics.Tensors.TensorPrimitives.Divide(output, sum, output);
        if (a.LogSumExp != null)
        {
            a.LogSumExp[(((b * a.Query.Heads) + h) * a.Query.Length) + i] = finite + MathF.Log(sum);
        }
    }
}
