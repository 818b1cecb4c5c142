using Heed.Biases;
using Heed.Kernels;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Tests;

/// <summary>A random attention call: any shape, layout and combination of options that the door computes.</summary>
internal sealed class RandomCall : IDisposable
{
    private readonly Random _random;
    private readonly Generator _generator;
    private readonly List<string> _words = [];

    /// <summary>Draws a call; the tensors live in the current dispose scope.</summary>
    public RandomCall(int seed)
    {
        _random = new(seed);
        _generator = new((ulong)(uint)seed);
        var packed = _random.Next(6) == 0;
        Batch = packed ? 1 : _random.Next(1, 4);
        KeyHeads = _random.Next(1, 3);
        Heads = KeyHeads * _random.Next(1, 4);
        Queries = _random.Next(8) == 0 ? 1 : _random.Next(1, 80);
        Keys = _random.Next(3) == 0 ? Queries : _random.Next(1, 150);
        Width = Choose(1, 3, 8, 16, 32, 65);
        var valueWidth = _random.Next(3) == 0 ? Choose(1, 5, 24) : Width;
        Query = Layout(Heads, Queries, Width);
        Key = Layout(KeyHeads, Keys, Width);
        Value = Layout(KeyHeads, Keys, valueWidth);
        _words.Add($"B{Batch} H{Heads}/{KeyHeads} N{Queries}x{Keys} D{Width}/{valueWidth}");
        Options = Draw(packed, valueWidth);
    }

    public int Batch { get; }

    public int Heads { get; }

    public int KeyHeads { get; }

    public int Queries { get; }

    public int Keys { get; }

    public int Width { get; }

    public Tensor Query { get; }

    public Tensor Key { get; }

    public Tensor Value { get; }

    public AttentionOptions Options { get; }

    /// <summary>The inputs that a gradient may flow to, by name.</summary>
    public Dictionary<string, Tensor> Inputs(Func<Tensor, Tensor> change, out AttentionOptions options)
    {
        Dictionary<string, Tensor> inputs = new() { ["query"] = change(Query), ["key"] = change(Key), ["value"] = change(Value) };
        Tensor? Add(string name, Tensor? tensor) => tensor is null ? null : inputs[name] = change(tensor);
        options = Options with
        {
            Sinks = Add("sinks", Options.Sinks),
            Gate = Add("gate", Options.Gate),
            Biases = [.. Options.Biases.Select(bias => (AttentionBias)(bias switch
            {
                DenseBias dense => new DenseBias(Add("dense bias", dense.Values)!),
                KeyBias perKey => new KeyBias(Add("key bias", perKey.Values)!),
                AlibiBias alibi => new AlibiBias(Add("slopes", alibi.Slopes)!),
                LowRankBias lowRank => new LowRankBias(Add("query factors", lowRank.QueryFactors)!, Add("key factors", lowRank.KeyFactors)!),
                _ => bias,
            }))],
        };
        return inputs;
    }

    public void Dispose() => _generator.Dispose();

    public override string ToString() => string.Join(", ", _words);

    private bool Often(int oneIn, string word)
    {
        var drawn = _random.Next(oneIn) == 0;
        if (drawn)
        {
            _words.Add(word);
        }

        return drawn;
    }

    private T Choose<T>(params T[] values) => values[_random.Next(values.Length)];

    private Tensor Normal(params long[] shape) => randn(shape, generator: _generator);

    /// <summary>A tensor <c>[B, heads, length, width]</c> in one of the layouts that models produce.</summary>
    private Tensor Layout(int heads, int length, int width) => _random.Next(4) switch
    {
        0 => Normal(Batch, length, heads, width).transpose(1, 2),
        1 => Normal(Batch, heads, length + 3, width + 2).narrow(2, 1, length).narrow(3, 1, width),
        2 => Normal(Batch, heads, width, length).transpose(2, 3),
        _ => Normal(Batch, heads, length, width),
    };

    private long Maybe(long size) => _random.Next(3) == 0 ? 1 : size;

