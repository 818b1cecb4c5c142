using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>One batch item or packed sequence: its rows in the tensors, and where its queries stand among its keys.</summary>
/// <param name="Index">The batch item; with packed sequences the sequence.</param>
/// <param name="Batch">The item of the tensors' batch dimension.</param>
/// <param name="QueryStart">First query row.</param>
/// <param name="QueryLength">Number of queries.</param>
/// <param name="KeyStart">First key row.</param>
/// <param name="KeyLength">Number of keys.</param>
/// <param name="Shift">Aligned position of query 0: query i stands at key position i + Shift.</param>
internal readonly record struct SequenceSlice(int Index, long Batch, long QueryStart, long QueryLength, long KeyStart, long KeyLength, long Shift);

/// <summary>An attention problem that has been checked, with what every kernel derives from it: sizes, sequences, and which keys a query sees by position.
/// The one place where arguments are refused.</summary>
internal sealed unsafe class CheckedProblem
{
    // A run of keys costs a few whole vectors and short products more than its pairs, a gathered key as much as a few rows: measured, gathering wins where a block has so many
    // times more queries than a run has keys, or a run leaves half of a vector empty.
    private const int QueriesPerKeyOfRun = 3;
    private const int HalfVector = 12;
    private const int FewQueries = 16;
    private const int GroupedQueries = 64;

    /// <summary>The arguments as given.</summary>
    public readonly AttentionArguments Arguments;

    private readonly long _before;
    private readonly long _after;
    private readonly bool _alignedToStart;

    /// <summary>Checks the arguments that every kernel reads: query, key, masks, biases.</summary>
    /// <exception cref="ArgumentException">Shapes or options do not fit together.</exception>
    public CheckedProblem(in AttentionArguments arguments)
    {
        Arguments = arguments;
        CheckTensors();
        Batch = checked((int)arguments.Query.Batch);
        Heads = checked((int)arguments.Query.Heads);
        KeyHeads = checked((int)arguments.Key.Heads);
        Queries = checked((int)arguments.Query.Length);
        Keys = checked((int)arguments.Key.Length);
        Width = checked((int)arguments.Query.Width);
        ValueWidth = checked((int)arguments.Value.Width);
        Group = KeyHeads == 0 || Heads == 0 ? 1 : Heads / KeyHeads;
        CheckOptions();
        CheckBiases();
        CheckSequences();
        Rank = HasLowRank ? checked((int)arguments.LowRankQuery.Width) : 0;
        Sequences = IsPacked ? arguments.Sequences : Batch;

        // Wider than everything is as good as unbounded, and sums of positions stay far from overflow.
        _before = arguments.WindowBefore < 0 ? -1 : Math.Min(arguments.WindowBefore, (long)Queries + Keys);
        _after = arguments.WindowAfter < 0 ? -1 : Math.Min(arguments.WindowAfter, (long)Queries + Keys);
        _alignedToStart = (arguments.Causal == Causality.None ? arguments.Alignment : arguments.Causal) == Causality.AlignedToStart;
    }

    /// <summary>Batch items.</summary>
    public int Batch { get; }

    /// <summary>Query heads.</summary>
    public int Heads { get; }

    /// <summary>Key and value heads.</summary>
    public int KeyHeads { get; }

    /// <summary>Query heads that share a key head.</summary>
    public int Group { get; }

    /// <summary>Query rows of the tensors.</summary>
    public int Queries { get; }

    /// <summary>Key rows of the tensors.</summary>
    public int Keys { get; }

    /// <summary>Elements of a query or key.</summary>
    public int Width { get; }

    /// <summary>Elements of a value.</summary>
    public int ValueWidth { get; }

    /// <summary>Rank of the low-rank bias; zero: none.</summary>
    public int Rank { get; }

    /// <summary>Batch items, or packed sequences.</summary>
    public int Sequences { get; }

    /// <summary>Threads that are worth waking: each takes microseconds to wake, so that a small problem stays on the caller's.</summary>
    public int Threads
    {
        get
        {
            const double worthThread = 1e6;
            var multiplications = (double)Batch * Heads * Queries * Keys * (Width + Rank + ValueWidth);
            var wanted = Arguments.Threads > 0 ? Arguments.Threads : Environment.ProcessorCount;
            return (int)Math.Min(wanted, 1 + (multiplications / worthThread));
        }
    }

