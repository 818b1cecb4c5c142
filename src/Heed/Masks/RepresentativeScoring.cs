using System.Numerics.Tensors;
using Heed.Interop;
using Heed.Kernels;
using static TorchSharp.torch;
using Tensor = TorchSharp.torch.Tensor;

namespace Heed.Masks;

/// <summary>
/// Scores blocks of keys for a block of queries by representatives: gather, dot, maximum over the voting rows. Float32 (and keys of half precision) go through the vectorised kernel, float64 through a plain loop, so that
/// a search gives in float64 what its definition says to the last index.
/// </summary>
/// <remarks>One instance serves one thread; the tensors it reads must stay alive.</remarks>
internal sealed unsafe class RepresentativeScoring
{
    private readonly Tensor _query;
    private readonly TensorView _keys;
    private readonly Tensor _key;
    private readonly long _keyHeads;
    private readonly long _headsPerKey;
    private readonly int _width;
    private readonly int _keysPerBlock;
    private readonly int _step;
    private readonly bool _isDouble;
    private readonly float[] _packed = [];
    private readonly float[] _maxima = [];
    private readonly double[] _rows = [];
    private int _rowCount;
    private nint _keyStart;

    /// <summary>Prepares scoring of blocks.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>, float32 or float64, contiguous rows.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>, contiguous rows; the query's dtype or a half type beside float32.</param>
    /// <param name="mostRows">Most voting rows of a block of queries.</param>
    /// <param name="mostBlocks">Most blocks scored at once.</param>
    /// <param name="keysPerBlock">Keys of a block.</param>
    /// <param name="step">Every how many keys of a block count, from 1.</param>
    public RepresentativeScoring(Tensor query, Tensor key, int mostRows, int mostBlocks, int keysPerBlock, int step)
    {
        (_query, _key, _keyHeads, _headsPerKey, _width) = (query, key, key.size(1), query.size(1) / key.size(1), checked((int)query.size(3)));
        (_keysPerBlock, _step) = (keysPerBlock, step);
        _isDouble = query.dtype == ScalarType.Float64;
        if (_isDouble)
        {
            _rows = new double[mostRows * (long)_width];
        }
        else
        {
            _keys = TensorMemory.View(key);
            _packed = new float[GatheredMaxima.PackedRows(mostRows) * (long)GatheredMaxima.PackedStride(_width)];
            _maxima = new float[mostBlocks];
        }
    }

    /// <summary>Queries and keys that can be read in place: detached, of one of the types above, with contiguous rows. What is made belongs to the current dispose scope.</summary>
    public static (Tensor Query, Tensor Key) Readable(Tensor query, Tensor key)
    {
        (query, key) = (query.detach(), key.detach());
        if (query.dtype == ScalarType.Float64)
        {
            key = TensorMemory.As(ScalarType.Float64, key);
        }
        else
        {
            query = TensorMemory.As(ScalarType.Float32, query);
        }

        return (TensorMemory.WithContiguousRows(query.cpu()), TensorMemory.WithContiguousRows(key.cpu()));
    }

    /// <summary>Chooses whose keys are scored by which rows.</summary>
    /// <param name="batch">The batch item.</param>
    /// <param name="head">The query head.</param>
    /// <param name="rows">The voting rows.</param>
    public void Choose(int batch, int head, ReadOnlySpan<int> rows)
    {
        _rowCount = rows.Length;
        var start = (batch * _query.stride(0)) + (head * _query.stride(1));
        var keyStart = (batch * _key.stride(0)) + (head / _headsPerKey * _key.stride(1));
        _keyStart = TensorMemory.Data(_key) + (nint)(keyStart * _key.ElementSize);
        for (var i = 0; i < rows.Length; i++)
        {
            var at = start + (rows[i] * _query.stride(2));
            if (_isDouble)
            {
                new ReadOnlySpan<double>((double*)TensorMemory.Data(_query) + at, _width).CopyTo(_rows.AsSpan(i * _width));
            }
            else
            {
                GatheredMaxima.Pack(new ReadOnlySpan<float>((float*)TensorMemory.Data(_query) + at, _width), _packed, i, rows.Length);
            }
        }
    }

    /// <summary>The largest product of any voting row with any counting key of each block; minus infinity where a block has no key.</summary>
    public void Score(ReadOnlySpan<int> blocks, Span<double> scores)
    {
        if (!_isDouble)
        {
            GatheredMaxima.Compute(_packed, _rowCount, _keys with { Data = _keyStart }, blocks, _keysPerBlock, _step, _maxima);
            TensorPrimitives.ConvertTruncating<float, double>(_maxima.AsSpan(0, blocks.Length), scores);
            return;
        }

        var (length, stride) = (_key.size(2), _key.stride(2));
        for (var i = 0; i < blocks.Length; i++)
        {
            var best = double.NegativeInfinity;
            var first = blocks[i] * (long)_keysPerBlock;
            for (var k = first + _step - 1; k < Math.Min(first + _keysPerBlock, length); k += _step)
            {
                var row = new ReadOnlySpan<double>((double*)_keyStart + (k * stride), _width);
                for (var r = 0; r < _rowCount; r++)
                {
                    best = Math.Max(best, TensorPrimitives.Dot(row, _rows.AsSpan(r * _width, _width)));
                }
            }

            scores[i] = best;
        }
    }
}
