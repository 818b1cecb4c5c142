using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>Checks a call for the mass per key and picks the loop that is compiled for its normaliser and for the vectors of this
/// machine.</summary>
internal static unsafe class MassPerKeyPass
{
    /// <inheritdoc cref="FusedAttention.MassPerKey{TScore, TMask}(in AttentionArguments, float*, TScore, TMask, float*)"/>
    public static void Compute<TScore, TMask>(in AttentionArguments arguments, float* mass, TScore modifier, TMask predicate, float* entropy = null)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        if (Vector512.IsHardwareAccelerated)
        {
            Compute<Vector512<float>, Vector512Operations, TScore, TMask>(arguments, mass, modifier, predicate, entropy);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            Compute<Vector256<float>, Vector256Operations, TScore, TMask>(arguments, mass, modifier, predicate, entropy);
        }
        else
        {
            Compute<Vector128<float>, Vector128Operations, TScore, TMask>(arguments, mass, modifier, predicate, entropy);
        }
    }

    /// <summary>As <see cref="Compute{TScore, TMask}"/> with vectors of a given width.</summary>
    internal static void Compute<TVector, TOps, TScore, TMask>(in AttentionArguments arguments, float* mass, TScore modifier,
        TMask predicate, float* entropy = null)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        // Values are not read: whatever is given there is not looked at.
        var problem = new CheckedProblem(arguments with { Value = arguments.Key }).WithBlockMask();
        if (problem.Batch == 0 || problem.Heads == 0 || problem.Keys == 0)
        {
            return;
        }

        if (mass == null)
        {
            throw new ArgumentNullException(
                nameof(mass), $"The mass per key needs a place for [{problem.Batch}, {problem.Heads}, {problem.Keys}] numbers.");
        }

        if (arguments.Normalizer == Normalizer.Softmax && arguments.LogSumExp == null && problem.Queries > 0)
        {
            throw new ArgumentException(
                "The mass per key of a softmax is found from the log-sum-exp: give the forward pass a place for it and keep it.",
                    nameof(arguments));
        }

        if (arguments.Normalizer != Normalizer.Softmax && entropy != null)
        {
            throw new ArgumentException($"The entropy per key is found for a softmax only, not for {arguments.Normalizer}.", nameof(arguments));
        }

        switch (problem.Arguments.Normalizer)
        {
            case Normalizer.ReluOverPosition:
                new MassPerKeyLoop<TVector, TOps, ReluGradient, TScore, TMask>(problem, mass, null, modifier, predicate).Run();
                break;
            case Normalizer.Sigmoid:
                new MassPerKeyLoop<TVector, TOps, SigmoidGradient, TScore, TMask>(problem, mass, null, modifier, predicate).Run();
                break;
            default:
                new MassPerKeyLoop<TVector, TOps, SoftmaxGradient, TScore, TMask>(problem, mass, entropy, modifier, predicate).Run();
                break;
        }
    }
}