    /// <summary>Whether sequences are packed into one batch item.</summary>
    public bool IsPacked => Arguments.QueryOffsets != null;

    /// <summary>Whether there is a low-rank bias.</summary>
    public bool HasLowRank => Arguments.LowRankQuery.IsGiven;

    /// <summary>Whether position alone decides which keys a query sees: causality or a window.</summary>
    public bool IsBanded => Arguments.Causal != Causality.None || _before >= 0 || _after >= 0;

    /// <summary>Whether keys are worth gathering, in passes that can: single tokens, blocks of a few keys, or blocks that a few queries read.</summary>
    public bool IsGathered =>
        Arguments.KeyRuns is not null || (Arguments.BlockMask is { IsWhole: true } mask
            && (mask.RunLength < Math.Max(HalfVector, (double)Math.Min(mask.QueryBlock, Queries) / QueriesPerKeyOfRun) || Queries <= FewQueries));

    /// <summary>Queries whose keys are listed together in the block mask or the key runs; 0: there is neither. Runs of single queries are taken in groups.</summary>
    public int ListedQueries => Arguments.BlockMask?.QueryBlock ?? (Arguments.KeyRuns is { } runs ? runs.QueryBlock == 1 ? GroupedQueries : runs.QueryBlock : 0);

    /// <summary>The key head that a query head reads.</summary>
    public int KeyHeadOf(int head) => head / Group;

    /// <summary>A batch item or packed sequence.</summary>
    public SequenceSlice Sequence(int index)
    {
        long queryStart = 0, queryLength = Queries, keyStart = 0, keyLength = Keys, batch = index;
        if (IsPacked)
        {
            (queryStart, keyStart, batch) = (Arguments.QueryOffsets[index], Arguments.KeyOffsets[index], 0);
            (queryLength, keyLength) = (Arguments.QueryOffsets[index + 1] - queryStart, Arguments.KeyOffsets[index + 1] - keyStart);
        }
        else
        {
            queryLength = Arguments.QueryLengths == null ? queryLength : Arguments.QueryLengths[index];
            keyLength = Arguments.KeyLengths == null ? keyLength : Arguments.KeyLengths[index];
        }

        return new(index, batch, queryStart, queryLength, keyStart, keyLength, _alignedToStart ? 0 : keyLength - queryLength);
    }

    /// <summary>Where a query stands among the keys. Queries past the last stand where the last does, or beyond.</summary>
    public long Position(in SequenceSlice slice, long query) => Arguments.QueryPositions == null
        ? query + slice.Shift
        : Arguments.QueryPositions[(slice.Batch * Queries) + slice.QueryStart + Math.Min(query, slice.QueryLength - 1)];

    /// <summary>First key that a query sees by its position.</summary>
    public long FirstKey(in SequenceSlice slice, long query) => _before < 0 ? 0 : Math.Max(0, Position(slice, query) - _before);

    /// <summary>End of the keys that a query sees by its position; at or below <see cref="FirstKey"/>: none.</summary>
    public long EndKey(in SequenceSlice slice, long query)
    {
        if (Arguments.Causal == Causality.None && _after < 0)
        {
            return slice.KeyLength;
        }

        var position = Position(slice, query);
        var end = Arguments.Causal == Causality.None ? slice.KeyLength : Math.Min(slice.KeyLength, position + 1);
        return _after < 0 ? end : Math.Min(end, position + _after + 1);
    }

    /// <summary>The queries that see a key by its position; none where the end is at or below the first.</summary>
    public (long First, long End) QueriesOf(in SequenceSlice slice, long key)
    {
        if (Arguments.QueryPositions != null)
        {
            return (
                Math.Max(Arguments.Causal == Causality.None ? 0 : FirstAt(slice, key), _after < 0 ? 0 : FirstAt(slice, key - _after)),
                _before < 0 ? slice.QueryLength : FirstAt(slice, key + _before + 1));
        }

        var aligned = key - slice.Shift;
        var first = Arguments.Causal == Causality.None ? 0 : aligned;
        first = _after < 0 ? first : Math.Max(first, aligned - _after);
        return (Math.Max(first, 0), _before < 0 ? slice.QueryLength : Math.Min(slice.QueryLength, aligned + _before + 1));
    }

