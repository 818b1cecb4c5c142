using Heed.Models.Decoders;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Decoders;

public class DecoderTests
{
    public static TheoryData<string> Names { get; } = [.. SmallModels.All.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void ACacheGivesTheLogitsOfTheWholeText(string name)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new Decoder(SmallModels.All[name], seed: 3);
        model.to(float64);
        var ids = Ids(2, 17, seed: 5);
        var whole = model.forward(ids);

        using var cache = model.CreateCache(ScalarType.Float64);
        var pieces = new[] { 6, 1, 1, 4, 1, 1, 1, 2 };
        var parts = new List<Tensor>();
        var at = 0;
        foreach (var length in pieces)
        {
            parts.Add(model.forward(ids.narrow(1, at, length), cache));
            at += length;
        }

        Assert.Equal(17, cache.Length);
        Assert.True((cat(parts, 1) - whole).abs().max().item<double>() < 1e-12);
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void LogitsAreThoseOfThePlainFormulas(string name)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new Decoder(SmallModels.All[name], seed: 3);
        model.to(float64);
        using var generator = new Generator(9);
        foreach (var parameter in model.parameters())
        {
            // Weights of ordinary size, norms that are not all one, biases that are not all zero.
            parameter.normal_(0.1, 0.3, generator);
        }

        var weights = model.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter.data<double>().ToArray());
        var ids = Ids(2, 11, seed: 5);
        var logits = model.forward(ids);
        var single = model.to(float32).call(ids).to(float64);

        for (var text = 0; text < 2; text++)
        {
            var plain = new PlainDecoder(SmallModels.All[name], weights.GetValueOrDefault).Logits([.. ids[text].data<long>().Select(id => (int)id)]);
            var expected = tensor(plain.SelectMany(row => row).ToArray()).view(11, 41);
            Assert.True((logits[text] - expected).abs().max().item<double>() < 1e-10);
            // Two layers of sums of some tens of float32 products: relative errors of some 2^-24 each.
            Assert.True((single[text] - expected).abs().max().item<double>() < 1e-4 * expected.abs().max().item<double>());
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void LaterTokensDoNotChangeEarlierLogits(string name)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new Decoder(SmallModels.All[name], seed: 3);
        var ids = Ids(1, 12, seed: 5);
        var other = ids.clone();
        other[0, 11] = (ids[0, 11] + 1).remainder(41);

        var (first, second) = (model.forward(ids), model.forward(other));

        Assert.True((first - second).narrow(1, 0, 11).abs().max().item<float>() == 0);
        Assert.True((first - second).narrow(1, 11, 1).abs().max().item<float>() > 0);
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void ParametersAreThoseToldFromTheConfiguration(string name)
    {
        using var model = new Decoder(SmallModels.All[name]);

        var expected = DecoderTensors.Of(SmallModels.All[name]).Select(entry => $"{entry.Name} [{string.Join(", ", entry.Shape)}]").Order();
        var actual = model.named_parameters().Select(entry => $"{entry.name} [{string.Join(", ", entry.parameter.shape)}]").Order();

        Assert.Equal(expected, actual);
        Assert.Equal(DecoderTensors.Of(SmallModels.All[name]).Sum(entry => entry.Shape.Aggregate(1L, (product, size) => product * size)), model.ParameterCount);
    }

    [Fact]
    public void ASeedDecidesTheWeightsAndLeavesTheGlobalGeneratorAlone()
    {
        using var scope = NewDisposeScope();
        manual_seed(11);
        var expected = rand(1).item<float>();
        manual_seed(11);
        using var first = new Decoder(SmallModels.Llama, seed: 3);
        using var same = new Decoder(SmallModels.Llama, seed: 3);
        using var other = new Decoder(SmallModels.Llama, seed: 4);

        Assert.Equal(expected, rand(1).item<float>());
        Assert.All(first.parameters().Zip(same.parameters()), pair => Assert.True(pair.First.eq(pair.Second).all().item<bool>()));
        Assert.Contains(first.parameters().Zip(other.parameters()), pair => !pair.First.eq(pair.Second).all().item<bool>());
    }

    [Fact]
    public void ModelsOutliveTheScopeTheyAreMadeInAndLeakNothing()
    {
        Decoder model;
        using (NewDisposeScope())
        {
            model = new Decoder(SmallModels.Llama);
        }

        using (model)
        {
            using var ids = Ids(1, 8, seed: 1);
            using var quiet = no_grad();
            for (var i = 0; i < 3; i++)
            {
                model.forward(ids).Dispose();
            }

            var before = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
            for (var i = 0; i < 20; i++)
            {
                model.forward(ids).Dispose();
            }

            Assert.Equal(before, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
        }
    }

    [Fact]
    public void HiddenStatesAreEmbeddingsLayersAndTheLastAfterItsNorm()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new Decoder(SmallModels.Llama);
        var ids = Ids(2, 5, seed: 1);
        var hidden = new List<Tensor>();

        var logits = model.forward(ids, null, hidden);

        Assert.Equal(3, hidden.Count);
        Assert.All(hidden, state => Assert.Equal([2, 5, 24], state.shape));
        Assert.True(hidden[0].eq(model.get_parameter("model.embed_tokens.weight")![ids]).all().item<bool>());
        Assert.True((hidden[2].matmul(model.get_parameter("lm_head.weight")!.t()) - logits).abs().max().item<float>() < 1e-5);
        Assert.True((model.forward(ids, null, lastOnly: true) - logits.narrow(1, 4, 1)).abs().max().item<float>() < 1e-5);
    }

    [Fact]
    public void ASlidingWindowHidesWhatLiesBehindIt()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new Decoder(SmallModels.All["qwen2"]);
        using var probe = new AttentionMapProbe();
        using (model.Hooks.Install(probe))
        {
            model.forward(Ids(1, 9, seed: 1));
        }

        Assert.Equal(["model.layers.0.self_attn", "model.layers.1.self_attn"], probe.Sites.Select(site => site.Name));
        var far = ones(9, 9).tril(-4).to(@bool);
        Assert.True(probe[probe.Sites[0]].masked_select(far).min().item<float>() > 0);
        Assert.True(probe[probe.Sites[1]].masked_select(far).max().item<float>() == 0);
    }

