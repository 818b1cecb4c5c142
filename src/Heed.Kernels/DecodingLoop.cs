using System.Numerics.Tensors;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>One call of <see cref="DecodingAttention"/>: an item is a chunk of the keys of one batch item and key/value head, for all the query rows that read them.</summary>
internal abstract unsafe class DecodingLoop : ParallelLoop
{
    private const int ShortestChunk = 256;
    private const int LongestChunk = 4096;

    // Enough items that a few threads end together, few enough that merging costs nothing.
    private const long WantedItems = 64;

    private CheckedProblem? _problem;

    /// <summary>The problem.</summary>
    protected CheckedProblem Problem => _problem!;

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
    public static void Compute(CheckedProblem problem)
    {
        if (Vector512.IsHardwareAccelerated)
        {
            DecodingKernel<Vector512<float>, Vector512Operations>.OfThread.Start(problem);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            DecodingKernel<Vector256<float>, Vector256Operations>.OfThread.Start(problem);
        }
        else
        {
            DecodingKernel<Vector128<float>, Vector128Operations>.OfThread.Start(problem);
        }
    }

    private void Start(CheckedProblem problem)
    {
        _problem = problem;
        try
        {
            Rows = checked(problem.Group * problem.Queries);
            var groups = (long)problem.Batch * problem.KeyHeads;
            var balanced = (problem.Keys * groups / WantedItems / ShortestChunk * ShortestChunk) + ShortestChunk;
            Chunk = (int)Math.Min(balanced, LongestChunk);
            Chunks = (problem.Keys + Chunk - 1) / Chunk;
            OutputStride = (int)Workspace.Lines(problem.ValueWidth);
            var items = checked((int)(groups * Chunks));
            var rows = (long)items * Rows;
            PartialOutput = Workspace.OfCall.Take((rows * OutputStride) + (2 * rows));
            PartialMaximum = PartialOutput + (rows * OutputStride);
            PartialSum = PartialMaximum + rows;
            Run(items, problem.Arguments.Threads);
            Merge();
        }
        finally
        {
            // The thread's loop outlives the call; what the problem refers to need not.
            _problem = null;
        }
    }

    private void Merge()
    {
        for (var batch = 0; batch < Problem.Batch; batch++)
        {
            for (var head = 0; head < Problem.Heads; head++)
            {
                for (var query = 0; query < Problem.Queries; query++)
                {
                    MergeRow(batch, head, query);
                }
            }
        }
    }

    private void MergeRow(int batch, int head, int query)
    {
        ref readonly var a = ref Problem.Arguments;
        var firstItem = (((long)batch * Problem.KeyHeads) + Problem.KeyHeadOf(head)) * Chunks;
        var row = (head % Problem.Group * Problem.Queries) + query;
        var logSumExp = a.LogSumExp == null ? null : a.LogSumExp + ((((long)batch * Problem.Heads) + head) * Problem.Queries) + query;
        var output = new Span<float>(a.Output.Row(batch, head, query), Problem.ValueWidth);
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
            if (logSumExp != null)
            {
                *logSumExp = float.NegativeInfinity;
            }

            return;
        }

        var sink = a.Sinks == null ? float.NegativeInfinity : a.Sinks[head];
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
            TensorPrimitives.MultiplyAdd(partial, factor, output, output);
        }

        TensorPrimitives.Divide(output, sum, output);
        if (logSumExp != null)
        {
            *logSumExp = finite + MathF.Log(sum);
        }
    }
}
