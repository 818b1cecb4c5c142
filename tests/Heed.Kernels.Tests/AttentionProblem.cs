using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using CsCheck;

namespace Heed.Kernels.Tests;

/// <summary>The dimensions that a bias repeats over.</summary>
[Flags]
internal enum Repeats
{
    None = 0,
    Batch = 1,
    Heads = 2,
    Queries = 4,
    Keys = 8,
}

/// <summary>A problem to draw: its shape, options and seed. Printed when a property fails, so that the problem can be built again.</summary>
internal sealed record ProblemSpec
{
    public int Seed { get; init; }

    public int Batch { get; init; } = 1;

    public int KeyHeads { get; init; } = 1;

    /// <summary>Query heads per key/value head.</summary>
    public int Group { get; init; } = 1;

    public int Queries { get; init; } = 5;

    public int Keys { get; init; } = 7;

    public int Width { get; init; } = 4;

    public int ValueWidth { get; init; } = 4;

    public Causality Causal { get; init; }

    public Causality Alignment { get; init; } = Causality.AlignedToEnd;

    public long WindowBefore { get; init; } = -1;

    public long WindowAfter { get; init; } = -1;

    public float Softcap { get; init; }

    public Normalizer Normalizer { get; init; }

    public bool Sinks { get; init; }

    /// <summary>Random lengths for every batch item, zero among them.</summary>
    public bool Lengths { get; init; }

    /// <summary>Number of packed sequences; 0: not packed. Needs a batch of 1 and no lengths.</summary>
    public int Sequences { get; init; }

    /// <summary>Random positions for the queries, several of them alike, some past the last key.</summary>
    public bool Positions { get; init; }

    public Repeats? Bias { get; init; }

    /// <summary>Whether a quarter of the biases (dense and per key) is minus infinity.</summary>
    public bool BiasMasks { get; init; }

    /// <summary>The per-key bias; null: none.</summary>
    public Repeats? KeyBias { get; init; }

    public bool Alibi { get; init; }

    /// <summary>Rank of the low-rank bias; 0: none.</summary>
    public int Rank { get; init; }

    /// <summary>Whether the low-rank factors repeat over the batch and the heads.</summary>
    public bool RankRepeats { get; init; }

    /// <summary>Queries per block of the block mask; 0: no block mask.</summary>
    public int QueryBlock { get; init; }

    public int KeyBlock { get; init; } = 4;

    public double Density { get; init; } = 0.5;

    /// <summary>Whether half of the listed blocks are partial.</summary>
    public bool Partial { get; init; }

    public bool Bits { get; init; }

    public bool BlockBiases { get; init; }

    /// <summary>Whether every batch item and head has lists of its own.</summary>
    public bool OwnLists { get; init; }

    /// <summary>Whether key runs stand in place of the block mask: rectangles of random rows and keys.</summary>
    public bool Runs { get; init; }

    public ElementType KeyType { get; init; }

    public ElementType ValueType { get; init; }

    /// <summary>Whether rows, heads and batch items lie apart, in another order or backwards.</summary>
    public bool Strided { get; init; }

    /// <summary>Whether <see cref="WaveScore"/> changes the scores.</summary>
    public bool Modified { get; init; }

    /// <summary>Whether <see cref="StripeMask"/> is asked.</summary>
    public bool Predicated { get; init; }

    /// <summary>Standard deviation of queries, keys and values.</summary>
    public float Magnitude { get; init; } = 1;

    /// <summary>One of a few values; a value that stands twice is drawn twice as often.</summary>
    private static Gen<T> OneOf<T>(params T[] values) => Gen.Int[0, values.Length - 1].Select(i => values[i]);