    /// <summary>The same problem with a block mask in place of key runs, for passes and options that do not gather.</summary>
    public CheckedProblem WithBlockMask() =>
        Arguments.KeyRuns is { } runs && Heads > 0 ? new(Arguments with { BlockMask = runs.ToBlockMask(Heads), KeyRuns = null }) : this;

    /// <summary>What a row is divided by under <see cref="Normalizer.ReluOverPosition"/>: the number of keys up to its position, at least one.</summary>
    public float KeysUpTo(in SequenceSlice slice, long query) =>
        Math.Max(1, Arguments.Causal == Causality.None ? slice.KeyLength : Position(slice, query) + 1);

    /// <summary>Checks what the forward pass writes.</summary>
    public void CheckOutput()
    {
        ref readonly var output = ref Arguments.Output;
        Require(
            output.Batch == Batch && output.Heads == Heads && output.Length == Queries && output.Width == ValueWidth,
            "output", $"The output must be [{Batch}, {Heads}, {Queries}, {ValueWidth}] (batch, query heads, queries, value width) but is {Shape(output)}.");
        RequireMemory(output, "output");
        Require(output.Type == ElementType.Float32, "output", $"The output must be float32 but is {output.Type}.");
        Require(
            ValueWidth == 0 || ((Batch < 2 || output.BatchStride != 0) && (Heads < 2 || output.HeadStride != 0) && (Queries < 2 || output.RowStride != 0)),
            "output", "The rows of the output must not share memory: a stride of a dimension longer than one is zero.");

        ref readonly var statistics = ref Arguments.Statistics;
        Require(
            Arguments.Normalizer == Normalizer.Softmax || !statistics.Any,
            "statistics", $"Row statistics are defined for softmax weights only; the normalizer is {Arguments.Normalizer}: leave the statistics out.");
        Require(
            Arguments.Normalizer == Normalizer.Softmax || Arguments.LogSumExp == null,
            "logSumExp", $"A log-sum-exp exists for softmax only; the normalizer is {Arguments.Normalizer}: leave its pointer null.");
        Require(statistics.TopCount is >= 0 and <= 64, "statistics", $"From 0 to 64 of the largest weights can be asked for; {statistics.TopCount} were.");
        Require(
            statistics.TopCount == 0 || (statistics.TopWeights != null && statistics.TopKeys != null),
            "statistics", "The largest weights need both TopWeights and TopKeys to be given.");
        Require(statistics.SetMass == null || statistics.KeySet != null || Keys == 0, "statistics", "The mass on a set of keys needs KeySet to be given.");
    }

    /// <summary>The first query that stands at a position or beyond.</summary>
    private long FirstAt(in SequenceSlice slice, long position)
    {
        var (low, high) = (0L, slice.QueryLength);
        while (low < high)
        {
            var middle = (low + high) / 2;
            (low, high) = Position(slice, middle) < position ? (middle + 1, high) : (low, middle);
        }

        return low;
    }

    private static string Shape(in TensorView view) => $"[{view.Batch}, {view.Heads}, {view.Length}, {view.Width}]";

    private static void Require(bool condition, string argument, string message)
    {
        if (!condition)
        {
            throw new ArgumentException(message, argument);
        }
    }

    private static void Require(bool condition, string argument, [InterpolatedStringHandlerArgument(nameof(condition))] ref Refusal message)
    {
        if (!condition)
        {
            throw new ArgumentException(message.ToString(), argument);
        }
    }

    private static void RequireMemory(in TensorView view, string name) =>
        Require(
            view.Data != 0 || view.Batch == 0 || view.Heads == 0 || view.Length == 0 || view.Width == 0,
            name, $"The {name} of shape {Shape(view)} points to no memory.");

    private void CheckTensors()
    {
        ref readonly var query = ref Arguments.Query;
        ref readonly var key = ref Arguments.Key;
        ref readonly var value = ref Arguments.Value;
        CheckSizes(query, "query");
        CheckSizes(key, "key");
        CheckSizes(value, "value");
        Require(query.Type == ElementType.Float32, "query", $"The query must be float32 but is {query.Type}.");
        Require(
            key.Batch == query.Batch && value.Batch == query.Batch,
            "key", $"Query, key and value need the same batch size; they have {query.Batch}, {key.Batch} and {value.Batch}.");
        Require(key.Width == query.Width, "key", $"Queries and keys need the same width; they have {query.Width} and {key.Width}.");
        Require(
            value.Heads == key.Heads && value.Length == key.Length,
            "value", $"Keys and values need the same heads and length; the key is {Shape(key)}, the value {Shape(value)}.");
        Require(
            key.Heads > 0 ? query.Heads % key.Heads == 0 : query.Heads == 0,
            "key", $"The number of key heads must divide that of query heads; {query.Heads} query heads cannot share {key.Heads} key heads evenly.");
    }

