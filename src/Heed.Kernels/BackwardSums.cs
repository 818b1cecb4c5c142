using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Heed.Kernels;

/// <summary>
/// The gradients that are sums of the gradient of the scores: biases, ALiBi slopes, sinks. A dense bias with a value per pair receives its
/// gradient tile by tile; everything else is summed per head first, in memory proportional to the sequence, and over the dimensions that a
/// bias repeats at the end, always in the same order.
/// </summary>
internal readonly unsafe struct BackwardSums
{
    private readonly CheckedProblem _problem;
    private readonly AttentionGradients _g;
    private readonly int _splits;
    private readonly float* _columns;
    private readonly float* _rows;
    private readonly double* _slopes;
    private readonly double* _sinks;

    /// <summary>Prepares the sums.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="gradients">Where the gradients go.</param>
    /// <param name="shape">How the pass is cut.</param>
    /// <param name="memory"><see cref="FloatsOf"/> floats, kept until <see cref="Store"/>.</param>
    public BackwardSums(CheckedProblem problem, in AttentionGradients gradients, BackwardShape shape, float* memory)
    {
        (_problem, _g, _splits) = (problem, gradients, shape.Splits);
        var (columns, rows, heads) = Sizes(problem, gradients, shape);
        NativeMemory.Clear(memory, (nuint)((columns + rows) * sizeof(float)));
        _columns = columns > 0 ? memory : null;
        _rows = rows > 0 ? memory + columns : null;
        _slopes = (double*)(memory + columns + rows);
        _sinks = _slopes + heads;
    }

    /// <summary>Whether a tile's gradients go anywhere but into the products.</summary>
    public bool WantsTiles => WantsPairs || _columns != null || _rows != null || _g.AlibiSlopes != null;

    /// <summary>Whether a dense bias has a value, and a gradient, per pair.</summary>
    public bool WantsPairs => _g.Bias.IsGiven && _g.Bias.QueryStride != 0 && _g.Bias.KeyStride != 0;

    /// <summary>Floats that the sums need.</summary>
    public static long FloatsOf(CheckedProblem problem, in AttentionGradients gradients, BackwardShape shape)
    {
        var (columns, rows, heads) = Sizes(problem, gradients, shape);
        return columns + rows + (2 * heads * (sizeof(double) / sizeof(float)));
    }

    /// <summary>Clears a row of the dense bias's gradient.</summary>
    public void ClearPairs(long batch, long head, long query) =>
        new Span<float>((float*)_g.Bias.Data + (batch * _g.Bias.BatchStride) + (head * _g.Bias.HeadStride) + (query * _g.Bias.QueryStride),
            _problem.Keys).Clear();

    /// <summary>Starts a head of a unit.</summary>
    public void Begin(ref BackwardUnit unit)
    {
        (unit.SlopeGradient, unit.SinkGradient) = (0, 0);
        if (_columns != null)
        {
            NativeMemory.Clear(unit.ColumnSums, (nuint)(Workspace.Lines(unit.Slice.KeyLength) * sizeof(float)));
        }
    }

    /// <summary>Takes the gradients of a strip of scores, before the modifier.</summary>
    /// <param name="unit">The unit.</param>
    /// <param name="row">First row of the strip in the block.</param>
    /// <param name="rows">Its rows.</param>
    /// <param name="firstKey">Key of the tile's first column, within the sequence.</param>
    /// <param name="columns">The strip's columns; beside them, to whole vectors, there are zeros.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void Add<TVector, TOps>(ref BackwardUnit unit, int row, int rows, long firstKey, StripColumns columns)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var gradients = unit.Gradients + (row * MicroKernel.ScoreStride);
        for (var end = row + rows; row < end; row++, gradients += MicroKernel.ScoreStride)
        {
            var query = unit.Query + row;
            if (WantsPairs)
            {
                var bias = (float*)_g.Bias.Data + (unit.Slice.Batch * _g.Bias.BatchStride) + (unit.Head * _g.Bias.HeadStride)
                    + ((unit.Slice.QueryStart + query) * _g.Bias.QueryStride) + unit.Slice.KeyStart + firstKey + columns.First;
                var sums = new Span<float>(bias, columns.End - columns.First);
                TensorPrimitives.Add(sums, new ReadOnlySpan<float>(gradients + columns.First, sums.Length), sums);
            }

            var (sum, slope) = (TOps.Zero, TOps.Zero);
            var distance = TOps.Create(query + unit.Slice.Shift - firstKey);
            for (var column = columns.First & -TOps.Lanes; column < columns.End; column += TOps.Lanes)
            {
                var gradient = TOps.Load(gradients + column);
                sum = TOps.Add(sum, gradient);
                slope = TOps.MultiplyAdd(gradient, TOps.Abs(TOps.Subtract(distance, TOps.Add(TOps.Indices, TOps.Create(column)))), slope);
                if (_columns != null)
                {
                    TOps.Store(TOps.Add(TOps.Load(unit.ColumnSums + firstKey + column), gradient), unit.ColumnSums + firstKey + column);
                }
            }

            unit.SlopeGradient -= TOps.Sum(slope);
            if (_rows != null)
            {
                var head = (unit.Slice.Batch * _problem.Heads) + unit.Head;
                _rows[(head * _problem.Queries) + unit.Slice.QueryStart + query] += TOps.Sum(sum);
            }
        }
    }

    /// <summary>As <see cref="Add"/> for gathered columns.</summary>
    /// <param name="unit">The unit.</param>
    /// <param name="tile">The columns, prepared for the head.</param>
    /// <param name="gradients">Gradients of the first row, rows <see cref="MicroKernel.ScoreStride"/> floats apart; zeros past the last column.</param>
    /// <param name="row">First row, within the block.</param>
    /// <param name="rows">Number of rows.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void AddGathered<TVector, TOps>(ref BackwardUnit unit, in GatheredTile tile, float* gradients, int row, int rows)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        for (var end = row + rows; row < end; row++, gradients += MicroKernel.ScoreStride)
        {
            var query = unit.Query + row;
            if (WantsPairs)
            {
                var bias = (float*)_g.Bias.Data + (unit.Slice.Batch * _g.Bias.BatchStride) + (unit.Head * _g.Bias.HeadStride)
                    + ((unit.Slice.QueryStart + query) * _g.Bias.QueryStride) + unit.Slice.KeyStart;
                for (var column = 0; column < tile.Count; column++)
                {
                    bias[tile.Keys[column]] += gradients[column];
                }
            }

            for (var column = 0; _columns != null && column < tile.Count; column++)
            {
                unit.ColumnSums[tile.Keys[column]] += gradients[column];
            }

            var (sum, slope) = (TOps.Zero, TOps.Zero);
            var position = TOps.Create(row);
            for (var column = 0; column < tile.Count; column += TOps.Lanes)
            {
                var gradient = TOps.Load(gradients + column);
                sum = TOps.Add(sum, gradient);
                slope = TOps.MultiplyAdd(gradient, TOps.Abs(TOps.Subtract(position, TOps.Load(tile.Distances + column))), slope);
            }

            unit.SlopeGradient -= TOps.Sum(slope);
            if (_rows != null)
            {
                var head = (unit.Slice.Batch * _problem.Heads) + unit.Head;
                _rows[(head * _problem.Queries) + unit.Slice.QueryStart + query] += TOps.Sum(sum);
            }
        }
    }

    /// <summary>Ends a head of a unit.</summary>
    public void End(in BackwardUnit unit)
    {
        var at = (((long)unit.Slice.Index * _problem.Heads) + unit.Head) * _splits + unit.Split;
        (_slopes[at], _sinks[at]) = (unit.SlopeGradient, unit.SinkGradient);
        if (_columns != null)
        {
            at = (((((unit.Slice.Batch * _problem.Heads) + unit.Head) * _splits) + unit.Split) * _problem.Keys) + unit.Slice.KeyStart;
            var bytes = unit.Slice.KeyLength * sizeof(float);
            Buffer.MemoryCopy(unit.ColumnSums, _columns + at, bytes, bytes);
        }
    }

    /// <summary>Adds up the sums of all heads and writes the gradients.</summary>
    public void Store()
    {
        StoreHeads(_g.AlibiSlopes, _slopes);
        StoreHeads(_g.Sinks, _sinks);
        if (_g.KeyBias.IsGiven)
        {
            Fold(_g.KeyBias, _g.KeyBias.KeyStride, _columns, _splits, _problem.Keys);
        }

        if (_g.Bias.IsGiven && _g.Bias.KeyStride == 0)
        {
            Fold(_g.Bias, _g.Bias.QueryStride, _rows, 1, _problem.Queries);
        }
        else if (_g.Bias.IsGiven && _g.Bias.QueryStride == 0)
        {
            Fold(_g.Bias, _g.Bias.KeyStride, _columns, _splits, _problem.Keys);
        }
    }

    private static (long Columns, long Rows, long Heads) Sizes(CheckedProblem problem, in AttentionGradients gradients, BackwardShape shape)
    {
        var heads = (long)problem.Batch * problem.Heads;
        var byRow = gradients.Bias.IsGiven && gradients.Bias.KeyStride == 0;
        var byColumn = gradients.KeyBias.IsGiven || (gradients.Bias.IsGiven && gradients.Bias.QueryStride == 0 && !byRow);
        return (
            byColumn ? Workspace.Lines(heads * shape.Splits * problem.Keys) : 0,
            byRow ? Workspace.Lines(heads * problem.Queries) : 0,
            (long)problem.Sequences * problem.Heads * shape.Splits);
    }

    private void StoreHeads(float* destination, double* sums)
    {
        for (var head = 0; destination != null && head < _problem.Heads; head++)
        {
            double sum = 0;
            for (var i = 0; i < _problem.Sequences * _splits; i++)
            {
                sum += sums[(((long)(i / _splits) * _problem.Heads) + head) * _splits + (i % _splits)];
            }

            destination[head] = (float)sum;
        }
    }

    /// <summary>Sums [batch, heads, repeats, count] over the repeats and over the dimensions whose stride is zero.</summary>
    private void Fold(in BiasView view, long stride, float* sums, int repeats, int count)
    {
        var (batches, heads, elements) = (_problem.Batch, _problem.Heads, count);
        var (ownBatches, ownHeads, own) = (view.BatchStride == 0 ? 1 : batches, view.HeadStride == 0 ? 1 : heads,
            stride == 0 ? 1 : elements);
        for (var batch = 0; batch < ownBatches; batch++)
        {
            for (var head = 0; head < ownHeads; head++)
            {
                for (var element = 0; element < own; element++)
                {
                    double sum = 0;
                    for (var b = batch; b < (view.BatchStride == 0 ? batches : batch + 1); b++)
                    {
                        for (var h = head; h < (view.HeadStride == 0 ? heads : head + 1); h++)
                        {
                            for (var r = 0; r < repeats; r++)
                            {
                                var first = sums + ((((((long)b * heads) + h) * repeats) + r) * count);
                                for (var e = element; e < (stride == 0 ? elements : element + 1); e++)
                                {
                                    sum += first[e];
                                }
                            }
                        }
                    }

                    ((float*)view.Data)[(batch * view.BatchStride) + (head * view.HeadStride) + (element * stride)] = (float)sum;
                }
            }
        }
    }
}