    /// <summary>Random problems with every option in any combination that <see cref="AttentionArguments"/> allows.</summary>
    /// <param name="queries">Largest number of queries.</param>
    /// <param name="keys">Largest number of keys.</param>
    /// <param name="width">Largest head dimension.</param>
    /// <param name="halves">Whether keys and values may be float16 and bfloat16.</param>
    public static Gen<ProblemSpec> Any(int queries = 40, int keys = 70, int width = 20, bool halves = true)
    {
        var shape =
            from seed in Gen.Int[0, int.MaxValue - 1]
            from batch in Gen.Int[1, 3]
            from keyHeads in Gen.Int[1, 3]
            from @group in Gen.Int[1, 3]
            from queryCount in Gen.Int[1, queries]
            from keyCount in Gen.Int[1, keys]
            from keyWidth in Gen.Int[1, width]
            from valueWidth in Gen.Int[1, width]
            select new ProblemSpec
            {
                Seed = seed, Batch = batch, KeyHeads = keyHeads, Group = @group, Queries = queryCount, Keys = keyCount, Width = keyWidth, ValueWidth = valueWidth,
            };
        var positions =
            from causal in Gen.Enum<Causality>()
            from toStart in Gen.Bool
            from windowed in Gen.Int[0, 3]
            from before in Gen.Int[0, keys]
            from after in Gen.Int[0, keys]
            from layout in Gen.Int[0, 4]
            from sequences in Gen.Int[1, 4]
            from strided in Gen.Bool
            select new ProblemSpec
            {
                Causal = causal,
                Alignment = toStart ? Causality.AlignedToStart : Causality.AlignedToEnd,
                WindowBefore = (windowed & 1) != 0 ? before : -1,
                WindowAfter = (windowed & 2) != 0 ? after : -1,
                Lengths = layout == 3,
                Sequences = layout == 4 ? sequences : 0,
                Strided = strided,
            };
        var scores =
            from normalizer in OneOf(Normalizer.Softmax, Normalizer.Softmax, Normalizer.Softmax, Normalizer.ReluOverPosition, Normalizer.Sigmoid)
            from softcap in OneOf(0f, 0f, 0f, 1.5f, 20f)
            from sinks in Gen.Bool
            from bias in Gen.Int[-16, 15]
            from keyBias in Gen.Int[-8, 3]
            from masks in Gen.Bool
            from alibi in OneOf(false, false, true)
            from rank in Gen.Int[-6, 5]
            select new ProblemSpec
            {
                Normalizer = normalizer,
                Softcap = softcap,
                Sinks = sinks && normalizer == Normalizer.Softmax,
                Bias = bias < 0 ? null : (Repeats)bias,
                KeyBias = keyBias < 0 ? null : (Repeats)keyBias,
                BiasMasks = masks,
                Alibi = alibi,
                Rank = Math.Max(rank, 0),
                RankRepeats = rank % 2 != 0,
            };
        var blocks =
            from queryBlock in Gen.Int[-12, 12]
            from keyBlock in Gen.Int[1, 24]
            from density in Gen.Double[0, 1]
            from flags in Gen.Int[0, 31]
            from modified in OneOf(false, false, false, true)
            from predicated in OneOf(false, false, false, true)
            from types in Gen.Int[0, 8]
            from magnitude in OneOf(1f, 1f, 1f, 3f)
            select new ProblemSpec
            {
                QueryBlock = Math.Max(queryBlock, 0), KeyBlock = keyBlock, Density = density,
                Partial = (flags & 1) != 0, Bits = (flags & 2) != 0, BlockBiases = (flags & 4) != 0, OwnLists = (flags & 8) != 0,
                Runs = (flags & 16) != 0 && queryBlock > 0, Modified = modified, Predicated = predicated && ((flags & 16) == 0 || queryBlock <= 0), Magnitude = magnitude,
                KeyType = halves ? (ElementType)(types % 3) : ElementType.Float32,
                ValueType = halves ? (ElementType)(types / 3) : ElementType.Float32,
            };
        return Gen.Select(shape, positions, scores, blocks, (s, p, c, k) => s with
        {
            Batch = p.Sequences > 0 ? 1 : s.Batch,
            Causal = p.Causal, Alignment = p.Alignment, WindowBefore = p.WindowBefore, WindowAfter = p.WindowAfter,
            Lengths = p.Lengths, Sequences = p.Sequences, Strided = p.Strided,
            Normalizer = c.Normalizer, Softcap = c.Softcap, Sinks = c.Sinks, Bias = c.Bias, KeyBias = c.KeyBias, BiasMasks = c.BiasMasks,
            Alibi = c.Alibi, Rank = c.Rank, RankRepeats = c.RankRepeats,
            QueryBlock = k.QueryBlock, KeyBlock = k.KeyBlock, Density = k.Density, Partial = k.Partial, Bits = k.Bits, BlockBiases = k.BlockBiases,
            OwnLists = k.OwnLists, Runs = k.Runs, Modified = k.Modified, Predicated = k.Predicated, Magnitude = k.Magnitude, KeyType = k.KeyType, ValueType = k.ValueType,
        });
    }
}

