#pragma warning disable xUnit1051 // The calls take milliseconds: there is nothing to cancel.
using Heed.Models.Decoders;
using Heed.Models.Generation;
using Heed.Models.Tests.Decoders;
using Heed.Models.Tokenizers;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Generation;

public class TextGeneratorTests
{
    private static readonly int[] Prompt = [5, 9, 2, 30];

    [Fact]
    public void GreedyTokensAreTheLikeliestOfTheWholeTextEachTime()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new Decoder(SmallModels.All["mistral"], seed: 8);
        var told = new List<int>();

        var result = new TextGenerator(model).Generate(Prompt, new GenerationOptions { Temperature = 0, MaximumTokens = 12, StopTokenIds = [] }, told.Add);

        var text = Prompt.Select(id => (long)id).ToList();
        for (var i = 0; i < 12; i++)
        {
            text.Add(model.forward(tensor(text.ToArray()).unsqueeze(0))[0, -1].argmax().item<long>());
        }

        Assert.Equal(text.Skip(4).Select(id => (int)id), result.Ids);
        Assert.Equal(result.Ids, told);
        Assert.Equal((StopReason.MaximumTokens, 4), (result.Reason, result.PromptTokens));
        Assert.True(result.CacheBytes > 0 && result.TokensPerSecond > 0);
    }

    [Fact]
    public void AHalfPrecisionCacheTakesHalfTheMemory()
    {
        using var model = new Decoder(SmallModels.Llama, seed: 8);
        var generator = new TextGenerator(model);
        var options = new GenerationOptions { Temperature = 0, MaximumTokens = 12, StopTokenIds = [] };

        var full = generator.Generate(Prompt, options);
        var half = generator.Generate(Prompt, options with { CacheType = ScalarType.BFloat16 });

        Assert.Equal(full.CacheBytes, 2 * half.CacheBytes);
        Assert.Equal(12, half.Ids.Count);
        Assert.Equal(full.Ids[0], half.Ids[0]);
    }

    [Fact]
    public void ASeedDecidesTheTokens()
    {
        using var model = new Decoder(SmallModels.Llama, seed: 8);
        var generator = new TextGenerator(model);
        int[] Generate(int seed) => [.. generator.Generate(Prompt, new GenerationOptions { Seed = seed, MaximumTokens = 20, StopTokenIds = [] }).Ids];

        Assert.Equal(Generate(1), Generate(1));
        Assert.NotEqual(Generate(1), Generate(2));
    }

    [Fact]
    public void StopTokensTheContextAndCancellationEndIt()
    {
        using var model = new Decoder(SmallModels.Llama, seed: 8);
        var generator = new TextGenerator(model);
        var greedy = new GenerationOptions { Temperature = 0, MaximumTokens = 500, StopTokenIds = [] };
        var all = generator.Generate(Prompt, greedy);

        Assert.Equal((StopReason.ContextLength, 61), (all.Reason, all.Ids.Count));
        var stopped = generator.Generate(Prompt, greedy with { StopTokenIds = [all.Ids[7]] });
        Assert.Equal(StopReason.StopToken, stopped.Reason);
        Assert.Equal(all.Ids.TakeWhile(id => id != all.Ids[7]), stopped.Ids);
        using var cancellation = new CancellationTokenSource();
        var count = 0;
        Assert.Throws<OperationCanceledException>(() => generator.Generate(
            Prompt, greedy,
            _ =>
            {
                if (++count == 3)
                {
                    cancellation.Cancel();
                }
            },
            cancellation.Token));
        Assert.Equal(3, count);
    }

    [Fact]
    public void TextIsStreamedInWholeCharacters()
    {
        var configuration = SmallModels.Llama with { VocabularySize = 257, EndTokenIds = [] };
        using var model = new Decoder(configuration, seed: 1);
        var tokenizer = new ByteTokenizer();
        // The output layer of this model says the bytes of one text in a circle, whatever it reads.
        var (text, bytes) = ("é😀a", System.Text.Encoding.UTF8.GetBytes("é😀a"));
        using (no_grad())
        {
            foreach (var (name, parameter) in model.named_parameters())
            {
                if (name.EndsWith("o_proj.weight", StringComparison.Ordinal) || name.EndsWith("down_proj.weight", StringComparison.Ordinal) || name == "lm_head.weight" || name.Contains("embed", StringComparison.Ordinal))
                {
                    parameter.zero_();
                }
            }

            var (embedding, output) = (model.get_parameter("model.embed_tokens.weight")!, model.get_parameter("lm_head.weight")!);
            for (var i = 0; i < bytes.Length; i++)
            {
                embedding[bytes[i], i] = 1;
                output[bytes[(i + 1) % bytes.Length], i] = 1;
            }

            embedding[256, bytes.Length] = 1;
            output[bytes[0], bytes.Length] = 1;
        }

        var pieces = new List<string>();
        var result = new TextGenerator(model, tokenizer).Generate("", new GenerationOptions { Temperature = 0, MaximumTokens = 14 }, pieces.Add);

        Assert.Equal(text + text, result.Text);
        Assert.Equal(["é", "😀", "a", "é", "😀", "a"], pieces);
    }

    [Fact]
    public void SamplingKeepsToTopKAndTopP()
    {
        float[] logits = [0, 3, 1, 3, -2];
        var random = Enumerable.Range(0, 300).Select(seed => new TokenSampler(new GenerationOptions { Seed = seed, TopK = 3 }).Choose(logits)).ToHashSet();
        Assert.Equal([1, 2, 3], random.Order());
        // Tokens 1 and 3 hold 0.86 of the probability, each 0.43.
        Assert.Equal([1, 3], Enumerable.Range(0, 200).Select(seed => new TokenSampler(new GenerationOptions { Seed = seed, TopP = 0.8 }).Choose(logits)).Distinct().Order());
        Assert.Equal([1], Enumerable.Range(0, 50).Select(seed => new TokenSampler(new GenerationOptions { Seed = seed, TopP = 0.4 }).Choose(logits)).Distinct());
        Assert.Equal(1, new TokenSampler(new GenerationOptions { Temperature = 0 }).Choose(logits));

        // A thousand draws of one sampler follow the softmax within four standard deviations.
        var sampler = new TokenSampler(new GenerationOptions());
        var drawn = Enumerable.Range(0, 1000).Count(_ => sampler.Choose(logits) == 2);
        var weights = logits.Select(logit => Math.Exp(logit)).ToArray();
        var share = weights[2] / weights.Sum();
        Assert.InRange(drawn, (1000 * share) - (4 * Math.Sqrt(1000 * share * (1 - share))), (1000 * share) + (4 * Math.Sqrt(1000 * share * (1 - share))));
    }

    [Fact]
    public void BadInputIsRefusedWithASentence()
    {
        using var model = new Decoder(SmallModels.Llama);
        var generator = new TextGenerator(model);

        Assert.Contains("no token", Assert.Throws<ArgumentException>(() => generator.Generate([])).Message);
        Assert.Contains("65 tokens", Assert.Throws<ArgumentException>(() => generator.Generate(new int[65])).Message);
        Assert.Contains("no tokenizer", Assert.Throws<InvalidOperationException>(() => generator.Generate("text")).Message);
        Assert.Contains("TopP", Assert.Throws<ArgumentException>(() => generator.Generate(Prompt, new GenerationOptions { TopP = 0 })).Message);
        Assert.Contains("Temperature", Assert.Throws<ArgumentException>(() => generator.Generate(Prompt, new GenerationOptions { Temperature = double.NaN })).Message);
        Assert.Contains("TopK", Assert.Throws<ArgumentException>(() => generator.Generate(Prompt, new GenerationOptions { TopK = -1 })).Message);
        Assert.Contains("not numbers", Assert.Throws<NotFiniteNumberException>(() => new TokenSampler(new GenerationOptions()).Choose([0, float.NaN])).Message);
    }
}