    private static void CheckSizes(in TensorView view, string name)
    {
        Require(
            view.Batch is >= 0 and <= int.MaxValue && view.Heads is >= 0 and <= int.MaxValue && view.Length is >= 0 and < 1 << 30 && view.Width is >= 0 and < 1 << 20,
            name, $"The {name}'s sizes {Shape(view)} are out of range: at most 2^30 rows of 2^20 elements, none negative.");
        RequireMemory(view, name);
    }

    private void CheckOptions()
    {
        ref readonly var a = ref Arguments;
        Require(float.IsFinite(a.Scale), "scale", $"The scale must be finite but is {a.Scale}.");
        Require(float.IsFinite(a.Softcap) && a.Softcap >= 0, "softcap", $"The softcap must be finite and positive, or zero for none, but is {a.Softcap}.");
        Require(a.WindowBefore >= -1 && a.WindowAfter >= -1, "window", $"A window counts keys (-1: all); {a.WindowBefore} before and {a.WindowAfter} after make no sense.");
        Require(a.Normalizer is >= Normalizer.Softmax and <= Normalizer.Sigmoid, "normalizer", $"There is no normalizer {a.Normalizer}.");
        Require(
            a.Causal is >= Causality.None and <= Causality.AlignedToStart && a.Alignment is >= Causality.None and <= Causality.AlignedToStart,
            "causal", $"There is no causality {a.Causal} with alignment {a.Alignment}.");
        Require(a.Threads >= 0, "threads", $"The number of threads must be positive, or zero for all processors, but is {a.Threads}.");
        Require(
            a.Normalizer == Normalizer.Softmax || a.Sinks == null,
            "sinks", $"Sinks join the sum of a softmax; the normalizer {a.Normalizer} has none: use one or the other.");
    }

    private void CheckBiases()
    {
        ref readonly var a = ref Arguments;
        Require(
            a.Bias.KeyStride is 0 or 1 && a.KeyBias.KeyStride is 0 or 1,
            "bias", $"A bias needs a key stride of 1 (or 0 to repeat); the strides are {a.Bias.KeyStride} and {a.KeyBias.KeyStride}.");
        Require(a.KeyBias.QueryStride == 0, "keyBias", $"A bias per key has a query stride of 0, not {a.KeyBias.QueryStride}: give it as a dense bias.");
        ref readonly var left = ref a.LowRankQuery;
        ref readonly var right = ref a.LowRankKey;
        Require(left.IsGiven == right.IsGiven, "lowRankQuery", "A low-rank bias needs its query factors and its key factors; one is missing.");
        if (left.IsGiven)
        {
            Require(
                left.Batch == Batch && left.Heads == Heads && left.Length == Queries
                && right.Batch == Batch && right.Heads == Heads && right.Length == Keys && left.Width == right.Width,
                "lowRankQuery",
                $"Low-rank factors must be [{Batch}, {Heads}, {Queries}, R] and [{Batch}, {Heads}, {Keys}, R] but are {Shape(left)} and {Shape(right)}.");
            Require(left.Type == ElementType.Float32 && right.Type == ElementType.Float32, "lowRankQuery", "Low-rank factors must be float32.");
        }

        if (a.BlockMask is { } mask)
        {
            Require(
                mask.QueryLength == Queries && mask.KeyLength == Keys,
                "blockMask", $"The block mask covers {mask.QueryLength} queries and {mask.KeyLength} keys; the problem has {Queries} and {Keys}.");
            Require(
                (mask.Batches == 1 || mask.Batches == Batch) && (mask.Heads == 1 || mask.Heads == Heads),
                "blockMask", $"The block mask has lists for {mask.Batches} batch items and {mask.Heads} heads; 1 or {Batch} and 1 or {Heads} were expected.");
        }

        if (a.KeyRuns is { } runs)
        {
            Require(a.BlockMask is null, "keyRuns", "Key runs and a block mask both say which pairs are computed: give one of them.");
            Require(
                runs.QueryLength == Queries && runs.KeyLength == Keys,
                "keyRuns", $"The key runs cover {runs.QueryLength} queries and {runs.KeyLength} keys; the problem has {Queries} and {Keys}.");
            Require(
                (runs.Batches == 1 || runs.Batches == Batch) && Heads % runs.Heads == 0,
                "keyRuns", $"The key runs have lists for {runs.Batches} batch items and {runs.Heads} heads; 1 or {Batch} and a divisor of {Heads} were expected.");
        }
    }