/// <summary>
/// A problem in native memory that it owns. Everything that a kernel has no business reading (between rows, before and after every tensor) is NaN, everything that
/// it must write starts as NaN, and <see cref="AssertNothingElseWritten"/> finds stray writes.
/// </summary>
internal sealed unsafe class AttentionProblem : IDisposable
{
    private const int Guard = 64;
    private readonly List<nint> _owned = [];
    private readonly List<(TensorView View, nint Start, long Count)> _written = [];
    private readonly Random _random;

    public AttentionProblem(ProblemSpec spec)
    {
        Spec = spec;
        _random = new Random(spec.Seed);
        var heads = spec.KeyHeads * spec.Group;
        var query = Input(spec.Batch, heads, spec.Queries, spec.Width, ElementType.Float32, spec.Magnitude);
        var key = Input(spec.Batch, spec.KeyHeads, spec.Keys, spec.Width, spec.KeyType, spec.Magnitude);
        var value = Input(spec.Batch, spec.KeyHeads, spec.Keys, spec.ValueWidth, spec.ValueType, spec.Magnitude);
        Arguments = new AttentionArguments(query, key, value, Output(spec.Batch, heads, spec.Queries, spec.ValueWidth))
        {
            Causal = spec.Causal,
            Alignment = spec.Alignment,
            WindowBefore = spec.WindowBefore,
            WindowAfter = spec.WindowAfter,
            Softcap = spec.Softcap,
            Normalizer = spec.Normalizer,
            LogSumExp = spec.Normalizer == Normalizer.Softmax ? Floats((long)spec.Batch * heads * spec.Queries) : null,
            Sinks = spec.Sinks ? Normals(heads, 2) : null,
            AlibiSlopes = spec.Alibi ? Normals(heads, 0.1f) : null,
            Threads = 1,
        };
        if (spec.Lengths)
        {
            Arguments.QueryLengths = Longs(spec.Batch, _ => _random.Next(spec.Queries + 1));
            Arguments.KeyLengths = Longs(spec.Batch, _ => _random.Next(spec.Keys + 1));
        }

        if (spec.Sequences > 0)
        {
            Arguments.Sequences = spec.Sequences;
            Arguments.QueryOffsets = Offsets(spec.Queries);
            Arguments.KeyOffsets = Offsets(spec.Keys);
        }

        if (spec.Positions)
        {
            Arguments.QueryPositions = QueryPositions();
        }

        if (spec.Bias is { } repeats)
        {
            Arguments.Bias = Bias(repeats, heads, spec.Queries);
        }

        if (spec.KeyBias is { } keyRepeats)
        {
            Arguments.KeyBias = Bias(keyRepeats | Repeats.Queries, heads, 1);
        }

        if (spec.Rank > 0)
        {
            Arguments.LowRankQuery = Repeated(Input(spec.Batch, heads, spec.Queries, spec.Rank, ElementType.Float32, 1));
            Arguments.LowRankKey = Repeated(Input(spec.Batch, heads, spec.Keys, spec.Rank, ElementType.Float32, 1));
        }

        if (spec.QueryBlock > 0 && spec.Runs)
        {
            Arguments.KeyRuns = Runs(heads);
        }
        else if (spec.QueryBlock > 0)
        {
            Arguments.BlockMask = Blocks(heads);
        }
    }

    public ProblemSpec Spec { get; }

    /// <summary>The problem: change what a test needs changed.</summary>
    public AttentionArguments Arguments;

    /// <summary>The gradients, once <see cref="WantGradients"/> was called.</summary>
    public AttentionGradients Gradients;

    private long Rows => (long)Spec.Batch * Spec.KeyHeads * Spec.Group * Spec.Queries;

    /// <summary>The log-sum-exp that was computed.</summary>
    public ReadOnlySpan<float> LogSumExp => new(Arguments.LogSumExp, (int)Rows);

