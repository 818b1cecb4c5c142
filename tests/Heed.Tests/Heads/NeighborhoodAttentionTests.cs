using CsCheck;
using Heed.Heads;
using Heed.Masks;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public sealed class NeighborhoodAttentionTests
{
    /// <summary>Grids of one to three axes with every knob.</summary>
    private static readonly Gen<Neighborhood> s_neighborhoods = Gen.Select(Gen.Int[1, 3], Gen.Int[0, 1 << 20]).Select((axes, seed) =>
    {
        var random = new Random(seed);
        return new Neighborhood([.. Enumerable.Range(0, axes).Select(_ =>
        {
            var length = random.Next(2, axes == 1 ? 60 : axes == 2 ? 16 : 8);
            var dilation = random.Next(1, Math.Min(3, length) + 1);
            var window = random.Next(1, (length / dilation) + 1);
            return new NeighborhoodAxis(length, window, random.Next(3) == 0 ? window : random.Next(1, window + 1), dilation, random.Next(4) == 0);
        })]);
    });

    [Fact]
    public void Every_geometry_computes_exactly_its_pairs_in_float32() => s_neighborhoods.Sample(neighborhood => Compare(neighborhood, float32, null, 2e-5), iter: 60);

    [Fact]
    public void Every_geometry_computes_exactly_its_pairs_in_float64() => s_neighborhoods.Sample(neighborhood => Compare(neighborhood, float64, null, 1e-12), iter: 20);

    [Fact]
    public void The_result_does_not_depend_on_the_tiles() => Gen.Select(s_neighborhoods, Gen.Int).Sample(
        (neighborhood, seed) =>
        {
            var random = new Random(seed);
            long[] Tile() => [.. neighborhood.Axes.Select(_ => (long)random.Next(1, 7))];
            Compare(neighborhood, float32, new(Tile(), Tile()), 2e-5);
        }, iter: 40);

    [Fact]
    public void Gradients_are_those_of_masked_attention_in_float64() => s_neighborhoods.Sample(
        neighborhood =>
        {
            using var scope = NewDisposeScope();
            var (query, key, value) = Inputs(neighborhood, float64, 2, 1, 3, 5);
            var leaves = new[] { query, key, value, randn([2, 3, 1, 3], dtype: float64), randn([2, 3, 1, 5], dtype: float64) };
            leaves.ToList().ForEach(leaf => leaf.requires_grad_());
            var (output, logSumExp) = NeighborhoodAttention.ComputePart(query, key, value, neighborhood, 0.3, leaves[3], leaves[4]);
            var (expected, expectedLogSumExp) = Reference(query, key, value, neighborhood, 0.3, leaves[3], leaves[4]);
            var weight = randn_like(output);
            Assertions.Close(expectedLogSumExp, logSumExp, 1e-12);
            var gradients = autograd.grad([((output * weight).sum() + logSumExp.square().sum())], leaves);
            var wanted = autograd.grad([((expected * weight).sum() + expectedLogSumExp.square().sum())], leaves);
            for (var i = 0; i < leaves.Length; i++)
            {
                Assertions.Close(wanted[i], gradients[i], 1e-10, $"gradient {i}");
            }
        }, iter: 15);

    [Fact]
    public void Windows_over_the_whole_grid_are_dense_attention()
    {
        using var scope = NewDisposeScope();
        foreach (var grid in new long[][] { [37], [6, 7], [3, 4, 5] })
        {
            var neighborhood = Neighborhood.Of(grid, [-1]);
            var (query, key, value) = Inputs(neighborhood, float32, 2, 2, 8, 8);
            var tokens = neighborhood.Tokens;
            var dense = Attention.Compute(
                query.reshape(2, tokens, 2, 8).transpose(1, 2), key.reshape(2, tokens, 2, 8).transpose(1, 2), value.reshape(2, tokens, 2, 8).transpose(1, 2)).transpose(1, 2).reshape(query.shape);
            Assertions.Close(dense, NeighborhoodAttention.Compute(query, key, value, [-1]), 1e-5);
            // The special case and the general path agree.
            Assertions.Close(dense, NeighborhoodAttention.Compute(query, key, value, neighborhood, tiles: new([.. grid.Select(_ => 2L)], [.. grid.Select(_ => 3L)])), 1e-5);
        }
    }

    [Fact]
    public void A_causal_axis_never_sees_the_future()
    {
        using var scope = NewDisposeScope();
        var neighborhood = new Neighborhood(new NeighborhoodAxis(12, 4, 3, 2, true), new NeighborhoodAxis(7, 3, 2));
        var (query, key, value) = Inputs(neighborhood, float32, 2, 1, 8, 8);
        var before = NeighborhoodAttention.Compute(query, key, value, neighborhood);
        for (var row = 1L; row < 12; row++)
        {
            var (otherKey, otherValue) = (key.clone(), value.clone());
            otherKey.narrow(1, row, 12 - row).add_(3);
            otherValue.narrow(1, row, 12 - row).add_(3);
            var after = NeighborhoodAttention.Compute(query, otherKey, otherValue, neighborhood);
            Assert.True(before.narrow(1, 0, row).equal(after.narrow(1, 0, row)).all().item<bool>());
            Assert.False(before.narrow(1, row, 1).equal(after.narrow(1, row, 1)).all().item<bool>());
        }
    }

    [Fact]
    public void Additional_keys_join_one_softmax_and_none_of_them_change_nothing()
    {
        using var scope = NewDisposeScope();
        var neighborhood = Neighborhood.Of([6, 9], [3, 4], [2, 3]);
        var (query, key, value) = Inputs(neighborhood, float32, 2, 2, 8, 6);
        var (moreKeys, moreValues) = (randn(2, 5, 2, 8), randn(2, 5, 2, 6));
        Assertions.Close(Reference(query, key, value, neighborhood, null, moreKeys, moreValues).Output, NeighborhoodAttention.Compute(query, key, value, neighborhood, null, moreKeys, moreValues), 2e-5);
        var none = NeighborhoodAttention.Compute(query, key, value, neighborhood, null, moreKeys.narrow(1, 0, 0), moreValues.narrow(1, 0, 0));
        Assertions.Close(NeighborhoodAttention.Compute(query, key, value, neighborhood), none, 1e-6);
    }

    [Fact]
    public void A_probe_sees_the_map_in_raster_order_with_zeros_outside_the_windows()
    {
        using var scope = NewDisposeScope();
        using var module = new NeighborhoodAttention2d(16, 2, [3, 4], [1, 2]) { Hooks = new AttentionHooks() };
        var input = randn(1, 5, 6, 16);
        var plain = module.forward(input);
        using var probe = new AttentionMapProbe();
        using (module.Hooks.Install(probe))
        {
            Assertions.Close(plain, module.forward(input), 2e-5);
        }

        var map = probe[probe.Sites[0]];
        var neighborhood = Neighborhood.Of([5, 6], [3, 4], [1, 2]);
        for (var query = 0L; query < 30; query++)
        {
            for (var key = 0L; key < 30; key++)
            {
                Assert.Equal(neighborhood.Allows(query, key), map[0, 0, query, key].item<float>() > 0);
            }
        }
    }

    [Fact]
    public void Modules_of_one_two_and_three_axes_differ_from_the_function_by_their_projections_only()
    {
        using var scope = NewDisposeScope();
        using var one = new NeighborhoodAttention1d(8, 2, 4, 2, 1, true, false, 0.4);
        using var three = new NeighborhoodAttention3d(8, 2, [2, 3, 2]);
        Assert.Equal(["qkv.weight", "proj.weight", "proj.bias"], one.named_parameters().Select(entry => entry.name));
        foreach (var (module, input, knobs) in new (NeighborhoodAttentionModule, Tensor, Neighborhood)[]
        {
            (one, randn(2, 9, 8), Neighborhood.Of([9], [4], [2], null, [true])), (three, randn([2, 3, 4, 5, 8]), Neighborhood.Of([3, 4, 5], [2, 3, 2])),
        })
        {
            var parameters = module.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter);
            var parts = nn.functional.linear(input, parameters["qkv.weight"], parameters.GetValueOrDefault("qkv.bias")!).reshape([.. input.shape[..^1], 3, 2, 4]).unbind(-3);
            var heads = NeighborhoodAttention.Compute(parts[0], parts[1], parts[2], knobs, module == one ? 0.4 : null).reshape(input.shape);
            Assertions.Close(nn.functional.linear(heads, parameters["proj.weight"], parameters["proj.bias"]), module.forward(input), 1e-6);
        }
    }

    [Fact]
    public void Bad_input_is_told_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        var tokens = zeros([1, 6, 6, 4, 8]);
        void Says(string sentence, Action call) => Assert.Contains(sentence, Assert.ThrowsAny<ArgumentException>(call).Message, StringComparison.Ordinal);
        Says("grid of 1 to 3 axes", () => NeighborhoodAttention.Compute(zeros(6, 4, 8), zeros(6, 4, 8), zeros(6, 4, 8), [3]));
        Says("on this grid", () => NeighborhoodAttention.Compute(tokens, zeros([1, 6, 5, 4, 8]), tokens, [3]));
        Says("divides the number of query heads", () => NeighborhoodAttention.Compute(tokens, zeros([1, 6, 6, 3, 8]), zeros([1, 6, 6, 3, 8]), [3]));
        Says("at least 2 keys", () => NeighborhoodAttention.Compute(tokens, tokens, tokens, [1, 3]));
        Says("A stride is at most the window", () => NeighborhoodAttention.Compute(tokens, tokens, tokens, [3], [4]));
        Says("does not fit 6", () => NeighborhoodAttention.Compute(tokens, tokens, tokens, [3], null, [3]));
        Says("only one of them", () => NeighborhoodAttention.Compute(tokens, tokens, tokens, [3], additionalKeys: zeros(1, 2, 4, 8)));
        Says("Additional values are [1, E, 4, 8]", () => NeighborhoodAttention.Compute(tokens, tokens, tokens, [3], additionalKeys: zeros(1, 2, 4, 8), additionalValues: zeros(1, 3, 4, 8)));
        Says("heads divides the width", () => new NeighborhoodAttention1d(10, 4, 3).Dispose());
        Says("for each of the 2 axes", () => new NeighborhoodAttention2d(8, 2, [3, 3, 3]).Dispose());
        using var module = new NeighborhoodAttention2d(8, 2, [3]);
        Says("grid of 2, 8]", () => module.forward(zeros(1, 6, 8)));
    }

    private static void Compare(Neighborhood neighborhood, ScalarType type, NeighborhoodTiles? tiles, double tolerance)
    {
        using var scope = NewDisposeScope();
        var (query, key, value) = Inputs(neighborhood, type, 4, 2, 8, 6);
        var (output, logSumExp) = NeighborhoodAttention.ComputePart(query, key, value, neighborhood, tiles: tiles);
        var (expected, expectedLogSumExp) = Reference(query, key, value, neighborhood, null);
        Assertions.Close(expected, output, tolerance, $"{neighborhood}");
        Assertions.Close(expectedLogSumExp, logSumExp, tolerance, $"{neighborhood}: log-sum-exp");
        Assertions.Close(output, NeighborhoodAttention.Compute(query, key, value, neighborhood, tiles: tiles), tolerance, $"{neighborhood}: without log-sum-exp");
    }

    private static (Tensor Query, Tensor Key, Tensor Value) Inputs(Neighborhood neighborhood, ScalarType type, long heads, long keyHeads, long width, long valueWidth)
    {
        var grid = neighborhood.Axes.Select(axis => axis.Length).ToArray();
        return (randn([2, .. grid, heads, width], dtype: type), randn([2, .. grid, keyHeads, width], dtype: type), randn([2, .. grid, keyHeads, valueWidth], dtype: type));
    }

    /// <summary>Softmax over pairs asked for one by one, in the inputs' type.</summary>
    private static (Tensor Output, Tensor LogSumExp) Reference(
        Tensor query, Tensor key, Tensor value, Neighborhood neighborhood, double? scale, Tensor? moreKeys = null, Tensor? moreValues = null)
    {
        var (tokens, heads) = (neighborhood.Tokens, query.shape[^2]);
        var allowed = new bool[tokens, tokens];
        for (var q = 0L; q < tokens; q++)
        {
            for (var k = 0L; k < tokens; k++)
            {
                allowed[q, k] = neighborhood.Allows(q, k);
            }
        }

        Tensor Heads(Tensor tensor, Tensor? more)
        {
            var flat = tensor.flatten(1, -3);
            flat = more is null ? flat : cat([flat, more], 1);
            return flat.transpose(1, 2).repeat_interleave(heads / tensor.shape[^2], 1);
        }

        var (k2, v2) = (Heads(key, moreKeys), Heads(value, moreValues));
        var scores = matmul(Heads(query, null), k2.transpose(-1, -2)) * (scale ?? 1 / Math.Sqrt(query.shape[^1]));
        var mask = nn.functional.pad(tensor(allowed), [0, k2.shape[2] - tokens], value: 1);
        scores = scores.masked_fill(mask.logical_not(), double.NegativeInfinity);
        var output = matmul(softmax(scores, -1), v2).transpose(1, 2);
        return (output.reshape([query.shape[0], .. query.shape[1..^1], value.shape[^1]]), scores.logsumexp(-1).transpose(1, 2).reshape([query.shape[0], .. query.shape[1..^1]]));
    }
}