    private void CheckSequences()
    {
        ref readonly var a = ref Arguments;
        Require(
            (a.QueryOffsets != null) == (a.KeyOffsets != null),
            "queryOffsets", "Packed sequences need the offsets of the queries and of the keys; one is missing.");
        if (!IsPacked)
        {
            CheckLengths(a.QueryLengths, Queries, "queryLengths");
            CheckLengths(a.KeyLengths, Keys, "keyLengths");
            CheckPositions(Batch);
            return;
        }

        Require(Batch == 1, "queryOffsets", $"Packed sequences lie in a batch of one; the batch size is {Batch}.");
        Require(
            a.QueryLengths == null && a.KeyLengths == null,
            "queryLengths", "Lengths per batch item and packed sequences exclude each other: the offsets already say where each sequence ends.");
        Require(a.Sequences >= 0, "sequences", $"The number of packed sequences must not be negative but is {a.Sequences}.");
        CheckOffsets(a.QueryOffsets, Queries, "queryOffsets");
        CheckOffsets(a.KeyOffsets, Keys, "keyOffsets");
        CheckPositions(a.Sequences);
    }

    private void CheckPositions(int sequences)
    {
        ref readonly var a = ref Arguments;
        if (a.QueryPositions == null)
        {
            return;
        }

        Require(a.AlibiSlopes == null, "queryPositions", "Positions of queries and ALiBi slopes exclude each other: distances are computed for queries side by side.");
        Require(a.Statistics.MeanDistance == null, "queryPositions", "Positions of queries and the mean distance exclude each other: distances are computed for queries side by side.");
        for (var sequence = 0; sequence < sequences; sequence++)
        {
            var slice = Sequence(sequence);
            var last = 0L;
            for (var query = 0L; query < slice.QueryLength; query++)
            {
                var position = Position(slice, query);
                Require(
                    position >= last && position <= Keys, "queryPositions", $"Positions of queries lie from 0 to {Keys} and do not decrease within a sequence; {position} comes after {last}.");
                last = position;
            }
        }
    }

    private void CheckLengths(long* lengths, long most, string name)
    {
        for (var i = 0; lengths != null && i < Batch; i++)
        {
            Require(lengths[i] >= 0 && lengths[i] <= most, name, $"Length {lengths[i]} of batch item {i} lies outside 0 to {most}.");
        }
    }

    private void CheckOffsets(long* offsets, long end, string name)
    {
        Require(
            offsets[0] >= 0 && offsets[Arguments.Sequences] <= end,
            name, $"Offsets of packed sequences lie from 0 to {end}; they run from {offsets[0]} to {offsets[Arguments.Sequences]}.");
        for (var i = 0; i < Arguments.Sequences; i++)
        {
            Require(offsets[i] <= offsets[i + 1], name, $"Offsets of packed sequences must not decrease; they do from {offsets[i]} to {offsets[i + 1]} after sequence {i}.");
        }
    }

    /// <summary>A sentence that is put together only when it will be said.</summary>
    [InterpolatedStringHandler]
    private ref struct Refusal
    {
        private DefaultInterpolatedStringHandler _sentence;

        public Refusal(int literalLength, int formattedCount, bool condition, out bool isSaid)
        {
            isSaid = !condition;
            _sentence = isSaid ? new(literalLength, formattedCount) : default;
        }

        public void AppendLiteral(string value) => _sentence.AppendLiteral(value);

        public void AppendFormatted<T>(T value) => _sentence.AppendFormatted(value);

        public override string ToString() => _sentence.ToStringAndClear();
    }
}
