using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Probes;

public sealed class SinkDetectorTests : IDisposable
{
    private const int Layers = 20, Tokens = 12, Width = 48;
    private readonly TorchSharp.DisposeScope _scope = NewDisposeScope();

    public void Dispose() => _scope.Dispose();

    [Fact]
    public void Planted_sinks_are_found_with_their_layers()
    {
        var states = Planted();
        var map = SinkDetector.Detect(states, [0, 1]);
        Assert.Equal((0, 3, 19), (map.Primary, map.Start, map.End));
        Assert.Equal([3, -1, -1, -1, 6, -1, -1, 9, -1, 10, -1, -1], map.Creation);
        // Token 4 is none at layer 8; token 7 points the other way; token 9 is an impostor of two layers.
        Assert.Equal([16, 0, 0, 0, 6, 0, 0, 8, 0, 2, 0, 0], map.Lifetime);
        Assert.False(map[8, 4]);
        Assert.True(map[12, 4]);

        var labels = map.Label(minLifetime: 4, primarySlack: 8);
        Assert.Equal([SinkLabel.Primary, SinkLabel.Secondary, SinkLabel.Secondary, SinkLabel.Noise], new[] { 0, 4, 7, 9 }.Select(token => labels[token]));
        Assert.Equal(SinkLabel.None, labels[1]);
        // The published slack leaves no room for secondary sinks in 20 layers: 6 is at least 5.
        Assert.Equal(SinkLabel.Primary, map.Label()[4]);
        Assert.Equal(SinkLabel.Secondary, map.LabelInProportion()[4]);

        var levels = map.LevelHistogram();
        Assert.Equal((1, 1, 1, 1), (levels[16, 3], levels[6, 6], levels[8, 9], levels[2, 10]));
        Assert.Equal(4, levels.Cast<int>().Sum());
    }

    [Fact]
    public void Without_clipping_every_layer_is_looked_at()
    {
        var map = SinkDetector.Detect(Planted(), [0], new() { ClipToPrimary = false });
        Assert.Equal((0, 0, Layers), (map.Primary, map.Start, map.End));
        Assert.Equal(Layers, map.Lifetime[0]);
        Assert.Equal(6, map.Lifetime[4]);
    }

    [Fact]
    public void The_longest_candidate_is_the_primary_and_earlier_ones_are_left_out_unless_asked_for()
    {
        var states = Planted();
        states[.., 2] = states[.., 0] * 1.5;
        var map = SinkDetector.Detect(states, [0, 1, 2]);
        Assert.Equal(2, map.Primary);
        Assert.Equal(0, map.Lifetime[0]);
        Assert.Equal(16, SinkDetector.Detect(states, [0, 1, 2], new() { TestCandidates = true }).Lifetime[0]);
        // Of equal candidates the first one counts.
        states[.., 1] = states[.., 2];
        Assert.Equal(1, SinkDetector.Detect(states, [0, 1, 2]).Primary);
    }

    [Fact]
    public void A_list_of_layers_gives_what_the_stack_gives_in_any_type()
    {
        var states = Planted();
        var map = SinkDetector.Detect(states);
        var list = SinkDetector.Detect([.. Enumerable.Range(0, Layers).Select(layer => states[layer].to(float32))]);
        Assert.Equal(map.Lifetime, list.Lifetime);
        Assert.Equal(map.Creation, list.Creation);
    }

    [Fact]
    public void Slack_and_noise_follow_the_depth()
    {
        Assert.Equal((15, 4), (SinkMap.SlackFor(48), SinkMap.NoiseFor(48)));
        Assert.Equal((2, 0), (SinkMap.SlackFor(6), SinkMap.NoiseFor(6)));
    }

    [Fact]
    public void What_cannot_be_is_told()
    {
        var states = Planted();
        string Error(Action act) => Assert.ThrowsAny<ArgumentException>(act).Message;
        Assert.Contains("[layers, tokens, width]", Error(() => SinkDetector.Detect(states[0])), StringComparison.Ordinal);
        Assert.Contains("at least 2 layers, not 1", Error(() => SinkDetector.Detect(states[..1])), StringComparison.Ordinal);
        Assert.Contains("tokens 0 to 11, not 0, 12", Error(() => SinkDetector.Detect(states, [0, 12])), StringComparison.Ordinal);
        Assert.Contains("none", Error(() => SinkDetector.Detect(states, [])), StringComparison.Ordinal);
        Assert.Contains("below 1", Error(() => SinkDetector.Detect(states, null, new() { CosineThreshold = 1 })), StringComparison.Ordinal);
        Assert.Contains("the same for all", Error(() => SinkDetector.Detect([states[0], states[1][..3]])), StringComparison.Ordinal);
        Assert.Contains("from 0 on", Error(() => _ = new ResidualProbe([-1])), StringComparison.Ordinal);
        Assert.Contains("token 0 of 1", Error(() => ResidualPeak.Of([1])), StringComparison.Ordinal);
        Assert.Throws<KeyNotFoundException>(() => new ResidualProbe().Norms(0));
    }

    [Fact]
    public void Matrix_entropy_counts_directions()
    {
        var orthogonal = eye(6, 10, dtype: float64).unsqueeze(0);
        Assert.Equal(Math.Log(6), MatrixEntropy.Compute(orthogonal).item<double>(), 1e-12);
        Assert.Equal(Math.Log(6), MatrixEntropy.Compute(orthogonal.transpose(1, 2), 2).item<double>(), 1e-12);
        var parallel = ones(2, 5, 3, dtype: float64);
        Assert.True(MatrixEntropy.Compute(parallel).abs().max().item<double>() < 1e-9);
        Assert.Equal(0, MatrixEntropy.Compute(zeros(3, 4), 0.5).item<double>());
        // Shares 0.8 and 0.2.
        var two = tensor(new double[,] { { 2, 0, 0 }, { 0, 1, 0 } });
        Assert.Equal(-(0.8 * Math.Log(0.8)) - (0.2 * Math.Log(0.2)), MatrixEntropy.Compute(two).item<double>(), 1e-12);
        Assert.Equal(-Math.Log(0.64 + 0.04), MatrixEntropy.Compute(two, 2).item<double>(), 1e-12);
        Assert.Equal(2 * Math.Log(Math.Sqrt(0.8) + Math.Sqrt(0.2)), MatrixEntropy.Compute(two, 0.5).item<double>(), 1e-12);
        Assert.Contains("positive number, not 0", Assert.Throws<ArgumentException>(() => MatrixEntropy.Compute(two, 0)).Message, StringComparison.Ordinal);
        Assert.Contains("[..., tokens, width]", Assert.Throws<ArgumentException>(() => MatrixEntropy.Compute(zeros(4))).Message, StringComparison.Ordinal);
    }

    /// <summary>A primary sink at 0 from layer 3 until it is taken back in the last block, and sinks at 4 (layers 6 to 12 but 8), 7 (9 to 16, turned around) and 9 (10 and 11).</summary>
    private static Tensor Planted()
    {
        manual_seed(5);
        var states = randn([Layers, Tokens, Width], dtype: float64);
        var vector = 60 * nn.functional.normalize(randn([Width], dtype: float64), dim: 0);
        states[3..19, 0] += vector;
        states[6..13, 4] += 0.8 * vector;
        states[8, 4] -= 0.8 * vector;
        states[9..17, 7] -= 0.7 * vector;
        states[10..12, 9] += vector;
        return states;
    }
}
