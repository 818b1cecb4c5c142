using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>A call of one query row in memory, for edits in generation: a handful of tensor operations per layer would cost more than the attention.</summary>
internal readonly unsafe ref struct DecodingRow
{
    private readonly TensorView _query;
    private readonly TensorView _key;
    private readonly TensorView _value;
    private readonly TensorView _output;
    private readonly float* _logSumExp;
    private readonly float _scale;

    /// <summary>Views a call that <see cref="Fits"/>. The caller keeps the call and the output alive.</summary>
    public DecodingRow(AttentionCall call, Tensor output)
    {
        _query = TensorMemory.View(call.Query);
        _key = TensorMemory.View(call.Key);
        _value = TensorMemory.View(call.Value);
        _output = TensorMemory.View(output);
        _logSumExp = call.LogSumExp is { } rows ? (float*)TensorMemory.Data(rows) : null;
        _scale = (float)(call.Options.Scale ?? 1 / Math.Sqrt(_query.Width));
    }

    public int Batch => (int)_query.Batch;

    public int Heads => (int)_query.Heads;

    public int Keys => (int)_key.Length;

    /// <summary>Whether a call is one query that sees every key by plain scaled products: what generation does.</summary>
    public static bool Fits(AttentionCall call)
    {
        var options = call.Options;
        return call.Query.size(2) == 1 && call.Query.dtype == ScalarType.Float32 && call.Query.size(3) > 0 && call.Key.size(2) > 0
            && options.Causal != Causality.AlignedToStart && (options.WindowBefore is null || options.WindowBefore >= call.Key.size(2) - 1) && options.WindowAfter is null
            && options.Softcap is null && options.Normalizer == Normalizer.Softmax && options.Sinks is null && options.Mask is null && options.BlockMask is null && options.KeyRuns is null
            && options.Selector is null && options.Biases.Count == 0 && options.QueryLengths is null && options.KeyLengths is null && options.QueryOffsets is null
            && options.QueryPositions is null && options.Gate is null
            && TensorMemory.HasContiguousRows(call.Query) && TensorMemory.HasContiguousRows(call.Key) && TensorMemory.HasContiguousRows(call.Value);
    }

    /// <summary>The row's output of a head.</summary>
    public Span<float> Output(int batch, int head) => new(_output.Row(batch, head, 0), (int)_output.Width);

    /// <summary>The row's log-sum-exp.</summary>
    public float LogSumExp(int batch, int head) => _logSumExp[(batch * Heads) + head];

    /// <summary>Scores of keys that follow each other.</summary>
    public void Scores(int batch, int head, long first, Span<float> scores) => AttentionRow.Scores(_query, _key, batch, head, 0, _scale, first, scores);

    /// <summary>Scores of runs of keys, one after another.</summary>
    public void Scores(int batch, int head, ReadOnlySpan<KeyRange> runs, Span<float> scores)
    {
        foreach (var run in runs)
        {
            Scores(batch, head, run.First, scores[..run.Count]);
            scores = scores[run.Count..];
        }
    }

    /// <summary>Adds weighted values of keys that follow each other to the output.</summary>
    public void Add(int batch, int head, long first, ReadOnlySpan<float> weights) =>
        AttentionRow.Add(_value, batch, head / (_query.Heads / _value.Heads), first, weights, Output(batch, head));

    /// <summary>Adds weighted values of runs of keys to the output.</summary>
    public void Add(int batch, int head, ReadOnlySpan<KeyRange> runs, ReadOnlySpan<float> weights)
    {
        foreach (var run in runs)
        {
            Add(batch, head, run.First, weights[..run.Count]);
            weights = weights[run.Count..];
        }
    }
}

/// <summary>Keys that follow each other.</summary>
internal readonly record struct KeyRange(long First, int Count)
{
    /// <summary>The runs of ascending keys.</summary>
    public static KeyRange[] Of(ReadOnlySpan<long> keys)
    {
        List<KeyRange> runs = [];
        foreach (var key in keys)
        {
            if (runs.Count > 0 && runs[^1].First + runs[^1].Count == key)
            {
                runs[^1] = runs[^1] with { Count = runs[^1].Count + 1 };
            }
            else
            {
                runs.Add(new(key, 1));
            }
        }

        return [.. runs];
    }
}
