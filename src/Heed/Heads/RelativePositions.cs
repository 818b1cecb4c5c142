using System.Collections.Concurrent;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Relative positions of a picture's tokens and pooled keys on a logarithmic scale, each different one once, from which a perceptron computes biases (Swin v2, arXiv 2111.09883; TransNeXt, arXiv 2311.17132, section 3.2).</summary>
public sealed class RelativePositions
{
    private const double Range = 8;
    private static readonly ConcurrentDictionary<(int Rows, int Columns, int KeyRows, int KeyColumns, int TrainedRows, int TrainedColumns), RelativePositions> s_known = new();

    private readonly float[] _table;
    private readonly long[] _index;

    private RelativePositions(int rows, int columns, int keyRows, int keyColumns, int trainedRows, int trainedColumns)
    {
        (Queries, Keys) = (rows * columns, keyRows * keyColumns);
        var (vertical, horizontal) = (Differences(rows, keyRows, trainedRows), Differences(columns, keyColumns, trainedColumns));
        var places = new SortedDictionary<(float, float), int>();
        foreach (var row in vertical)
        {
            foreach (var column in horizontal)
            {
                places[(row, column)] = 0;
            }
        }

        _table = new float[places.Count * 2];
        foreach (var (place, pair) in places.Keys.ToArray().Index())
        {
            places[pair] = place;
            (_table[2 * place], _table[(2 * place) + 1]) = (Logarithmic(pair.Item1), Logarithmic(pair.Item2));
        }

        _index = new long[Queries * Keys];
        for (var at = 0; at < _index.Length; at++)
        {
            var (query, key) = (at / (int)Keys, at % (int)Keys);
            var pair = (vertical[(query / columns * keyRows) + (key / keyColumns)], horizontal[(query % columns * keyColumns) + (key % keyColumns)]);
            _index[at] = places[pair];
        }
    }

    /// <summary>Positions that someone else computed.</summary>
    /// <param name="table">The different relative positions, <c>[n, 2]</c>.</param>
    /// <param name="index">Which of them a pair has, int64 <c>[queries, keys]</c>.</param>
    /// <exception cref="ArgumentException">They have other shapes, or the index points outside.</exception>
    public RelativePositions(Tensor table, Tensor index)
    {
        ArgumentNullException.ThrowIfNull(table);
        ArgumentNullException.ThrowIfNull(index);
        if (table.dim() != 2 || table.shape[1] != 2 || index.dim() != 2 || index.dtype != ScalarType.Int64)
        {
            throw new ArgumentException(
                $"Relative positions are a table [n, 2] and an int64 index [queries, keys], not [{string.Join(", ", table.shape)}] and {index.dtype} [{string.Join(", ", index.shape)}].", nameof(table));
        }

        using var scope = NewDisposeScope();
        (Queries, Keys) = (index.shape[0], index.shape[1]);
        _table = table.to(float32).cpu().contiguous().data<float>().ToArray();
        _index = index.cpu().contiguous().data<long>().ToArray();
        if (_index.Any(place => place < 0 || place >= Count))
        {
            throw new ArgumentException($"The index of relative positions points outside the table of {Count}.", nameof(index));
        }
    }

    /// <summary>Number of queries.</summary>
    public long Queries { get; }

    /// <summary>Number of keys.</summary>
    public long Keys { get; }

    /// <summary>Number of different relative positions.</summary>
    public long Count => _table.Length / 2;

    /// <summary>The positions of a picture's tokens relative to the keys of the same picture, pooled to fewer rows and columns or not at all. Kept: models have the same few.</summary>
    /// <param name="rows">Rows of the queries.</param>
    /// <param name="columns">Columns of the queries.</param>
    /// <param name="keyRows">Rows of the keys.</param>
    /// <param name="keyColumns">Columns of the keys.</param>
    /// <param name="trainedRows">Rows of the queries at the size that the perceptron was trained at, which the differences are measured in; 0: <paramref name="rows"/>.</param>
    /// <param name="trainedColumns">Columns of the queries at that size; 0: <paramref name="columns"/>.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is below 1.</exception>
    public static RelativePositions Of(int rows, int columns, int keyRows, int keyColumns, int trainedRows = 0, int trainedColumns = 0)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(rows, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(columns, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(keyRows, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(keyColumns, 1);
        var sizes = (rows, columns, keyRows, keyColumns, trainedRows > 0 ? trainedRows : rows, trainedColumns > 0 ? trainedColumns : columns);
        return s_known.GetOrAdd(sizes, sizes => new(sizes.Rows, sizes.Columns, sizes.KeyRows, sizes.KeyColumns, sizes.TrainedRows, sizes.TrainedColumns));
    }

    /// <summary>The different relative positions <c>[Count, 2]</c> (row, column), in ascending order: <c>sign(r) log2(|r| + 1) / log2(8)</c> of differences r between -8 and 8.</summary>
    public Tensor Table() => tensor(_table).view(-1, 2);

    /// <summary>Which of them a pair has, int64 <c>[Queries, Keys]</c>.</summary>
    public Tensor Index() => tensor(_index).view(Queries, Keys);

    /// <summary>The biases of all pairs: the perceptron reads every relative position once.</summary>
    /// <param name="first">2 to hidden.</param>
    /// <param name="second">Hidden to heads.</param>
    /// <returns><c>[1, H, Queries, Keys]</c>.</returns>
    public Tensor Bias(Linear first, Linear second)
    {
        ArgumentNullException.ThrowIfNull(first);
        ArgumentNullException.ThrowIfNull(second);
        using var scope = NewDisposeScope();
        var values = second.forward(nn.functional.relu(first.forward(Table().to(first.weight!.dtype).to(first.weight.device)))).transpose(0, 1);
        // Not index_select, whose gradient libtorch adds up pair by pair.
        return values.gather(1, tensor(_index, device: values.device).unsqueeze(0).expand(values.shape[0], -1)).view(1, -1, Queries, Keys).MoveToOuterDisposeScope();
    }

    private static float Logarithmic(float difference) => (float)(Math.Sign(difference) * Math.Log2(Math.Abs(difference) + 1.0) / Math.Log2(Range));

    /// <summary>Differences of coordinates, queries by keys, scaled to -8 ... 8. Pooled keys stand at the mean of what they pool. In float32, as the authors compute them: which differences are equal depends on it.</summary>
    private static float[] Differences(int queries, int keys, int trained)
    {
        var differences = new float[queries * keys];
        for (var query = 0; query < queries; query++)
        {
            for (var key = 0; key < keys; key++)
            {
                // Adaptive pooling: cell k of n averages from floor(k m / n) to ceil((k + 1) m / n).
                var (first, end) = (key * queries / keys, (((key + 1) * queries) + keys - 1) / keys);
                differences[(query * keys) + key] = (query - ((first + end - 1) / 2f)) / Math.Max(1, trained - 1) * (float)Range;
            }
        }

        return differences;
    }
}
