using Heed.Mixers;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class GaussianAdaptiveAttentionTests
{
    [Fact]
    public void A_product_of_components_is_one_gaussian_with_the_closed_form()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var three = new GaussianAdaptiveAttention(-1, 3);
        using var one = new GaussianAdaptiveAttention(-1, 1);
        var x = randn(2, 40, dtype: float64);
        double[] offsets = [-0.4, 0.3, 0.1], spreads = [0.7, 1.5, 1.1];
        Set(three, offsets, spreads);

        // Spreads are in units of the deviation, offsets are not: equal deviations need rows of one deviation.
        x = (x - x.mean([1L], keepdim: true)) / x.std(1, true, true);
        var precision = spreads.Sum(spread => 1 / (spread * spread));
        var mean = offsets.Zip(spreads, (offset, spread) => offset / (spread * spread)).Sum() / precision;
        Set(one, [mean], [1 / Math.Sqrt(precision)]);
        Assertions.Close(one.forward(x).Weights, three.forward(x).Weights, 1e-6);
    }

    [Fact]
    public void Weights_sum_to_one_in_every_piece_of_every_head()
    {
        using var scope = NewDisposeScope();
        // Spreads are drawn: with narrow ones all densities of a piece can fall below the least sum that is divided by, and then weights sum to less.
        manual_seed(3);
        using var layer = new MultiHeadGaussianAdaptiveAttention(1, 4, 2);
        var (output, weights) = layer.forward(randn(3, 14, 5));
        Assert.Equal([3, 14, 5], output.shape);
        foreach (var (start, length) in new[] { (0, 3), (3, 3), (6, 3), (9, 5) })
        {
            Assertions.Close(ones(3, 5), weights.narrow(1, start, length).sum(1), 1e-6);
        }
    }

    [Fact]
    public void Wide_spreads_weigh_all_alike()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var form = new GaussianAdaptiveAttention(-1, 2);
        // Wider still, and the densities' sum falls below the least that is divided by.
        Set(form, [0, 0], [1e3, 1e3]);
        var x = randn(2, 3, 8);
        Assertions.Close(x / 8, form.forward(x).Output, 1e-5);
        using var layers = new LayerwiseGaussianAttention(4, 6, 2, spread: 1e12);
        var stack = randn(2, 4, 6);
        Assertions.Close(stack, layers.forward(stack).Output, 1e-6);
    }

    [Fact]
    public void A_sum_of_components_can_have_two_modes_and_a_product_cannot()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var x = linspace(-3, 3, 61, dtype: float64).view(1, 61);
        using var sum = new GaussianAdaptiveAttention(-1, 2, combination: GaussianCombination.Sum);
        using var product = new GaussianAdaptiveAttention(-1, 2);
        int Modes(GaussianAdaptiveAttention layer)
        {
            Set(layer, [-1.5, 1.5], [0.3, 0.3]);
            var w = layer.forward(x).Weights[0].data<double>().ToArray();
            return Enumerable.Range(1, 59).Count(i => w[i] > w[i - 1] && w[i] > w[i + 1]);
        }

        Assert.Equal(2, Modes(sum));
        Assert.Equal(1, Modes(product));
        Assert.Contains(sum.named_parameters(), entry => entry.name == "weights");
    }

    [Fact]
    public void Padding_stays_as_it_is()
    {
        using var scope = NewDisposeScope();
        using var layer = new GaussianAdaptiveAttention(1, 1, paddingValue: -9);
        var x = randn(1, 6, 2);
        x[0, 4] = -9;
        var output = layer.forward(x).Output;
        Assertions.Close(full(2, -9), output[0, 4], 0);
        Assert.True((output[0, 0] - x[0, 0]).abs().min().item<float>() > 0);
    }

    [Fact]
    public void A_time_axis_takes_the_weights_of_its_mean()
    {
        using var scope = NewDisposeScope();
        using var layer = new LayerwiseGaussianAttention(4, 6, 2);
        var x = randn(2, 4, 5, 6);
        var (output, weights) = layer.forward(x);
        Assertions.Close(layer.forward(x.mean([2L])).Weights, weights, 1e-6);
        Assertions.Close(x * weights.unsqueeze(2), output, 1e-6);
        var single = randn(2, 4, 1, 6);
        Assertions.Close(layer.forward(single.squeeze(2)).Output, layer.forward(single).Output.squeeze(2), 1e-6);
    }

    [Fact]
    public void Gradients_are_those_of_finite_differences()
    {
        manual_seed(3);
        using var scope = NewDisposeScope();
        using var block = new GaussianBlock([1, 2], [2, 3], [2, 1]);
        using var sum = new GaussianAdaptiveAttention(-1, 2, 0, combination: GaussianCombination.Sum);
        using var layers = new GroupedQueryGaussianAttention(4, 6, 2, 8, 4, 2);
        foreach (var (module, shape, run) in new (nn.Module, long[], Func<Tensor, Tensor>)[]
        {
            (block, [2, 5, 9], x => block.forward(x).Output), (sum, [3, 7], x => sum.forward(x).Output), (layers, [2, 4, 6], layers.forward),
        })
        {
            module.to(float64);
            var x = randn(shape, dtype: float64).requires_grad_();
            var leaves = module.parameters().Select(parameter => (Tensor)parameter).Append(x).ToArray();
            var weight = randn_like(run(x));
            var gradients = autograd.grad([(run(x) * weight).sum()], leaves);
            using var still = no_grad();
            for (var i = 0; i < leaves.Length; i++)
            {
                var direction = randn_like(leaves[i]);
                double Difference(double step)
                {
                    leaves[i].add_(direction * step);
                    var up = (run(x) * weight).sum().item<double>();
                    leaves[i].sub_(direction * (2 * step));
                    var down = (run(x) * weight).sum().item<double>();
                    leaves[i].add_(direction * step);
                    return (up - down) / (2 * step);
                }

                // Where a variance is nearly none the function is steep, and the difference as wrong as it changes with its step.
                var (coarse, expected) = (Difference(2e-6), Difference(1e-6));
                Assert.Equal(expected, (gradients[i] * direction).sum().item<double>(), (1e-5 * (1 + Math.Abs(expected))) + Math.Abs(coarse - expected));
            }
        }
    }

    [Fact]
    public void Importance_is_stretched_over_the_whole_map_and_zero_where_all_is_alike()
    {
        using var scope = NewDisposeScope();
        var maps = rand(5, 3, 4);
        using var importance = ImportanceFactor.From(maps.unbind(0));
        using var batched = ImportanceFactor.From([maps.narrow(0, 0, 2), maps.narrow(0, 2, 3)]);
        Assertions.Close(importance.Map, batched.Map, 1e-6);
        Assert.Equal(0, importance.Map.min().item<float>());
        Assert.Equal(1, importance.Map.max().item<float>());
        Assert.Equal(100, importance.LayerContribution.sum().item<float>(), 1e-3);
        using var flat = ImportanceFactor.From([ones(3, 4)]);
        Assert.Equal(0, flat.Map.abs().max().item<float>());
    }

    [Fact]
    public void Errors_say_what_was_expected()
    {
        static void Refused(string part, Func<object?> action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        using var one = new GaussianAdaptiveAttention(2, 1);
        Refused("at least two axes", () => one.forward(randn(4)));
        Refused("no axis 2", () => one.forward(randn(4, 4)));
        Refused("at least 2", () => one.forward(randn(4, 4, 1)));
        using var heads = new MultiHeadGaussianAdaptiveAttention(1, 3, 1);
        Refused("3 heads need at least 6", () => heads.forward(randn(2, 5)));
        Refused("gaussians", () => new GaussianAdaptiveAttention(1, 0));
        Refused("heads", () => new MultiHeadGaussianAdaptiveAttention(1, 0, 1));
        Refused("2, 1 and 2", () => new GaussianBlock([1, 2], [1], [1, 1]));
        Refused("divides the layers", () => new LayerwiseGaussianAttention(5, 4, 2));
        Refused("spread", () => new LayerwiseGaussianAttention(4, 4, 2, 0));
        using var layers = new LayerwiseGaussianAttention(4, 4, 2);
        Refused("[batch, 4 layers, 4]", () => layers.forward(randn(1, 5, 4)));
        Refused("multiple of key heads", () => new GroupedQueryGaussianAttention(4, 4, 2, 16, 4, 3));
        Refused("no weight maps", () => ImportanceFactor.From([]));
        Refused("[layers, features]", () => ImportanceFactor.From([ones(2, 2), ones(3, 2)]));
    }

    private static void Set(GaussianAdaptiveAttention layer, double[] offsets, double[] spreads)
    {
        layer.to(float64);
        layer.get_parameter("mean_offsets")!.copy_(tensor(offsets));
        layer.get_parameter("c")!.copy_(tensor(spreads));
    }
}
