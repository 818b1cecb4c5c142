using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>Tensors that the kernel writes statistics into.</summary>
internal sealed unsafe class StatisticsBuffers
{
    private readonly Tensor? _entropy, _maximum, _maximumKey, _meanDistance, _setMass, _keySet, _topWeights, _topKeys;
    private readonly int _topCount;

    /// <summary>Allocates what a request asks for, in the caller's dispose scope.</summary>
    public StatisticsBuffers(in AttentionShape shape, AttentionStatisticsRequest request)
    {
        var (batch, heads, queries, keys) = (shape.Batch, shape.Heads, shape.Queries, shape.Keys);
        Tensor Rows(ScalarType type = ScalarType.Float32) => empty(batch, heads, queries, type);
        LogSumExp = Rows();
        _entropy = request.Entropy ? Rows() : null;
        _maximum = request.Maximum ? Rows() : null;
        _maximumKey = request.Maximum ? Rows(ScalarType.Int32) : null;
        _meanDistance = request.MeanDistance ? Rows() : null;
        _topCount = request.TopCount;
        if (_topCount > 0)
        {
            _topWeights = empty(batch, heads, queries, _topCount, ScalarType.Float32);
            _topKeys = empty(batch, heads, queries, _topCount, ScalarType.Int32);
        }

        if (request.KeySet is { } set)
        {
            _setMass = Rows();
            var members = set.dim() == 1 ? set.unsqueeze(0) : set;
            _keySet = zeros(members.size(0), keys, ScalarType.Bool);
            _keySet.narrow(1, 0, members.size(1)).copy_(members);
        }

        MassPerKey = request.MassPerKey || request.KeyEntropy ? empty(batch, heads, keys, ScalarType.Float32) : null;
        KeyEntropy = request.KeyEntropy ? empty(batch, heads, keys, ScalarType.Float32) : null;
    }

    /// <summary>Log-sum-exp <c>[B, H, Nq]</c>, always wanted.</summary>
    public Tensor LogSumExp { get; }

    /// <summary>Mass per key <c>[B, H, Nk]</c>, where wanted.</summary>
    public Tensor? MassPerKey { get; }

    /// <summary>Entropy of every key <c>[B, H, Nk]</c>, where wanted.</summary>
    public Tensor? KeyEntropy { get; }

    /// <summary>The kernel's view of the row statistics.</summary>
    public RowStatistics Rows() => new()
    {
        Entropy = Floats(_entropy),
        Maximum = Floats(_maximum),
        MaximumKey = (int*)Floats(_maximumKey),
        MeanDistance = Floats(_meanDistance),
        SetMass = Floats(_setMass),
        KeySet = (byte*)Floats(_keySet),
        KeySetBatchStride = _keySet is null || _keySet.size(0) == 1 ? 0 : _keySet.size(1),
        TopCount = _topCount,
        TopWeights = Floats(_topWeights),
        TopKeys = (int*)Floats(_topKeys),
    };

    /// <summary>The statistics as hooks get them.</summary>
    public AttentionStatistics Result() => new()
    {
        LogSumExp = LogSumExp,
        Entropy = _entropy,
        Maximum = _maximum,
        MaximumKey = _maximumKey,
        MeanDistance = _meanDistance,
        SetMass = _setMass,
        TopWeights = _topWeights,
        TopKeys = _topKeys,
        MassPerKey = MassPerKey,
        KeyEntropy = KeyEntropy,
    };

    private static float* Floats(Tensor? tensor) => tensor is null ? null : (float*)TensorMemory.Data(tensor);
}