    /// <summary>Asks for every row statistic, with a random key set.</summary>
    public void WantStatistics(int topCount = 3)
    {
        Arguments.Statistics = new RowStatistics
        {
            Entropy = Floats(Rows),
            Maximum = Floats(Rows),
            MaximumKey = (int*)Floats(Rows),
            MeanDistance = Floats(Rows),
            SetMass = Floats(Rows),
            KeySet = (byte*)Longs(Spec.Batch * Spec.Keys, _ => 0),
            KeySetBatchStride = Spec.Keys,
            TopCount = topCount,
            TopWeights = Floats(Rows * topCount),
            TopKeys = (int*)Floats(Rows * topCount),
        };
        for (var i = 0; i < Spec.Batch * Spec.Keys; i++)
        {
            Arguments.Statistics.KeySet[i] = (byte)_random.Next(2);
        }
    }

    /// <summary>Fails unless the statistics that <see cref="WantStatistics"/> asked for agree with the reference.</summary>
    public void AssertStatistics(ReferenceStatistics expected)
    {
        var s = Arguments.Statistics;
        var rows = (int)Rows;
        expected.Entropy.AssertClose(new ReadOnlySpan<float>(s.Entropy, rows), "entropy");
        expected.Maximum.AssertClose(new ReadOnlySpan<float>(s.Maximum, rows), "maximum");
        expected.AssertMaximumKeys(new(s.MaximumKey, rows));
        expected.MeanDistance.AssertClose(new ReadOnlySpan<float>(s.MeanDistance, rows), "mean distance");
        expected.SetMass.AssertClose(new ReadOnlySpan<float>(s.SetMass, rows), "mass on the set");
        expected.AssertTop(new(s.TopWeights, rows * s.TopCount), new(s.TopKeys, rows * s.TopCount), s.TopCount);
    }

    /// <summary>Asks for every gradient that the problem has and draws the incoming ones.</summary>
    public void WantGradients()
    {
        var a = Arguments;
        var heads = a.Query.Heads;
        Gradients = new AttentionGradients
        {
            Output = Input(a.Query.Batch, heads, a.Query.Length, a.Value.Width, ElementType.Float32, 1),
            LogSumExp = a.Normalizer == Normalizer.Softmax && _random.Next(2) == 0 ? Normals(Rows, 1) : null,
            Query = Output(a.Query.Batch, heads, a.Query.Length, a.Query.Width),
            Key = Output(a.Key.Batch, a.Key.Heads, a.Key.Length, a.Key.Width),
            Value = Output(a.Key.Batch, a.Key.Heads, a.Key.Length, a.Value.Width),
            Bias = a.Bias.IsGiven ? a.Bias with { Data = (nint)Floats(Extent(a.Bias, a.Query.Length)) } : default,
            KeyBias = a.KeyBias.IsGiven ? a.KeyBias with { Data = (nint)Floats(Extent(a.KeyBias, 1)) } : default,
            Sinks = a.Sinks == null ? null : Floats(heads),
            AlibiSlopes = a.AlibiSlopes == null ? null : Floats(heads),
            LowRankQuery = a.LowRankQuery.IsGiven ? Output(a.Query.Batch, heads, a.Query.Length, a.LowRankQuery.Width) : default,
            LowRankKey = a.LowRankKey.IsGiven ? Output(a.Query.Batch, heads, a.Key.Length, a.LowRankKey.Width) : default,
        };
    }

    /// <summary>Fails unless the gradients that <see cref="WantGradients"/> asked for agree with the reference.</summary>
    public void AssertGradients(ReferenceGradients expected)
    {
        var g = Gradients;
        expected.Query.AssertClose(g.Query, "query gradient");
        expected.Key.AssertClose(g.Key, "key gradient");
        expected.Value.AssertClose(g.Value, "value gradient");
        if (g.Bias.IsGiven)
        {
            expected.FoldBias(g.Bias).AssertClose(new ReadOnlySpan<float>((float*)g.Bias.Data, (int)Extent(g.Bias, Spec.Queries)), "bias gradient");
        }

        if (g.KeyBias.IsGiven)
        {
            expected.FoldKeyBias(g.KeyBias).AssertClose(new ReadOnlySpan<float>((float*)g.KeyBias.Data, (int)Extent(g.KeyBias, 1)), "key bias gradient");
        }

        if (g.Sinks != null)
        {
            expected.Sinks.AssertClose(new ReadOnlySpan<float>(g.Sinks, (int)Arguments.Query.Heads), "sink gradient");
        }

        if (g.AlibiSlopes != null)
        {
            expected.AlibiSlopes.AssertClose(new ReadOnlySpan<float>(g.AlibiSlopes, (int)Arguments.Query.Heads), "slope gradient");
        }

        if (g.LowRankQuery.IsGiven)
        {
            expected.LowRankQuery.AssertClose(g.LowRankQuery, "low-rank query gradient");
            expected.LowRankKey.AssertClose(g.LowRankKey, "low-rank key gradient");
        }
    }