    [Fact]
    public void BadIdsAndCachesAreRefusedWithASentence()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new Decoder(SmallModels.Llama);
        using var foreign = new KeyValueCache(3);

        Assert.Contains("token id 41", Assert.Throws<ArgumentException>(() => model.forward(tensor(new long[,] { { 3, 41 } }))).Message);
        Assert.Contains("token id -1", Assert.Throws<ArgumentException>(() => model.forward(tensor(new long[,] { { -1 } }))).Message);
        Assert.Contains("int64", Assert.Throws<ArgumentException>(() => model.forward(zeros(1, 4))).Message);
        Assert.Contains("at least one token", Assert.Throws<ArgumentException>(() => model.forward(zeros(1, 0, dtype: int64))).Message);
        Assert.Contains("3 layers", Assert.Throws<ArgumentException>(() => model.forward(Ids(1, 2, seed: 1), foreign)).Message);
    }

    [Fact]
    public void GradientsReachEveryParameter()
    {
        foreach (var (name, configuration) in SmallModels.All)
        {
            using var scope = NewDisposeScope();
            using var model = new Decoder(configuration, seed: 2);
            var ids = Ids(2, 9, seed: 1);
            var logits = model.forward(ids);
            nn.functional.cross_entropy(logits.narrow(1, 0, 8).reshape(-1, 41), ids.narrow(1, 1, 8).reshape(-1)).backward();

            foreach (var (parameter, value) in model.named_parameters())
            {
                Assert.True(value.grad is { } gradient && gradient.abs().max().item<float>() > 0, $"{name}: {parameter}");
            }
        }
    }

    internal static Tensor Ids(long batch, long tokens, int seed)
    {
        var random = new Random(seed);
        return tensor(Enumerable.Range(0, (int)(batch * tokens)).Select(_ => (long)random.Next(41)).ToArray()).view(batch, tokens);
    }
}
