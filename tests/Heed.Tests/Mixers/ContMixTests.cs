using Heed.Mixers;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class ContMixTests
{
    [Theory]
    [InlineData(7, 9, 10)]
    [InlineData(2, 9, 10)]
    [InlineData(7, 4, 6)]
    [InlineData(7, 6, 4)]
    public void It_is_its_definition_in_either_order_of_products_and_on_small_maps(int pool, int height, int width)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var module = Randomized(new ContMix(16, 5, 3, 2, pool)).to(float64);
        module.eval();
        var (query, key, value) = (randn(2, 16, height, width, dtype: float64), randn(2, 16, height, width, dtype: float64), randn(2, 16, height, width, dtype: float64));

        Assertions.Close(Definition(module, 5, 3, 2, pool, query, key, value), module.forward(query, key, value), 1e-12);
    }

    [Fact]
    public void Every_position_sees_the_whole_map_through_its_kernel_but_reads_its_window_only()
    {
        using var scope = NewDisposeScope();
        using var module = Randomized(new ContMix(16, 7, 5));
        module.eval();
        var (input, value) = (randn(1, 16, 21, 21).requires_grad_(), randn(1, 16, 21, 21).requires_grad_());
        module.forward(input, input, value)[0, TensorIndex.Colon, 10, 10].sum().backward();
        var (seen, read) = (input.grad!.abs().sum(1)[0], value.grad!.abs().sum(1)[0]);

        Assert.True(seen.min().item<float>() > 0);
        Assert.Equal(49, read.count_nonzero().item<long>());
        Assert.Equal(49, read[7..14, 7..14].count_nonzero().item<long>());
    }

    [Fact]
    public void Maps_are_recorded_only_where_somebody_looks()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var module = new ContMix(16, 5, 3, 2);
        var input = randn(1, 16, 8, 9);
        using (var recorder = MapRecorder.Install(module))
        {
            module.forward(input, input, input);
            Assert.Equal(["small kernel: mass received", "small kernel in the middle", "large kernel: mass received", "large kernel in the middle"], recorder.Maps.Select(map => map.Name));
            Assert.All(recorder.Maps, map => Assert.Equal([1, 4, 8, 9], map.Values.shape));
            var (_, large) = module.Kernels(input, input);
            Assertions.Close(DynamicConvolution.KernelAt(large, 4, 4), recorder.Maps[^1].Values, 1e-6);
        }

        Assert.Null(module.Recorder);
    }

    [Theory]
    [InlineData(16, 6, 5, 2, "must be odd and the small one at most the large one; 5 and 6 were given")]
    [InlineData(16, 7, 4, 2, "4 and 7 were given")]
    [InlineData(16, 5, 7, 2, "7 and 5 were given")]
    [InlineData(12, 7, 5, 2, "a multiple of 4 x heads = 8, as 4 groups share each half of them; 12 were given")]
    public void Sizes_that_make_no_sense_are_refused(int dim, int kernel, int small, int heads, string sentence) =>
        Assert.Contains(sentence, Assert.Throws<ArgumentException>(() => new ContMix(dim, kernel, small, heads)).Message, StringComparison.Ordinal);

    [Fact]
    public void Shapes_that_do_not_match_are_refused()
    {
        using var scope = NewDisposeScope();
        using var module = new ContMix(16, 5, 3);
        var map = randn(1, 16, 6, 6);

        Assert.Contains("Query and value must be [batch, 16, height, width]", Assert.Throws<ArgumentException>(() => module.forward(map, map, randn(1, 16, 6, 7))).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => module.forward(map, randn(2, 16, 6, 6), map));
        Assert.Throws<ArgumentException>(() => module.forward(randn(1, 8, 6, 6), map, map));
    }

    [Theory]
    [InlineData(5)]
    [InlineData(7)]
    [InlineData(9)]
    [InlineData(11)]
    [InlineData(13)]
    [InlineData(15)]
    [InlineData(17)]
    [InlineData(19)]
    public void Merging_a_reparameterised_convolution_changes_nothing_in_evaluation(int side)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var module = Randomized(new DilatedReparamConv(3, side)).to(float64);
        using var merged = new DilatedReparamConv(3, side, deploy: true).to(float64);
        var input = randn(2, 3, 12, 10, dtype: float64);
        module.train();
        module.forward(input);
        module.eval();

        merged.TakeMerged(module);

        Assertions.Close(module.forward(input), merged.forward(input), 1e-12);
        Assert.Equal(["lk_origin.weight", "lk_origin.bias"], merged.named_parameters().Select(entry => entry.name));
        Assertions.Close(module.Merge().Weight, merged.Merge().Weight, 0);
    }

    [Theory]
    [InlineData(3)]
    [InlineData(6)]
    [InlineData(21)]
    public void Sides_without_branches_are_refused(int side) =>
        Assert.Contains($"an odd side from 5 to 19, not {side}", Assert.Throws<ArgumentException>(() => new DilatedReparamConv(3, side)).Message, StringComparison.Ordinal);

    [Fact]
    public void Merged_filters_go_only_where_they_fit()
    {
        using var trained = new DilatedReparamConv(3, 5);
        using var other = new DilatedReparamConv(3, 7, deploy: true);

        Assert.Throws<InvalidOperationException>(() => trained.TakeMerged(trained));
        Assert.Contains("3 channels and side 5, this one 3 and 7", Assert.Throws<ArgumentException>(() => other.TakeMerged(trained)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Focus_blocks_refuse_contexts_of_other_shapes()
    {
        using var scope = NewDisposeScope();
        using var block = new FocusBlock(new() { Dim = 8, KernelSize = 5, SmallKernelSize = 3, Heads = 1 }, 16, isFirst: false, isLast: false);

        Assert.Contains(
            "The contexts must both be [batch, 4, height, width]", Assert.Throws<ArgumentException>(() => block.Forward(randn(1, 8, 6, 6), randn(1, 4, 6, 6), randn(1, 4, 6, 5))).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => block.Forward(randn(1, 8, 6, 5), randn(1, 4, 6, 6), randn(1, 4, 6, 6)));
    }

    [Fact]
    public void Static_kernels_do_not_look_at_the_picture()
    {
        using var scope = NewDisposeScope();
        using var block = new FocusBlock(new() { Dim = 8, KernelSize = 5, SmallKernelSize = 3, Heads = 1 }, 16, isFirst: true, isLast: true, FocusKernels.Static);
        block.eval();
        block.Forward(randn(1, 8, 6, 6), randn(1, 4, 6, 6), randn(1, 4, 6, 6)).X.sum().backward();
        var learning = block.named_parameters().Where(entry => entry.parameter.grad is not null).Select(entry => entry.name).ToHashSet();

        Assert.Contains("weight_proj.bias", learning);
        Assert.DoesNotContain("weight_proj.weight", learning);
        Assert.DoesNotContain("weight_query.0.weight", learning);
    }

    private static T Randomized<T>(T module)
        where T : nn.Module
    {
        using var quiet = no_grad();
        using var generator = new Generator(5);
        foreach (var parameter in module.parameters())
        {
            using var noise = randn(parameter.shape, generator: generator);
            parameter.copy_(noise);
        }

        return module;
    }

    // The specification's steps one by one, affinities written out.
    private static Tensor Definition(ContMix module, long side, long small, int heads, int pool, Tensor query, Tensor key, Tensor value)
    {
        var parameters = module.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal);
        var (height, width, dim, groups) = (query.shape[2], query.shape[3], query.shape[1], 2 * heads);
        Tensor Wide(Tensor map) => Math.Min(height, width) >= side ? map : nn.functional.interpolate(
            map, size: height < width ? [side, (long)((double)side / height * width)] : [(long)((double)side / width * height), side], mode: InterpolationMode.Bilinear, align_corners: false);
        Tensor Map(Tensor map, string name, int index) => nn.functional.batch_norm(
            nn.functional.conv2d(map, parameters[$"{name}.{index}.weight"]), zeros(dim / 2, dtype: float64), ones(dim / 2, dtype: float64), parameters[$"{name}.{index + 1}.weight"], parameters[$"{name}.{index + 1}.bias"], training: false);
        var (q, k, v) = (Map(Wide(query), "weight_query", 0) / Math.Sqrt(dim / groups), Map(nn.functional.adaptive_avg_pool2d(Wide(key), [pool, pool]), "weight_key", 1), Wide(value));
        var (rows, columns) = (q.shape[2], q.shape[3]);
        var affinity = einsum("bgcn,bgcl->bgnl", q.reshape(2, groups, -1, rows * columns), k.reshape(2, groups, -1, pool * pool));
        var logits = affinity.matmul(parameters["weight_proj.weight"].flatten(1).t()) + parameters["weight_proj.bias"];
        var output = zeros_like(v);
        foreach (var (half, sides, first, bias) in new[] { (0, small, 0L, parameters["rpb1"]), (1, side, small * small, parameters["rpb2"]) })
        {
            for (var i = 0L; i < rows; i++)
            {
                for (var j = 0L; j < columns; j++)
                {
                    var (top, left) = (Math.Clamp(i - (sides / 2), 0, rows - sides), Math.Clamp(j - (sides / 2), 0, columns - sides));
                    var table = bias.narrow(1, top - i + sides - 1, sides).narrow(2, left - j + sides - 1, sides).reshape(groups, -1);
                    var weights = (logits.select(2, (i * columns) + j).narrow(2, first, sides * sides) + table).softmax(-1);
                    var window = v.narrow(2, top, sides).narrow(3, left, sides).reshape(2, 2, groups, dim / 2 / groups, sides * sides).select(1, half);
                    output[TensorIndex.Colon, TensorIndex.Slice(half * dim / 2, (half + 1) * dim / 2), i, j] = einsum("bgct,bgt->bgc", window, weights).flatten(1);
                }
            }
        }

        return rows == height && columns == width ? output : nn.functional.adaptive_avg_pool2d(output, [height, width]);
    }
}