    /// <summary>The incoming gradients in float64, for <see cref="ReferenceAttention.Differentiate(double[], double[])"/>.</summary>
    public (double[] Output, double[]? LogSumExp) IncomingGradients() =>
        (ReferenceInputs.Read(Gradients.Output), Gradients.LogSumExp == null ? null : [.. new ReadOnlySpan<float>(Gradients.LogSumExp, (int)Rows).ToArray()]);

    /// <summary>The reference's forward pass, with the modifier and the predicate of the spec.</summary>
    public ReferenceAttention Reference() => Call(new ReferenceCall());

    /// <summary>The reference's gradients of the incoming gradients.</summary>
    public ReferenceGradients ReferenceGradients(ReferenceAttention forward)
    {
        var (output, logSumExp) = IncomingGradients();
        return Spec.Modified ? forward.Differentiate(output, logSumExp, default(WaveScore)) : forward.Differentiate(output, logSumExp);
    }

    /// <summary>Calls <see cref="FusedAttention.Forward(in AttentionArguments)"/> with the modifier and the predicate of the spec.</summary>
    public void Forward() => Call(new ForwardCall());

    /// <summary>Calls <see cref="FusedAttention.Backward(in AttentionArguments, in AttentionGradients)"/> with the modifier and the predicate of the spec.</summary>
    public void Backward() => Call(new BackwardCall());

    /// <summary>Mass per key by <see cref="FusedAttention.MassPerKey(in AttentionArguments, float*, float*)"/>, <c>[B, H, Nk]</c>.</summary>
    public float[] MassPerKey() => Call(new MassCall());

    /// <summary>Calls with the modifier and the predicate of the spec as type arguments.</summary>
    public TResult Call<TResult>(IProblemCall<TResult> call) => (Spec.Modified, Spec.Predicated) switch
    {
        (false, false) => call.Run(this, default(UnmodifiedScore), default(AllPairs)),
        (true, false) => call.Run(this, default(WaveScore), default(AllPairs)),
        (false, true) => call.Run(this, default(UnmodifiedScore), default(StripeMask)),
        (true, true) => call.Run(this, default(WaveScore), default(StripeMask)),
    };

    /// <summary>Fails if anything between the rows or around the outputs was overwritten.</summary>
    public void AssertNothingElseWritten()
    {
        foreach (var (view, start, count) in _written)
        {
            var inside = new bool[count];
            for (long b = 0; b < view.Batch; b++)
            {
                for (long h = 0; h < view.Heads; h++)
                {
                    for (long i = 0; i < view.Length; i++)
                    {
                        inside.AsSpan((int)(view.Row(b, h, i) - (float*)start), (int)view.Width).Fill(true);
                    }
                }
            }

            for (long at = 0; at < count; at++)
            {
                Xunit.Assert.True(inside[at] || float.IsNaN(((float*)start)[at]), $"Element {at} of a buffer lies outside the output and was overwritten.");
            }
        }
    }

    /// <summary>Memory for floats that lives as long as the problem: NaN inside and around.</summary>
    public float* Floats(long count)
    {
        var memory = (float*)NativeMemory.AlignedAlloc((nuint)((count + (2 * Guard)) * sizeof(float)), 64);
        _owned.Add((nint)memory);
        new Span<float>(memory, checked((int)(count + (2 * Guard)))).Fill(float.NaN);
        return memory + Guard;
    }

    public void Dispose()
    {
        foreach (var memory in _owned)
        {
            NativeMemory.AlignedFree((void*)memory);
        }

        _owned.Clear();
    }

    private static long Extent(BiasView view, long queries, long batch, long heads, long keys) =>
        ((batch - 1) * view.BatchStride) + ((heads - 1) * view.HeadStride) + ((queries - 1) * view.QueryStride) + ((keys - 1) * view.KeyStride) + 1;

