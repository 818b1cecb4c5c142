using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>Consecutive columns of a tile of scores: whole vectors of keys, of which a run exists.</summary>
/// <param name="First">Key of the first column, within the sequence; a multiple of the lanes.</param>
/// <param name="Columns">Number of columns, a multiple of the lanes.</param>
/// <param name="Segment">The keys that exist, and how they are computed.</param>
internal readonly record struct ScorePiece(long First, int Columns, KeySegment Segment);

/// <summary>
/// Turns products of queries and keys into final scores, in place: softcap, biases, block bias, modifier, and minus infinity where no pair exists. Decided per tile: one that
/// needs nothing costs a few comparisons. Forward, backward and column passes all score through here.
/// </summary>
internal readonly unsafe struct ScoreTile<TVector, TOps, TScore, TMask>(CheckedProblem problem, TScore modifier, TMask predicate)
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
    where TScore : struct, IScoreModifier
    where TMask : struct, IMaskPredicate
{
    private readonly CheckedProblem _problem = problem;
    private readonly TScore _modifier = modifier;
    private readonly TMask _predicate = predicate;

    /// <summary>Whether scores change beside being masked.</summary>
    public bool Changes { get; } =
        problem.Arguments.Softcap > 0 || problem.Arguments.Bias.IsGiven || problem.Arguments.KeyBias.IsGiven || problem.Arguments.AlibiSlopes != null
        || problem.Arguments.BlockMask?.Biases is not null || typeof(TScore) != typeof(UnmodifiedScore);

    /// <summary>Whether there is a dense bias, of which every score has its own: worth a <see cref="Prefetch"/>.</summary>
    public bool ReadsMap { get; } = problem.Arguments.Bias.IsGiven && problem.Arguments.Bias.QueryStride != 0 && problem.Arguments.Bias.KeyStride != 0;

    /// <summary>Whether a mask predicate decides pairs.</summary>
    public static bool Asks => typeof(TMask) != typeof(AllPairs);

    /// <summary>Whether a piece may hold pairs that do not exist: those are minus infinity after <see cref="Apply"/>.</summary>
    public bool MayMask(in SequenceSlice slice, in ScorePiece piece, long query, int rows) =>
        IsCut(slice, piece, query, rows) || piece.Segment.Bits >= 0 || piece.Segment.Asks || Changes;

    /// <summary>Asks for the dense bias of some rows and keys while their products are computed: the rows lie in pages apart, where the hardware does not look ahead.</summary>
    public void Prefetch(in SequenceSlice slice, int head, long key, int columns, long query, int rows)
    {
        ref readonly var bias = ref _problem.Arguments.Bias;
        var source = (float*)bias.Data + (slice.Batch * bias.BatchStride) + (head * bias.HeadStride)
            + ((slice.QueryStart + query) * bias.QueryStride) + ((slice.KeyStart + key) * bias.KeyStride);
        for (var row = 0; row < rows; row++)
        {
            for (var column = 0; column < columns; column += 16)
            {
                TOps.Prefetch(source + column);
            }

            source += bias.QueryStride;
        }
    }

    /// <summary>Finishes the scores of some rows of a piece.</summary>
    /// <param name="slice">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="piece">The columns.</param>
    /// <param name="query">The first row's query, within the sequence.</param>
    /// <param name="rows">Number of rows.</param>
    /// <param name="scores">scale * q.k + the low-rank bias, rows <see cref="MicroKernel.ScoreStride"/> floats apart; receives the scores. Up to
    /// fifteen columns past the piece may be overwritten.</param>
    /// <param name="capped">Receives the scores after the softcap (the derivative of which is 1 - (s / c)^2), same layout; null: not wanted.</param>
    /// <param name="unmodified">Receives the scores before the modifier, same layout; null: not wanted.</param>
    public void Apply(
        in SequenceSlice slice, int head, in ScorePiece piece, long query, int rows, float* scores, float* capped = null, float* unmodified = null)
    {
        if (Changes)
        {
            Change(slice, head, piece, query, rows, scores, capped, unmodified);
        }

        if (piece.Segment.Bits >= 0)
        {
            MaskByBits(slice, piece, query, rows, scores);
        }

        if (piece.Segment.Asks)
        {
            MaskByPredicate(slice, head, piece, query, rows, scores);
        }

        if (IsCut(slice, piece, query, rows))
        {
            Cut(slice, piece, query, rows, scores);
        }
    }

    /// <summary>Turns gradients with respect to the modified scores of a piece into those before the modifier.</summary>
    /// <param name="slice">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="piece">The columns.</param>
    /// <param name="query">The first row's query, within the sequence.</param>
    /// <param name="rows">Number of rows.</param>
    /// <param name="unmodified">The scores before the modifier, as <see cref="Apply"/> left them.</param>
    /// <param name="gradients">The gradients, changed in place; same layout.</param>
    public void ModifierGradient(in SequenceSlice slice, int head, in ScorePiece piece, long query, int rows, float* unmodified, float* gradients)
    {
        for (var row = 0; row < rows; row++)
        {
            var place = Place(slice, head, query + row);
            var offset = (nint)row * MicroKernel.ScoreStride;
            for (var column = 0; column < piece.Columns; column += Vector512<float>.Count)
            {
                var keys = KeysAt(piece, column);
                _modifier.Gradient(Vector512.Load(unmodified + offset + column), Vector512.Load(gradients + offset + column), place, keys)
                    .Store(gradients + offset + column);
            }
        }
    }

    private ScoreRow Place(in SequenceSlice slice, int head, long query) => new(slice.Index, head, (int)query, (int)_problem.Position(slice, query));

    private static Vector512<int> KeysAt(in ScorePiece piece, int column) => Vector512.Create((int)piece.First + column) + Vector512<int>.Indices;

    // Bounds only tighten from one row to the next at the front and widen at the end: the extremes are those of the last and of the first row.
    private bool IsCut(in SequenceSlice slice, in ScorePiece piece, long query, int rows) =>
        piece.Segment.Start > piece.First || piece.Segment.End < piece.First + piece.Columns
        || (_problem.IsBanded && (_problem.FirstKey(slice, query + rows - 1) > piece.First || _problem.EndKey(slice, query) < piece.First + piece.Columns));

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void Cut(in SequenceSlice slice, in ScorePiece piece, long query, int rows, float* scores)
    {
        var absent = TOps.Create(float.NegativeInfinity);
        for (var row = 0; row < rows; row++)
        {
            var first = (int)Math.Clamp(Math.Max(piece.Segment.Start, _problem.FirstKey(slice, query + row)) - piece.First, 0, piece.Columns);
            var end = (int)Math.Clamp(Math.Min(piece.Segment.End, _problem.EndKey(slice, query + row)) - piece.First, first, piece.Columns);
            for (var column = 0; column < first; column += TOps.Lanes)
            {
                var exists = TOps.GreaterThanOrEqual(TOps.Indices, TOps.Create(first - column));
                TOps.Store(TOps.Select(exists, TOps.Load(scores + column), absent), scores + column);
            }

            for (var column = end / TOps.Lanes * TOps.Lanes; column < piece.Columns; column += TOps.Lanes)
            {
                var exists = TOps.LessThan(TOps.Indices, TOps.Create(end - column));
                TOps.Store(TOps.Select(exists, TOps.Load(scores + column), absent), scores + column);
            }

            scores += MicroKernel.ScoreStride;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void MaskByBits(in SequenceSlice slice, in ScorePiece piece, long query, int rows, float* scores)
    {
        var mask = _problem.Arguments.BlockMask!;
        var absent = TOps.Create(float.NegativeInfinity);
        var words = (mask.KeyBlock + 63) / 64;
        var firstBit = piece.First + slice.KeyStart - ((long)mask.KeyBlockAt(piece.Segment.Bits) * mask.KeyBlock);
        fixed (ulong* bits = &mask.Bits![mask.BitOffsets![piece.Segment.Bits]])
        {
            for (var row = 0; row < rows; row++)
            {
                var rowBits = bits + ((slice.QueryStart + query + row) % mask.QueryBlock * words);
                for (var column = 0; column < piece.Columns; column += TOps.Lanes)
                {
                    var exists = TOps.MaskFromBits(BitsAt(rowBits, words, firstBit + column));
                    TOps.Store(TOps.Select(exists, TOps.Load(scores + column), absent), scores + column);
                }

                scores += MicroKernel.ScoreStride;
            }
        }
    }

    /// <summary>The bits from a place on, which may begin before the first word or run past the last.</summary>
    private static uint BitsAt(ulong* bits, int words, long place)
    {
        var (word, shift) = (place >> 6, (int)(place & 63));
        var low = word >= 0 && word < words ? bits[word] >> shift : 0;
        var high = shift > 0 && word + 1 >= 0 && word + 1 < words ? bits[word + 1] << (64 - shift) : 0;
        return (uint)(low | high);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void MaskByPredicate(in SequenceSlice slice, int head, in ScorePiece piece, long query, int rows, float* scores)
    {
        var absent = Vector512.Create(float.NegativeInfinity);
        for (var row = 0; row < rows; row++)
        {
            var place = Place(slice, head, query + row);
            for (var column = 0; column < piece.Columns; column += Vector512<float>.Count)
            {
                var exists = _predicate.Allows(place, KeysAt(piece, column)).AsSingle();
                Vector512.ConditionalSelect(exists, Vector512.Load(scores + column), absent).Store(scores + column);
            }

            scores += MicroKernel.ScoreStride;
        }
    }

    private void Change(in SequenceSlice slice, int head, in ScorePiece piece, long query, int rows, float* scores, float* capped, float* unmodified)
    {
        ref readonly var a = ref _problem.Arguments;
        if (a.Softcap > 0)
        {
            Cap(a.Softcap, piece.Columns, rows, scores);
        }

        if (capped != null)
        {
            Copy(scores, capped, piece.Columns, rows);
        }

        if (a.Bias.IsGiven)
        {
            AddBias(a.Bias, slice, head, piece, query, rows, scores);
        }

        if (a.KeyBias.IsGiven)
        {
            AddBias(a.KeyBias, slice, head, piece, query, rows, scores);
        }

        if (a.AlibiSlopes != null)
        {
            AddDistances(a.AlibiSlopes[head], query + slice.Shift - piece.First, piece.Columns, rows, scores);
        }

        if (piece.Segment.Bias != 0)
        {
            for (nint row = 0; row < rows; row++)
            {
                AddConstant(piece.Segment.Bias, piece.Columns, scores + (row * MicroKernel.ScoreStride));
            }
        }

        if (unmodified != null)
        {
            Copy(scores, unmodified, piece.Columns, rows);
        }

        if (typeof(TScore) != typeof(UnmodifiedScore))
        {
            Modify(slice, head, piece, query, rows, scores);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void Modify(in SequenceSlice slice, int head, in ScorePiece piece, long query, int rows, float* scores)
    {
        var absent = Vector512.Create(float.NegativeInfinity);
        for (var row = 0; row < rows; row++)
        {
            var place = Place(slice, head, query + row);
            for (var column = 0; column < piece.Columns; column += Vector512<float>.Count)
            {
                var before = Vector512.Load(scores + column);
                var after = _modifier.Apply(before, place, KeysAt(piece, column));
                Vector512.ConditionalSelect(Vector512.Equals(before, absent), absent, after).Store(scores + column);
            }

            scores += MicroKernel.ScoreStride;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Cap(float cap, int columns, int rows, float* scores)
    {
        var (factor, inverse) = (TOps.Create(cap), TOps.Create(1 / cap));
        for (var row = 0; row < rows; row++)
        {
            for (var column = 0; column < columns; column += TOps.Lanes)
            {
                var ratio = TOps.Multiply(TOps.Load(scores + column), inverse);
                TOps.Store(TOps.Multiply(VectorMath.Tanh<TVector, TOps>(ratio), factor), scores + column);
            }

            scores += MicroKernel.ScoreStride;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddBias(in BiasView bias, in SequenceSlice slice, int head, in ScorePiece piece, long query, int rows, float* scores)
    {
        var source = (float*)bias.Data + (slice.Batch * bias.BatchStride) + (head * bias.HeadStride)
            + ((slice.QueryStart + query) * bias.QueryStride) + ((slice.KeyStart + piece.First) * bias.KeyStride);

        // A bias of minus infinity takes the pair away, even from a score that is NaN.
        var (lowest, absent) = (TOps.Create(float.MinValue), TOps.Create(float.NegativeInfinity));

        // Keys past the sequence may lie past the end of the bias: the last vector is then read element by element.
        var safe = (int)Math.Clamp((slice.KeyLength - piece.First) / TOps.Lanes * TOps.Lanes, 0, piece.Columns);
        var rest = (int)Math.Clamp(slice.KeyLength - piece.First, 0, piece.Columns);
        for (var row = 0; row < rows; row++)
        {
            if (bias.KeyStride == 0)
            {
                AddConstant(*source, piece.Columns, scores);
            }
            else
            {
                for (var column = 0; column < safe; column += TOps.Lanes)
                {
                    var addend = TOps.Load(source + column);
                    TOps.Store(TOps.Select(TOps.LessThan(addend, lowest), absent, TOps.Add(TOps.Load(scores + column), addend)), scores + column);
                }

                for (var column = safe; column < rest; column++)
                {
                    scores[column] = float.IsNegativeInfinity(source[column]) ? source[column] : scores[column] + source[column];
                }
            }

            source += bias.QueryStride;
            scores += MicroKernel.ScoreStride;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddDistances(float slope, long position, int columns, int rows, float* scores)
    {
        var (factor, step) = (TOps.Create(-slope), TOps.Create(-TOps.Lanes));
        for (var row = 0; row < rows; row++)
        {
            var distance = TOps.Subtract(TOps.Create(position + row), TOps.Indices);
            for (var column = 0; column < columns; column += TOps.Lanes)
            {
                TOps.Store(TOps.MultiplyAdd(TOps.Abs(distance), factor, TOps.Load(scores + column)), scores + column);
                distance = TOps.Add(distance, step);
            }

            scores += MicroKernel.ScoreStride;
        }
    }

    private static void AddConstant(float bias, int columns, float* scores)
    {
        if (float.IsNegativeInfinity(bias))
        {
            new Span<float>(scores, columns).Fill(bias);
            return;
        }

        var addend = TOps.Create(bias);
        for (var column = 0; column < columns; column += TOps.Lanes)
        {
            TOps.Store(TOps.Add(TOps.Load(scores + column), addend), scores + column);
        }
    }

    private static void Copy(float* source, float* destination, int columns, int rows)
    {
        for (nint row = 0; row < rows; row++)
        {
            new ReadOnlySpan<float>(source + (row * MicroKernel.ScoreStride), columns).CopyTo(new(destination + (row * MicroKernel.ScoreStride), columns));
        }
    }
}
