using System.Text.Json;
using Heed.Lab.Verification;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Verification;

/// <summary>Cases of other shapes and options than the shipped ones, drawn at random and computed one element after the other as the papers define them.</summary>
public sealed class OtherCasesTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-cases-").FullName;
    private readonly Random _random = new(20261123);

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Blocks_are_selected_from_every_pool_as_defined()
    {
        for (var trial = 0; trial < 24; trial++)
        {
            var scopes = new[] { "head_global", "query_head", "overall", "block" };
            var (heads, width, size) = (_random.Next(1, 4), 4, _random.Next(1, 9));
            var offsets = new List<int> { 0 };
            for (var sequence = _random.Next(1, 4); sequence > 0; sequence--)
            {
                offsets.Add(offsets[^1] + _random.Next(1, 20));
            }

            var (tokens, scope) = (offsets[^1], scopes[trial % 4]);
            var byThreshold = scope == "block" || _random.Next(2) == 0;
            double threshold = new[] { 0.05, 0.25, 0.5, 0.9, 0.9999, 1 }[_random.Next(6)];
            var top = new[] { 1, 2, 3, 50 }[_random.Next(4)];
            var (query, key, value) = (Draw(tokens, heads, width), Draw(tokens, heads, width), Draw(tokens, heads, width));
            var blocks = (from sequence in Enumerable.Range(0, offsets.Count - 1)
                          from block in Enumerable.Range(0, (offsets[sequence + 1] - offsets[sequence] + size - 1) / size)
                          let start = offsets[sequence] + (block * size)
                          select (Start: start, End: Math.Min(start + size, offsets[sequence + 1]), First: offsets[sequence], Last: offsets[sequence + 1])).ToArray();
            var pairs = (from block in Enumerable.Range(0, blocks.Length) from head in Enumerable.Range(0, heads) from token in Enumerable.Range(0, tokens) select (block, head, token)).ToArray();
            var means = blocks.Select(block => key.narrow(0, block.Start, block.End - block.Start).mean([0L]).data<double>().ToArray()).ToArray();
            var queries = query.data<double>().ToArray();
            var similarity = pairs.ToDictionary(pair => pair, pair => Enumerable.Range(0, width).Sum(d => queries[(((pair.token * heads) + pair.head) * width) + d] * means[pair.block][(pair.head * width) + d]));
            bool IsValid((int Block, int Head, int Token) pair) => pair.Token >= blocks[pair.Block].First && pair.Token < blocks[pair.Block].Last;
            bool IsOwn((int Block, int Head, int Token) pair) => pair.Token >= blocks[pair.Block].Start && pair.Token < blocks[pair.Block].End;
            var selected = pairs.Where(IsOwn).ToHashSet();
            var pools = pairs.Where(IsValid).GroupBy(pair => scope switch
            {
                "head_global" => (pair.head, 0),
                "query_head" => (pair.head, pair.token),
                "block" => (pair.block, 0),
                _ => (0, 0),
            });
            foreach (var pool in pools)
            {
                var others = pool.Where(pair => !IsOwn(pair)).OrderByDescending(pair => similarity[pair]).ToList();
                if (!byThreshold)
                {
                    var inPool = scope == "query_head" ? 1 : scope == "head_global" ? tokens : tokens * heads;
                    selected.UnionWith(others.Take((Math.Min(top, blocks.Length) - 1) * inPool));
                    continue;
                }

                var (least, most) = (pool.Min(pair => similarity[pair]), pool.Max(pair => similarity[pair]));
                double Normal((int, int, int) pair) => (similarity[pair] - least) / (most - least <= 1e-6 ? 1 : most - least);
                var total = pool.Sum(pair => Normal(pair)) + 1e-6;
                var need = Math.Max(threshold - (pool.Where(IsOwn).Sum(pair => Normal(pair)) / total), 0);
                var sum = 0.0;
                foreach (var pair in others)
                {
                    selected.Add(pair);
                    sum += Normal(pair);
                    if (threshold < 1 && sum / total >= need)
                    {
                        break;
                    }
                }
            }

            var isFull = selected.All(IsOwn);
            var output = zeros(tokens, heads, width, dtype: float64);
            foreach (var head in Enumerable.Range(0, heads))
            {
                foreach (var token in Enumerable.Range(0, tokens))
                {
                    var keys = Enumerable.Range(0, blocks.Length).Where(block => isFull ? IsValid((block, head, token)) : selected.Contains((block, head, token)))
                        .SelectMany(block => Enumerable.Range(blocks[block].Start, blocks[block].End - blocks[block].Start)).Select(j => (long)j).ToArray();
                    output[token, head] = Attend(query[token, head], key.index_select(0, tensor(keys)).select(1, head), value.index_select(0, tensor(keys)).select(1, head), 0.4);
                }
            }

            Passes(
                "vmoba/Attention",
                new
                {
                    block_size = (double)size, scale = 0.4, select_mode = byThreshold ? "threshold" : "topk", selection_scope = scope, threshold, top_k = top,
                },
                new()
                {
                    ["in.query"] = query, ["in.key"] = key, ["in.value"] = value, ["in.cu_seqlens"] = tensor(offsets.ToArray()),
                    ["out.similarity"] = tensor(pairs.Select(pair => similarity[pair]).ToArray()).view(blocks.Length, heads, tokens),
                    ["out.selected"] = tensor(pairs.Select(pair => (byte)(selected.Contains(pair) ? 1 : 0)).ToArray()).view(blocks.Length, heads, tokens), ["out.output"] = output,
                });
        }
    }

    [Fact]
    public void Runs_of_ranks_get_levels_as_defined()
    {
        for (var trial = 0; trial < 24; trial++)
        {
            var isTopK = trial % 2 == 0;
            var (rows, count) = (_random.Next(1, 5), _random.Next(1, 40));
            var (keyBlock, tile) = new[] { (128, 32), (64, 32), (32, 32), (64, 16), (16, 16), (32, 8) }[_random.Next(6)];
            var (text, least) = (new[] { 0, 0, 1, 70, 300 }[_random.Next(5)], new[] { 0.06, 0, 0.2, 0.5 }[_random.Next(4)]);
            var ends = Enumerable.Range(0, 4).Select(_ => _random.NextDouble()).Order().Append(1).ToArray();
            var levels = Enumerable.Range(0, 5).Select(i => (Level: new[] { 1, 2, 4, 8, 0 }[i], Lower: i == 0 ? 0 : ends[i - 1], Upper: ends[i])).ToArray();
            if (!isTopK)
            {
                // Where importance is added up, the order in the list does not matter.
                _random.Shuffle(levels);
            }

            var importance = rand([1, 2, rows, count], dtype: float64).pow(3);
            var expected = zeros([1, 2, rows, count], dtype: int32);
            for (var row = 0; row < 2 * rows; row++)
            {
                var values = importance.view(-1, count)[row].data<double>().ToArray();
                var order = Enumerable.Range(0, count).OrderByDescending(block => values[block]).ToArray();
                var shares = order.Select((_, rank) => order.Take(rank + 1).Sum(block => values[block]) / values.Sum()).ToArray();
                var (result, start) = (new int[count], 0);
                foreach (var (level, _, upper) in isTopK ? levels : [.. levels.OrderBy(entry => entry.Upper)])
                {
                    var align = (int)Math.Ceiling(level / (double)(keyBlock / tile));
                    var within = shares.Count(share => share <= upper + 1e-6);
                    var end = isTopK ? Math.Min(count, (int)(count * upper)) : within > 0 ? within + 1 : start;
                    if (align > 1)
                    {
                        var run = (Math.Max(end - start, 0) + align - 1) / align * align;
                        end = start + run >= count ? start + ((count - start) / align * align) : start + run;
                    }
                    else if (!isTopK)
                    {
                        end = Math.Max(Math.Min(end, count), start);
                        end = level == 1 ? Math.Max(end, Math.Min(count, (int)(count * least) + 1)) : end;
                    }

                    for (var rank = start; rank < end; rank++)
                    {
                        result[order[rank]] = level;
                    }

                    start = Math.Max(start, end);
                }

                result.AsSpan(Math.Max(0, count - ((text + keyBlock - 1) / keyBlock))).Fill(1);
                expected.view(-1, count)[row].copy_(tensor(result));
            }

            Passes(
                "psa/LevelMap",
                new
                {
                    mode = isTopK ? "top_k" : "cumulative", levels = levels.Select(entry => new[] { entry.Level, entry.Lower, entry.Upper }), key_block = keyBlock, tile, text_length = text, min_full_ratio = least,
                },
                new() { ["in.importance"] = importance, ["out.level"] = expected });
        }
    }

    [Fact]
    public void Pooled_blocks_are_read_as_defined()
    {
        for (var trial = 0; trial < 16; trial++)
        {
            var (length, queryBlock, keyBlock, isCausal) = (_random.Next(3, 90), new[] { 4, 5, 16, 32 }[_random.Next(4)], new[] { 8, 16, 24, 64 }[_random.Next(4)], _random.Next(3) == 0);
            var (rows, columns) = ((length + queryBlock - 1) / queryBlock, (length + keyBlock - 1) / keyBlock);
            var map = Enumerable.Range(0, rows * columns).Select(_ => new[] { 0, 1, 2, 4, 8 }[_random.Next(5)]).ToArray();
            var (query, key, value) = (Draw(1, 1, length, 4), Draw(1, 1, length, 4), Draw(1, 1, length, 4));
            var output = zeros(1, 1, length, 4, dtype: float64);
            for (var i = 0; i < length; i++)
            {
                var (keys, values, raise) = (new List<Tensor>(), new List<Tensor>(), new List<double>());
                for (var column = 0; column < columns; column++)
                {
                    var r = map[(i / queryBlock * columns) + column];
                    for (var first = column * keyBlock; r > 0 && first < (column + 1) * keyBlock; first += r)
                    {
                        if ((r == 1 && first >= length) || (isCausal && first + r - 1 > i))
                        {
                            break;
                        }

                        // The last token stands for what fills up the last block.
                        var group = tensor(Enumerable.Range(first, r).Select(j => (long)Math.Min(j, length - 1)).ToArray());
                        keys.Add(key[0, 0].index_select(0, group).mean([0L]));
                        values.Add(value[0, 0].index_select(0, group).mean([0L]));
                        raise.Add(Math.Log(r));
                    }
                }

                if (keys.Count > 0)
                {
                    output[0, 0, i] = Attend(query[0, 0, i], stack(keys), stack(values), 0.5, tensor(raise.ToArray()));
                }
            }

            Passes(
                "psa/PyramidAttention", new { query_block = queryBlock, key_block = keyBlock, is_causal = isCausal, scale = 0.5 },
                new() { ["in.query"] = query, ["in.key"] = key, ["in.value"] = value, ["in.level"] = tensor(map).view(1, 1, rows, columns), ["out.output"] = output }, 5e-5, 1e-4);
        }
    }

    [Fact]
    public void Distances_hold_their_tolerance_without_gradients_too()
    {
        for (var trial = 0; trial < 10; trial++)
        {
            var (tokens, axes) = (_random.Next(5, 15), 2 + (trial % 2));
            var (input, positions) = (Draw(2, tokens, 6), Draw(2, tokens, axes) * 2);
            var bias = (positions.unsqueeze(2) - positions.unsqueeze(1)).square().sum(-1).neg();
            Passes(
                "flashbias/SpatialBiasAttention", new { causal = false, dim = 6, num_heads = 2, space_dim = axes },
                new()
                {
                    ["in.x"] = input, ["in.positions"] = positions, ["out.bias"] = bias, ["param.to_q.weight"] = Draw(6, 6), ["param.to_k.weight"] = Draw(6, 6), ["param.to_v.weight"] = Draw(6, 6),
                    ["param.to_out.0.weight"] = Draw(6, 6), ["param.to_out.0.bias"] = Draw(6), ["param.pos_weight.weight"] = Draw(1, 3),
                },
                1e-6, 1e-5);
        }
    }

    [Fact]
    public void Tables_of_int32_and_whole_numbers_with_a_fraction_are_read()
    {
        Passes(
            "generalized-neighborhood-attention/WindowBounds", new { pad_value = -1.0 },
            new()
            {
                ["in.axis"] = tensor(new[] { 5, 3, 1, 1, 0 }).view(1, 5), ["out.group"] = zeros([1, 5], int64), ["out.window_start"] = tensor(new long[] { 0, 0, 1, 2, 2 }).view(1, 5),
                ["out.window_end"] = tensor(new long[] { 3, 3, 4, 5, 5 }).view(1, 5),
            },
            0, 0);
        var broken = Run("generalized-neighborhood-attention/WindowBounds", new { pad_value = 0.5 }, new() { ["in.axis"] = tensor(new[] { 5, 3, 1, 1, 0 }).view(1, 5), ["out.group"] = zeros([1, 5], int64) }, 0, 0);
        Assert.Equal("The case's pad_value is 0.5; whole numbers were expected.", broken.Message);
    }

    /// <summary>One query's attention.</summary>
    private static Tensor Attend(Tensor query, Tensor keys, Tensor values, double scale, Tensor? bias = null)
    {
        var scores = keys.mv(query) * scale;
        return values.t().mv((bias is null ? scores : scores + bias).softmax(0));
    }

    /// <summary>Numbers that float32 holds exactly, so that it chooses among the same scores.</summary>
    private Tensor Draw(params long[] shape)
    {
        var numbers = new double[shape.Aggregate(1L, (product, length) => product * length)];
        for (var i = 0; i < numbers.Length; i++)
        {
            numbers[i] = (float)(Math.Sqrt(-2 * Math.Log(1 - _random.NextDouble())) * Math.Cos(2 * Math.PI * _random.NextDouble()));
        }

        return tensor(numbers).view(shape);
    }

    private void Passes(string operation, object config, Dictionary<string, Tensor> tensors, double absolute = 1e-9, double relative = 1e-7)
    {
        var result = Run(operation, config, tensors, absolute, relative);
        Assert.True(result.Passed, $"{operation} {JsonSerializer.Serialize(config)}: {result.MaxError} > {result.Tolerance} {result.Message}");
    }

    private GoldenResult Run(string operation, object config, Dictionary<string, Tensor> tensors, double absolute, double relative)
    {
        var path = Path.Combine(_folder, "case.safetensors");
        SafetensorsWriter.Write(path, tensors, new Dictionary<string, string>
        {
            ["op"] = operation, ["config"] = JsonSerializer.Serialize(config), ["atol"] = $"{absolute:R}", ["rtol"] = $"{relative:R}",
        });
        return GoldenVerifier.Run(path, "case")!;
    }
}