    private AttentionOptions Draw(bool packed, int valueWidth)
    {
        var options = new AttentionOptions { Threads = _random.Next(3) };
        if (Often(2, "causal"))
        {
            options = options with { Causal = Choose(Causality.AlignedToEnd, Causality.AlignedToStart) };
        }

        if (Often(4, "scale"))
        {
            options = options with { Scale = Choose(0, 0.3, -0.2) };
        }

        if (Often(4, "window before"))
        {
            options = options with { WindowBefore = _random.Next(0, 40) };
        }

        if (Often(6, "window after"))
        {
            options = options with { WindowAfter = _random.Next(0, 40) };
        }

        if (Often(4, "softcap"))
        {
            options = options with { Softcap = Choose(0.7, 3.0) };
        }

        if (Often(5, "other normaliser"))
        {
            options = options with { Normalizer = Choose(Normalizer.ReluOverPosition, Normalizer.Sigmoid) };
        }

        if (options.Normalizer == Normalizer.Softmax && Often(4, "sinks"))
        {
            options = options with { Sinks = Normal(Heads) };
        }

        if (Often(5, "mask"))
        {
            options = options with { Mask = rand([Maybe(Batch), Maybe(Heads), Maybe(Queries), Maybe(Keys)], generator: _generator) < Choose(0.1, 0.6, 0.95) };
        }

        if (Often(5, "block mask"))
        {
            options = options with { BlockMask = Blocks() };
        }
        else if (Often(4, "key runs"))
        {
            options = options with { KeyRuns = Runs() };
        }

        if (Often(4, "gate"))
        {
            options = options with { Gate = Normal(Batch, Heads, Maybe(Queries), Maybe(valueWidth)) };
        }

        if (packed)
        {
            _words.Add("packed");
            var sequences = _random.Next(1, 4);
            options = options with { QueryOffsets = Offsets(sequences, Queries), KeyOffsets = Offsets(sequences, Keys) };
        }
        else
        {
            if (Often(5, "key lengths"))
            {
                options = options with { KeyLengths = Lengths(Keys) };
            }

            if (Often(6, "query lengths"))
            {
                options = options with { QueryLengths = Lengths(Queries) };
            }
        }

        return options with { Biases = DrawBiases() };
    }

    /// <summary>Short runs of keys, each for some rows of its block.</summary>
    private KeyRuns Runs()
    {
        var block = Choose(1, 16, 50, 200);
        var (batches, heads, blocks) = (Choose(1, Batch), Choose(1, KeyHeads, Heads), (Queries + block - 1) / block);
        List<int> offsets = [0];
        List<(int Key, int Keys, int Row, int Rows)> runs = [];
        for (var list = 0; list < batches * heads * blocks; list++)
        {
            var queries = Math.Min(block, Queries - (list % blocks * block));
            for (int key = _random.Next(6), keys; key < Keys; key += keys + _random.Next(12))
            {
                keys = Math.Min(_random.Next(1, 8), Keys - key);
                var row = _random.Next(2) == 0 ? 0 : _random.Next(queries);
                runs.Add((key, keys, row, _random.Next(3) == 0 ? 1 : _random.Next(1, queries - row + 1)));
            }

            offsets.Add(runs.Count);
        }

        return new(
            batches, heads, Queries, Keys, block, [.. offsets], [.. runs.Select(run => run.Key)], [.. runs.Select(run => run.Keys)],
            [.. runs.Select(run => run.Row)], [.. runs.Select(run => run.Rows)]);
    }

    private BlockMask Blocks()
    {
        var (queryBlock, keyBlock) = (Choose(16, 50, 64), Choose(16, 33, 64));
        var biased = new KeySelection(Queries, Keys, Choose(1, Batch), Choose(1, Heads), queryBlock, keyBlock);
        for (var b = 0; b < biased.Batches; b++)
        {
            for (var h = 0; h < biased.Heads; h++)
            {
                for (var block = 0; block < biased.QueryBlocks; block++)
                {
                    biased.AddBlocks(b, h, block, [_random.Next(biased.KeyBlocks)], _random.Next(2) * 0.5f);
                }

                biased.AddInterval(b, h, _random.Next(Queries), _random.Next(Keys), _random.Next(Keys));
            }
        }

        return biased.ToBlockMask();
    }

    private List<AttentionBias> DrawBiases()
    {
        List<AttentionBias> biases = [];
        if (Often(4, "dense bias"))
        {
            var values = _random.Next(2) == 0
                ? Normal(Maybe(Batch), Maybe(Heads), Maybe(Queries), Maybe(Keys))
                : Normal(Heads, Keys, Queries).transpose(1, 2);
            biases.Add(new DenseBias(_random.Next(3) == 0 ? values.masked_fill(rand(values.shape, generator: _generator) < 0.2, double.NegativeInfinity) : values));
        }

        if (Often(5, "key bias"))
        {
            biases.Add(new KeyBias(_random.Next(2) == 0 ? Normal(Maybe(Batch), Maybe(Heads), Keys) : Normal(Keys)));
        }

        if (Often(5, "ALiBi"))
        {
            biases.Add(new AlibiBias(Normal(Heads) * 0.1));
        }

        if (Often(5, "low-rank bias"))
        {
            var rank = _random.Next(1, 5);
            biases.Add(new LowRankBias(Normal(Maybe(Batch), Maybe(Heads), Queries, rank), Normal(Maybe(Heads), Keys, rank)));
        }

        return biases;
    }

    private Tensor Lengths(int most) => tensor(Enumerable.Range(0, Batch).Select(_ => (long)_random.Next(most + 1)).ToArray());

    private Tensor Offsets(int sequences, int end)
    {
        var inner = Enumerable.Range(0, sequences - 1).Select(_ => (long)_random.Next(end + 1)).Order().ToArray();
        return tensor([_random.Next(4) == 0 ? Math.Min(1, inner.Length == 0 ? end : inner[0]) : 0, .. inner, (long)end]);
    }
}
