using Heed.Heads;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public class RotaryEmbeddingTests
{
    [Fact]
    public void PairsTurnByTheirAngle()
    {
        using var scope = NewDisposeScope();
        var rotary = new RotaryEmbedding(6, theta: 100);
        var heads = randn(1, 1, 2, 6, dtype: float64);

        var turned = rotary.Tables(tensor(new[] { 7L }), ScalarType.Float64).Apply(heads);

        for (var head = 0; head < 2; head++)
        {
            for (var pair = 0; pair < 3; pair++)
            {
                var angle = 7 * Math.Pow(100, -2.0 * pair / 6);
                var (x, y) = (heads[0, 0, head, pair].item<double>(), heads[0, 0, head, pair + 3].item<double>());
                Assert.Equal((x * Math.Cos(angle)) - (y * Math.Sin(angle)), turned[0, 0, head, pair].item<double>(), 1e-12);
                Assert.Equal((y * Math.Cos(angle)) + (x * Math.Sin(angle)), turned[0, 0, head, pair + 3].item<double>(), 1e-12);
            }
        }
    }

    [Fact]
    public void ScoresDependOnTheDistanceOnly()
    {
        using var scope = NewDisposeScope();
        var rotary = new RotaryEmbedding(8);
        var (query, key) = (randn(1, 1, 1, 8, dtype: float64), randn(1, 1, 1, 8, dtype: float64));
        double Score(long at, long from) => (rotary.Tables(tensor(new[] { at }), ScalarType.Float64).Apply(query) * rotary.Tables(tensor(new[] { from }), ScalarType.Float64).Apply(key)).sum().item<double>();

        Assert.Equal(Score(5, 2), Score(100_005, 100_002), 1e-9);
        Assert.NotEqual(Score(5, 2), Score(5, 3), 1e-6);
    }

    [Fact]
    public void ScalingsKeepFastPairsAndStretchSlowOnes()
    {
        var plain = new RotaryEmbedding(64, 10000).InverseFrequencies;
        Assert.Equal(plain.Select(frequency => frequency / 4), new RotaryEmbedding(64, 10000, new LinearRotaryScaling(4)).InverseFrequencies);

        var llama = new RotaryEmbedding(64, 10000, new Llama3RotaryScaling(8, 1, 4, 512)).InverseFrequencies;
        var yarn = new YarnRotaryScaling(8, 512);
        var stretched = new RotaryEmbedding(64, 10000, yarn).InverseFrequencies;
        for (var pair = 0; pair < 32; pair++)
        {
            var turns = 512 * plain[pair] / (2 * Math.PI);
            Assert.True(turns < 4 || llama[pair] == plain[pair]);
            Assert.True(turns > 1 || Math.Abs((llama[pair] * 8) - plain[pair]) < 1e-15);
            Assert.True(turns < 32 || stretched[pair] == plain[pair]);
            Assert.InRange(stretched[pair], plain[pair] / 8 * (1 - 1e-12), plain[pair]);
        }

        Assert.Equal((0.1 * Math.Log(8)) + 1, yarn.AttentionFactor, 1e-12);
        using var scope = NewDisposeScope();
        var tables = new RotaryEmbedding(64, 10000, yarn).Tables(zeros(1, dtype: int64), ScalarType.Float64);
        Assert.Equal(yarn.AttentionFactor, tables.Cosine[0, 0, 0].item<double>(), 1e-12);
    }

    [Fact]
    public void ImpossibleShapesAreRefused()
    {
        Assert.Contains("even", Assert.Throws<ArgumentException>(() => new RotaryEmbedding(7)).Message);
        Assert.Contains("positive", Assert.Throws<ArgumentException>(() => new RotaryEmbedding(8, theta: 0)).Message);
    }
}