    private long Extent(BiasView view, long queries) => Extent(view, queries, Spec.Batch, (long)Spec.KeyHeads * Spec.Group, Spec.Keys);

    private float Normal() => (float)(Math.Sqrt(-2 * Math.Log(1 - _random.NextDouble())) * Math.Cos(2 * Math.PI * _random.NextDouble()));

    private float* Normals(long count, float magnitude)
    {
        var numbers = Floats(count);
        for (long i = 0; i < count; i++)
        {
            numbers[i] = magnitude * Normal();
        }

        return numbers;
    }

    private long* Longs(long count, Func<long, long> value)
    {
        var numbers = (long*)Floats(2 * count);
        for (long i = 0; i < count; i++)
        {
            numbers[i] = value(i);
        }

        return numbers;
    }

    private long* Offsets(int rows)
    {
        // Now and then the sequences end before the tensor does: the rows after them belong to none.
        var end = _random.Next(4) == 0 ? _random.Next(rows + 1) : rows;
        var cuts = Enumerable.Range(0, Spec.Sequences - 1).Select(_ => (long)_random.Next(end + 1)).Order().ToArray();
        return Longs(Spec.Sequences + 1, s => s == 0 ? 0 : s == Spec.Sequences ? end : cuts[s - 1]);
    }

    /// <summary>Ascending within every sequence; rows of no sequence hold what no position can be.</summary>
    private long* QueryPositions()
    {
        var positions = Longs((long)Spec.Batch * Spec.Queries, _ => -1);
        var packed = Spec.Sequences > 0;
        for (var sequence = 0; sequence < (packed ? Spec.Sequences : Spec.Batch); sequence++)
        {
            var start = packed ? Arguments.QueryOffsets[sequence] : (long)sequence * Spec.Queries;
            var count = packed ? Arguments.QueryOffsets[sequence + 1] - start : Spec.Lengths ? Arguments.QueryLengths[sequence] : Spec.Queries;
            var ascending = Enumerable.Range(0, (int)count).Select(_ => (long)_random.Next(Spec.Keys + 1)).Order().ToArray();
            ascending.CopyTo(new Span<long>(positions + start, (int)count));
        }

        return positions;
    }

    private (TensorView View, nint Start, long Count) Layout(long batch, long heads, long length, long width, ElementType type)
    {
        var size = type == ElementType.Float32 ? 4 : 2;
        if (!Spec.Strided)
        {
            var count = batch * heads * length * width;
            var data = (nint)Floats((count + 1) * size / 4);
            return (new TensorView(data, batch, heads, length, width, heads * length * width, length * width, width, type), data, count);
        }

        // Rows apart; heads inside the rows ([B, N, H, D] in memory) or outside; batch items and heads forwards or backwards.
        var pad = _random.Next(1, 4);
        var inside = _random.Next(2) == 0;
        var (rowStride, headStride) = inside ? (heads * (width + pad), width + pad) : (width + pad, (length * (width + pad)) + pad);
        var batchStride = heads * length * (width + pad) + (heads * pad);
        var total = batch * batchStride;
        var start = (nint)Floats((total + 1) * size / 4);
        var first = start;
        if (_random.Next(2) == 0)
        {
            first += (nint)((batch - 1) * batchStride * size);
            batchStride = -batchStride;
        }

        if (_random.Next(2) == 0)
        {
            first += (nint)((heads - 1) * headStride * size);
            headStride = -headStride;
        }

        return (new TensorView(first, batch, heads, length, width, batchStride, headStride, rowStride, type), start, total);
    }

    private TensorView Output(long batch, long heads, long length, long width)
    {
        var (view, start, count) = Layout(batch, heads, length, width, ElementType.Float32);
        _written.Add((view, start - (Guard * sizeof(float)), count + (2 * Guard)));
        return view;
    }