/// <summary>
/// The half-pass that finds the mass of every key: scores and, from the saved log-sum-exp, weights, tile by tile, summed over the queries. Where the entropy of
/// every key is wanted, too, it sums p ln p beside p (ln p is the score less the log-sum-exp): the shares p / m of a key with the mass m have the entropy
/// ln m - (sum p ln p) / m.
/// It is cut into units as the backward pass is (<see cref="BackwardShape"/>), so its nats do not depend on the number of threads either.
/// </summary>
internal sealed unsafe class MassPerKeyLoop<TVector, TOps, TNormalizer, TScore, TMask> : ParallelLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
    where TNormalizer : struct, INormalizerGradient
    where TScore : struct, IScoreModifier
    where TMask : struct, IMaskPredicate
{
    private readonly CheckedProblem _problem;
    private readonly BackwardShape _shape;
    private readonly ScoreTile<TVector, TOps, TScore, TMask> _scoring;
    private readonly float* _mass;
    private readonly float* _entropy;
    private readonly float* _partial;
    private readonly float* _products;

    /// <summary>Prepares the pass over a checked problem; <paramref name="entropy"/> may be null.</summary>
    public MassPerKeyLoop(CheckedProblem problem, float* mass, float* entropy, TScore modifier, TMask predicate)
    {
        _problem = problem;
        _mass = mass;
        _entropy = entropy;
        _scoring = new(problem, modifier, predicate);
        _shape = new BackwardShape(problem, default, TOps.Lanes, Packing.PanelWidth<TVector, TOps>(), modified: false, gathers: false);
        _partial = _shape.Splits == 1 ? mass : Workspace.OfCall.Take((entropy == null ? 1 : 2) * Count * _shape.Splits);
        _products = _shape.Splits == 1 || entropy == null ? entropy : _partial + (Count * _shape.Splits);
    }

    private long Count => (long)_problem.Batch * _problem.Heads * _problem.Keys;

    /// <summary>Computes the mass.</summary>
    public void Run()
    {
        Clear(_partial);
        if (_entropy != null)
        {
            Clear(_products);
        }

        Run(_shape.Lanes, _problem.Threads);
        for (long head = 0; head < (long)_problem.Batch * _problem.Heads; head++)
        {
            var mass = Sum(_partial, _mass, head);
            if (_entropy != null)
            {
                var entropy = Sum(_products, _entropy, head);
                for (var key = 0; key < entropy.Length; key++)
                {
                    // Rounding may leave a key with one query a little below zero; what is not a number stays so.
                    var nats = MathF.Log(mass[key]) - (entropy[key] / mass[key]);
                    entropy[key] = mass[key] == 0 || nats < 0 ? 0 : nats;
                }
            }
        }
    }

    private void Clear(float* sums) => NativeMemory.Clear(sums, checked((nuint)(Count * _shape.Splits * sizeof(float))));

    private Span<float> Sum(float* parts, float* whole, long head)
    {
        var sum = new Span<float>(whole + (head * _problem.Keys), _problem.Keys);
        for (var split = 0; _shape.Splits > 1 && split < _shape.Splits; split++)
        {
            var part = new ReadOnlySpan<float>(Part(parts, head, split), _problem.Keys);
            if (split == 0)
            {
                part.CopyTo(sum);
            }
            else
            {
                TensorPrimitives.Add(sum, part, sum);
            }
        }

        return sum;
    }

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        var split = item % _shape.Splits;
        var share = item / _shape.Splits % _shape.Shares;
        var slice = _problem.Sequence(item / _shape.Splits / _shape.Shares);
        var unit = Unit.Create(_shape, Workspace.OfItem);
        unit.Slice = slice;
        var head = share * _shape.ShareHeads;
        ref readonly var a = ref _problem.Arguments;
        BackwardPacking.Panels<TVector, TOps>(a.Key, slice.Batch, share / _shape.HeadParts, slice.KeyStart, slice.KeyLength,
            unit.KeyPanels, 0, _shape.Depth);
        if (_problem.HasLowRank)
        {
            BackwardPacking.Panels<TVector, TOps>(a.LowRankKey, slice.Batch, head, slice.KeyStart, slice.KeyLength, unit.KeyPanels,
                _problem.Width, _shape.Depth);
        }

        for (var end = head + _shape.ShareHeads; head < end; head++)
        {
            unit.Head = head;
            NativeMemory.Clear(unit.Sums, (nuint)(_shape.PanelKeys * sizeof(float)));
            NativeMemory.Clear(unit.Products, (nuint)(_shape.PanelKeys * sizeof(float)));
            var block = 0;
            for (unit.Query = 0; unit.Query < slice.QueryLength; unit.Query += unit.Rows, block++)
            {
                unit.Rows = _shape.RowsAt(slice, unit.Query);
                if (block % _shape.Splits == split)
                {
                    RunBlock(unit);
                }
            }

            var bytes = slice.KeyLength * sizeof(float);
            var at = (slice.Batch * _problem.Heads) + head;
            Buffer.MemoryCopy(unit.Sums, Part(_partial, at, split) + slice.KeyStart, bytes, bytes);
            if (_entropy != null)
            {
                Buffer.MemoryCopy(unit.Products, Part(_products, at, split) + slice.KeyStart, bytes, bytes);
            }
        }
    }

    private float* Part(float* parts, long head, int split) => parts + (((head * _shape.Splits) + split) * _problem.Keys);

    private void RunBlock(in Unit unit)
    {
        PackQueries(unit);
        var segments = KeySegments.OfItem;
        segments.Find(_problem, unit.Slice, unit.Head, unit.Query, unit.Rows, ScoreTile<TVector, TOps, TScore, TMask>.Asks);
        var panel = Packing.PanelWidth<TVector, TOps>();
        for (var i = 0; i < segments.Count; i++)
        {
            var segment = segments[i];
            for (var first = segment.Start / panel * panel; first < segment.End; first += BackwardShape.TileColumns)
            {
                RunTile(unit, segment, first, (int)Math.Min(segment.End - first, BackwardShape.TileColumns));
            }
        }
    }

    private void RunTile(in Unit unit, in KeySegment segment, long firstKey, int width)
    {
        if (!StripColumns.Find(_problem, unit.Slice, unit.Query, unit.Rows, segment, firstKey, width, unit.Columns))
        {
            return;
        }

        var strips = (unit.Rows + MicroKernel.Rows - 1) / MicroKernel.Rows;
        BackwardTile.Multiply<TVector, TOps>(unit.QueryStrips, _shape.Depth, unit.KeyPanels + (firstKey * _shape.Depth), unit.Columns,
            strips, width, unit.Scores);
        for (var row = 0; row < unit.Rows; row += MicroKernel.Rows)
        {
            var columns = unit.Columns[row / MicroKernel.Rows];
            if (columns.IsEmpty)
            {
                continue;
            }

            var start = columns.First & -TOps.Lanes;
            var piece = new ScorePiece(firstKey + start, ((columns.End + TOps.Lanes - 1) & -TOps.Lanes) - start, segment);
            var rows = Math.Min(unit.Rows - row, MicroKernel.Rows);
            var scores = unit.Scores + (row * MicroKernel.ScoreStride);
            _scoring.Apply(unit.Slice, unit.Head, piece, unit.Query + row, rows, scores + start);
            if (_entropy != null)
            {
                AddProducts(scores, columns, rows, unit.Numbers + row, unit.Sums + firstKey, unit.Products + firstKey);
            }
            else if (_scoring.MayMask(unit.Slice, piece, unit.Query + row, rows))
            {
                AddWeights<One>(scores, columns, rows, unit.Numbers + row, unit.Sums + firstKey);
            }
            else
            {
                AddWeights<Zero>(scores, columns, rows, unit.Numbers + row, unit.Sums + firstKey);
            }
        }
    }

    private void PackQueries(in Unit unit)
    {
        ref readonly var a = ref _problem.Arguments;
        var (batch, first) = (unit.Slice.Batch, unit.Slice.QueryStart + unit.Query);
        for (var row = 0; row < unit.Rows; row += MicroKernel.Rows)
        {
            var rows = Math.Min(unit.Rows - row, MicroKernel.Rows);
            var strip = unit.QueryStrips + (row * _shape.Depth);
            Packing.Strip(a.Query.Row(batch, unit.Head, first + row), (nint)a.Query.RowStride, rows, _problem.Width, a.Scale, strip);
            if (_problem.HasLowRank)
            {
                Packing.Strip(
                    a.LowRankQuery.Row(batch, unit.Head, first + row), (nint)a.LowRankQuery.RowStride, rows, _problem.Rank, 1, strip
                        + (MicroKernel.Rows * _problem.Width));
            }
        }

        for (var row = 0; row < unit.Rows; row++)
        {
            unit.Numbers[row] = a.Normalizer switch
            {
                Normalizer.Softmax => a.LogSumExp[(((batch * _problem.Heads) + unit.Head) * _problem.Queries) + first + row],
                Normalizer.ReluOverPosition => 1 / _problem.KeysUpTo(unit.Slice, unit.Query + row),
                _ => 0,
            };
        }
    }

    /// <summary>Adds the weights of a strip to the sums of its columns.</summary>
    /// <typeparam name="TMasks">One where a score may be minus infinity: a pair that does not exist, whatever its row's
    /// log-sum-exp.</typeparam>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddWeights<TMasks>(float* scores, StripColumns columns, int rows, float* numbers, float* sums)
        where TMasks : struct, IConstant
    {
        const int stride = MicroKernel.ScoreStride;
        for (var column = columns.First & -TOps.Lanes; column < columns.End; column += TOps.Lanes)
        {
            var at = scores + column;
            var sum = TOps.Zero;
            if (rows == MicroKernel.Rows)
            {
                // Written out: six chains of exponentials side by side hide each other's latency.
                var low = TOps.Add(Weight<TMasks>(at, numbers), Weight<TMasks>(at + stride, numbers + 1));
                var middle = TOps.Add(Weight<TMasks>(at + (2 * stride), numbers + 2), Weight<TMasks>(at + (3 * stride), numbers + 3));
                var high = TOps.Add(Weight<TMasks>(at + (4 * stride), numbers + 4), Weight<TMasks>(at + (5 * stride), numbers + 5));
                sum = TOps.Add(TOps.Add(low, middle), high);
            }
            else
            {
                for (var row = 0; row < rows; row++)
                {
                    sum = TOps.Add(sum, Weight<TMasks>(at + (row * stride), numbers + row));
                }
            }

            if (column < columns.First || column + TOps.Lanes > columns.End)
            {
                sum = TOps.And(sum, TOps.And(
                    TOps.GreaterThanOrEqual(TOps.Indices, TOps.Create(columns.First - column)),
                        TOps.LessThan(TOps.Indices, TOps.Create(columns.End - column))));
            }

            TOps.Store(TOps.Add(TOps.Load(sums + column), sum), sums + column);
        }
    }

    /// <summary>Adds the weights p of a strip, and p ln p, to the sums of its columns. A pair that does not exist adds nothing, whatever its row's log-sum-exp.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddProducts(float* scores, StripColumns columns, int rows, float* numbers, float* sums, float* products)
    {
        var lowest = TOps.Create(float.MinValue);
        for (var column = columns.First & -TOps.Lanes; column < columns.End; column += TOps.Lanes)
        {
            var (sum, product) = (TOps.Zero, TOps.Zero);
            for (var row = 0; row < rows; row++)
            {
                var s = TOps.Load(scores + column + (row * MicroKernel.ScoreStride));
                var logarithm = TOps.Subtract(s, TOps.Create(numbers[row]));
                var missing = TOps.LessThan(s, lowest);
                var weight = TOps.Select(missing, TOps.Zero, VectorMath.Exp<TVector, TOps>(logarithm));
                sum = TOps.Add(sum, weight);
                product = TOps.Add(product, TOps.Multiply(weight, TOps.Select(missing, TOps.Zero, logarithm)));
            }

            if (column < columns.First || column + TOps.Lanes > columns.End)
            {
                var inside = TOps.And(
                    TOps.GreaterThanOrEqual(TOps.Indices, TOps.Create(columns.First - column)), TOps.LessThan(TOps.Indices, TOps.Create(columns.End - column)));
                (sum, product) = (TOps.And(sum, inside), TOps.And(product, inside));
            }

            TOps.Store(TOps.Add(TOps.Load(sums + column), sum), sums + column);
            TOps.Store(TOps.Add(TOps.Load(products + column), product), products + column);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TVector Weight<TMasks>(float* score, float* number)
        where TMasks : struct, IConstant
    {
        var s = TOps.Load(score);
        var weight = TNormalizer.Weigh<TVector, TOps>(s, TOps.Zero, TOps.Create(*number), TOps.Zero, out _);
        return TMasks.Value == 0 ? weight : TOps.Select(TOps.LessThan(s, TOps.Create(float.MinValue)), TOps.Zero, weight);
    }

    private struct Unit
    {
        public SequenceSlice Slice;
        public int Head;
        public long Query;
        public int Rows;
        public float* KeyPanels;
        public float* QueryStrips;
        public float* Numbers;
        public float* Scores;
        public float* Sums;
        public float* Products;
        public StripColumns* Columns;

        public static Unit Create(BackwardShape shape, Workspace workspace)
        {
            const long rows = BackwardShape.MostStrips * MicroKernel.Rows;
            var (panels, strips, numbers, scores) =
                (Workspace.Lines(shape.PanelKeys * shape.Depth), Workspace.Lines(rows * shape.Depth), Workspace.Lines(rows),
                    rows * MicroKernel.ScoreStride);
            var sums = Workspace.Lines(shape.PanelKeys);
            var memory = workspace.Take(panels + strips + numbers + scores + (2 * sums)
                + (BackwardShape.MostStrips * sizeof(StripColumns) / sizeof(float)));
            return new Unit
            {
                KeyPanels = memory,
                QueryStrips = memory + panels,
                Numbers = memory + panels + strips,
                Scores = memory + panels + strips + numbers,
                Sums = memory + panels + strips + numbers + scores,
                Products = memory + panels + strips + numbers + scores + sums,
                Columns = (StripColumns*)(memory + panels + strips + numbers + scores + (2 * sums)),
            };
        }
    }
}
