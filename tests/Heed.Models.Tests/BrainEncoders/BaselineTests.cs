using Heed.Models.BrainEncoders;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.BrainEncoders;

public sealed class BaselineTests
{
    [Fact]
    public void A_static_map_weighs_places_and_leaves_padding_out()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = new SpatialFeatureEncoder(new() { Queries = 2, LeftVertices = 3, RightVertices = 2, Channels = 4 }, 2, 3);
        var features = randn(2, 4, 2, 3);
        var prediction = model.Forward(features, withAttention: true);
        var expected = matmul(prediction.Attention[0], features.flatten(2).transpose(1, 2));
        Assert.True(expected.allclose(prediction.Tokens!, 1e-5, 1e-6));
        Assert.True(prediction.Attention[0][0].equal(prediction.Attention[0][1]).all().item<bool>());

        var padding = zeros([2, 2, 3], ScalarType.Bool);
        padding[1, 1, 2] = tensor(true);
        var padded = model.Forward(features, padding, withAttention: true).Attention[0];
        Assert.Equal(0, padded[1, 0, 5].item<float>());
        Assert.Equal(1, padded[1, 0].sum().item<float>(), 5);
        Assert.True(padded[0].allclose(prediction.Attention[0][0]));
        Assert.Contains("of one size, 2 x 3", Assert.Throws<ArgumentException>(() => model.Forward(zeros(1, 4, 3, 3))).Message, StringComparison.Ordinal);
        Assert.Contains("3 x 0", Assert.Throws<ArgumentException>(() => new SpatialFeatureEncoder(new() { LeftVertices = 1, RightVertices = 1 }, 3, 0)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(1, 20)]
    [InlineData(2, 6)]
    [InlineData(3, 4)]
    public void The_linear_encoder_is_linear_and_punishes_norms(int stride, int places)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = new ConvolutionalEncoder(4, 6, 7, 5, 2, stride, inner: 3);
        Assert.Equal([5, 3 * places], model.get_parameter("lh_embed.weight")!.shape);
        var (first, second) = (randn(1, 4, 6, 7), randn(1, 4, 6, 7));
        var (together, apart) = (model.Forward((first + second) / 2).Left, (model.Forward(first).Left + model.Forward(second).Left) / 2);
        Assert.True(together.allclose(apart, 1e-4, 1e-5));
        Assert.Equal(0.02 * model.parameters().Sum(parameter => parameter.norm().item<float>()), model.Penalty()!.item<float>(), 4);
        Assert.Contains("stride of 1 to 3", Assert.Throws<ArgumentException>(() => new ConvolutionalEncoder(4, 6, 7, 5, 2, 4)).Message, StringComparison.Ordinal);
        Assert.Contains("6 x 7", Assert.Throws<ArgumentException>(() => model.Forward(zeros(1, 4, 6, 6))).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(60, 6)]
    [InlineData(20, 40)]
    public void Ridge_is_the_closed_form_whichever_side_is_longer(int pictures, int features)
    {
        using var scope = NewDisposeScope();
        var (x, y) = (randn([pictures, features, 1, 1], float64) + 2, randn([pictures, 3], float64) - 1);
        using var ridge = RidgeEncoder.Fit(x, y, [0.7]);
        var (flat, means) = (x.flatten(1), x.flatten(1).mean([0L]));
        var centred = flat - means;
        var weights = linalg.solve(matmul(centred.t(), centred) + (eye(features, dtype: float64) * 0.7), matmul(centred.t(), y - y.mean([0L])));
        Assert.True((ridge.Predict(x) - (matmul(centred, weights) + y.mean([0L]))).abs().max().item<double>() < 1e-9);
        Assert.Equal(0.7, ridge.Penalty);
        Assert.Contains("were given", Assert.Throws<ArgumentException>(() => ridge.Predict(zeros(2, features + 1))).Message, StringComparison.Ordinal);
        Assert.Contains("above 0", Assert.Throws<ArgumentException>(() => RidgeEncoder.Fit(x, y, [0])).Message, StringComparison.Ordinal);
        Assert.Contains("at least five pictures", Assert.Throws<ArgumentException>(() => RidgeEncoder.Fit(x, y.narrow(0, 0, 4))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Ridge_chooses_the_penalty_that_serves_held_out_pictures()
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        // Almost as many features as pictures to fit: without a penalty what is fitted is the noise.
        var x = randn([400, 300], float64);
        var y = x.narrow(1, 0, 8) + randn([400, 8], float64);
        using var ridge = RidgeEncoder.Fit(x, y, [1e-6, 300]);
        Assert.Equal(300, ridge.Penalty);
    }

    [Fact]
    public void Correlation_knows_lines_and_constants()
    {
        using var scope = NewDisposeScope();
        var measured = randn([20, 3], float64);
        var prediction = stack([measured.select(1, 0) * 3 + 1, -measured.select(1, 1), zeros(20, float64)], 1);
        Assert.Equal([1, -1, 0], VertexCorrelation.Pearson(prediction, measured).data<double>().Select(value => Math.Round(value, 12)));
        Assert.Equal([0.5, 0], VertexCorrelation.ExplainedFraction(tensor(new[] { 0.5, -0.5 }), tensor(new[] { 0.5, 0.5 })).data<double>());
        Assert.Contains("at least two pictures", Assert.Throws<ArgumentException>(() => VertexCorrelation.Pearson(zeros(1, 3), zeros(1, 3))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_ensemble_shares_a_layer_among_its_runs()
    {
        using var scope = NewDisposeScope();
        var correlation = tensor(new[,] { { 0.5, 0.1 }, { 0.3, 0.1 }, { 0.2, 0.1 } });
        var weights = new LayerEnsemble().Weights([7, 7, 2], correlation);
        Assert.Equal(1, weights.select(1, 0).sum().item<double>(), 12);
        // Vertex 0: the layer's mean of 0.4 against 0.2, at a temperature of 40; vertex 1: nothing between them.
        Assert.Equal(1 / (1 + Math.Exp(-8)) / 2, weights[0, 0].item<double>(), 12);
        Assert.Equal([0.25, 0.25, 0.5], weights.select(1, 1).contiguous().data<double>().Select(value => Math.Round(value, 12)));
        Assert.Equal(2, new LayerEnsemble(NormalizeRuns: false).Weights([7, 7, 2], correlation)[..2, 0].sum().item<double>(), 2);
        var same = ones([3, 4, 2], float64);
        Assert.True(LayerEnsemble.Combine(same, weights).allclose(ones([4, 2], float64)));
        Assert.Contains("a row of correlations", Assert.Throws<ArgumentException>(() => new LayerEnsemble().Weights([1], correlation)).Message, StringComparison.Ordinal);
        Assert.Contains("[models, vertices]", Assert.Throws<ArgumentException>(() => LayerEnsemble.Combine(same, weights.narrow(0, 0, 2))).Message, StringComparison.Ordinal);
    }
}