    private TensorView Input(long batch, long heads, long length, long width, ElementType type, float magnitude)
    {
        var (view, _, _) = Layout(batch, heads, length, width, type);
        for (long b = 0; b < batch; b++)
        {
            for (long h = 0; h < heads; h++)
            {
                for (long i = 0; i < length; i++)
                {
                    for (long d = 0; d < width; d++)
                    {
                        var offset = (b * view.BatchStride) + (h * view.HeadStride) + (i * view.RowStride) + d;
                        var number = magnitude * Normal();
                        switch (type)
                        {
                            case ElementType.Float32:
                                ((float*)view.Data)[offset] = number;
                                break;
                            case ElementType.Float16:
                                ((Half*)view.Data)[offset] = (Half)number;
                                break;
                            default:
                                ((ushort*)view.Data)[offset] = (ushort)(BitConverter.SingleToInt32Bits(number) >> 16);
                                break;
                        }
                    }
                }
            }
        }

        return view;
    }

    private TensorView Repeated(TensorView view) => Spec.RankRepeats ? view with { BatchStride = 0, HeadStride = 0 } : view;

    private BiasView Bias(Repeats repeats, int heads, int queries)
    {
        var keys = repeats.HasFlag(Repeats.Keys) ? 1L : Spec.Keys;
        var rows = repeats.HasFlag(Repeats.Queries) ? 1L : queries;
        var headCount = repeats.HasFlag(Repeats.Heads) ? 1L : heads;
        var batches = repeats.HasFlag(Repeats.Batch) ? 1L : Spec.Batch;
        var numbers = Normals(batches * headCount * rows * keys, 1);
        for (long i = 0; Spec.BiasMasks && i < batches * headCount * rows * keys; i++)
        {
            numbers[i] = _random.Next(4) == 0 ? float.NegativeInfinity : numbers[i];
        }

        return new BiasView(
            (nint)numbers,
            repeats.HasFlag(Repeats.Batch) ? 0 : headCount * rows * keys,
            repeats.HasFlag(Repeats.Heads) ? 0 : rows * keys,
            repeats.HasFlag(Repeats.Queries) ? 0 : keys,
            repeats.HasFlag(Repeats.Keys) ? 0 : 1);
    }

    private BlockMask Blocks(int heads)
    {
        var (batches, lists) = Spec.OwnLists ? (Spec.Batch, heads) : (1, 1);
        var queryBlocks = (Spec.Queries + Spec.QueryBlock - 1) / Spec.QueryBlock;
        var keyBlocks = (Spec.Keys + Spec.KeyBlock - 1) / Spec.KeyBlock;
        List<int> offsets = [0];
        List<int> listed = [];
        for (var row = 0; row < batches * lists * queryBlocks; row++)
        {
            listed.AddRange(Enumerable.Range(0, keyBlocks).Where(_ => _random.NextDouble() < Spec.Density));
            offsets.Add(listed.Count);
        }

        bool[]? partial = Spec.Partial ? [.. listed.Select(_ => _random.Next(2) == 0)] : null;
        var words = Spec.QueryBlock * ((Spec.KeyBlock + 63) / 64);
        ulong[]? bits = Spec.Bits ? [.. Enumerable.Range(0, words * (partial?.Count(flag => flag) ?? 0)).Select(_ => (ulong)_random.NextInt64())] : null;
        float[]? biases = Spec.BlockBiases ? [.. listed.Select(_ => Normal())] : null;
        return new BlockMask(batches, lists, Spec.Queries, Spec.Keys, Spec.QueryBlock, Spec.KeyBlock, [.. offsets], [.. listed], partial, biases, bits);
    }

    /// <summary>Runs of up to <see cref="ProblemSpec.KeyBlock"/> keys; with <see cref="ProblemSpec.Partial"/> side by side for different rows of the block, single ones among them.</summary>
    private KeyRuns Runs(int heads)
    {
        var (batches, lists) = Spec.OwnLists ? (Spec.Batch, Spec.BlockBiases ? Spec.KeyHeads : heads) : (1, 1);
        var queryBlocks = (Spec.Queries + Spec.QueryBlock - 1) / Spec.QueryBlock;
        List<int> offsets = [0];
        List<(int Key, int Keys, int Row, int Rows)> all = [];
        for (var list = 0; list < batches * lists * queryBlocks; list++)
        {
            var queries = Math.Min(Spec.QueryBlock, Spec.Queries - (list % queryBlocks * Spec.QueryBlock));
            List<(int Key, int Keys, int Row, int Rows)> runs = [];
            var rows = Spec.Partial ? 0 : queries;
            for (var row = 0; row < queries; row += rows)
            {
                rows = Spec.Partial ? _random.Next(3) == 0 ? 1 : _random.Next(1, queries - row + 1) : queries;
                for (var key = 0; key < Spec.Keys;)
                {
                    var keys = Math.Min(_random.Next(1, Spec.KeyBlock + 1), Spec.Keys - key);
                    if (_random.NextDouble() < Spec.Density)
                    {
                        runs.Add((key, keys, row, rows));
                    }

                    key += keys;
                }
            }

            all.AddRange(runs.OrderBy(run => run.Key));
            offsets.Add(all.Count);
        }

        return new KeyRuns(
            batches, lists, Spec.Queries, Spec.Keys, Spec.QueryBlock, [.. offsets], [.. all.Select(run => run.Key)], [.. all.Select(run => run.Keys)],
            Spec.Partial ? [.. all.Select(run => run.Row)] : null, Spec.Partial ? [.. all.Select(run => run.Rows)] : null);
    }

    private sealed class ReferenceCall : IProblemCall<ReferenceAttention>
    {
        public ReferenceAttention Run<TScore, TMask>(AttentionProblem problem, TScore modifier, TMask predicate)
            where TScore : struct, IScoreModifier
            where TMask : struct, IMaskPredicate => ReferenceAttention.Compute(problem.Arguments, modifier, predicate);
    }

    private sealed class ForwardCall : IProblemCall<bool>
    {
        public bool Run<TScore, TMask>(AttentionProblem problem, TScore modifier, TMask predicate)
            where TScore : struct, IScoreModifier
            where TMask : struct, IMaskPredicate
        {
            FusedAttention.Forward(problem.Arguments, modifier, predicate);
            return true;
        }
    }

    private sealed class BackwardCall : IProblemCall<bool>
    {
        public bool Run<TScore, TMask>(AttentionProblem problem, TScore modifier, TMask predicate)
            where TScore : struct, IScoreModifier
            where TMask : struct, IMaskPredicate
        {
            FusedAttention.Backward(problem.Arguments, problem.Gradients, modifier, predicate);
            return true;
        }
    }

    private sealed class MassCall : IProblemCall<float[]>
    {
        public float[] Run<TScore, TMask>(AttentionProblem problem, TScore modifier, TMask predicate)
            where TScore : struct, IScoreModifier
            where TMask : struct, IMaskPredicate
        {
            var count = problem.Arguments.Query.Batch * problem.Arguments.Query.Heads * problem.Arguments.Key.Length;
            var mass = problem.Floats(count);
            FusedAttention.MassPerKey(problem.Arguments, mass, modifier, predicate);
            return new Span<float>(mass, (int)count).ToArray();
        }
    }
}

/// <summary>Something to do with a problem once its modifier and predicate are known as types.</summary>
internal interface IProblemCall<TResult>
{
    TResult Run<TScore, TMask>(AttentionProblem problem, TScore modifier, TMask predicate)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate;
}

/// <summary>A bent score that depends on every coordinate of the pair: s + w s^2 / (1 + s^2) + v, with w by key and v by row.</summary>
internal readonly struct WaveScore : IScoreModifier
{
    public Vector512<float> Apply(Vector512<float> scores, in ScoreRow row, Vector512<int> keys)
    {
        var square = scores * scores;
        var shift = Vector512.Create(0.125f * ((row.Batch + (2 * row.Head) + (3 * row.Query) + (5 * row.Position)) & 7));
        return scores + (Weight(keys) * square / (Vector512<float>.One + square)) + shift;
    }

    public Vector512<float> Gradient(Vector512<float> scores, Vector512<float> gradient, in ScoreRow row, Vector512<int> keys)
    {
        var one = Vector512<float>.One + (scores * scores);
        return gradient + (gradient * Weight(keys) * (scores + scores) / (one * one));
    }

    private static Vector512<float> Weight(Vector512<int> keys) => Vector512.ConvertToSingle(keys & Vector512.Create(3)) * Vector512.Create(0.25f);
}

/// <summary>Three pairs of four, in stripes that depend on every coordinate.</summary>
internal readonly struct StripeMask : IMaskPredicate
{
    public Vector512<int> Allows(in ScoreRow row, Vector512<int> keys) =>
        ~Vector512.Equals((keys + Vector512.Create(row.Batch + row.Head + row.Query + (2 * row.Position))) & Vector512.Create(3), Vector512<int>.Zero);
}
