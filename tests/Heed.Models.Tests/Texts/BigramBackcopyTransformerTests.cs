using Heed.Edits;
using Heed.Kernels;
using Heed.Models.Texts;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Texts;

public sealed class BigramBackcopyTransformerTests
{
    private static readonly BigramBackcopyOptions Small = new() { Vocabulary = 11, Length = 12, Width = 8, Layers = 3, Heads = 2 };

    public static TheoryData<string, BigramBackcopyOptions> Shapes => new()
    {
        { "softmax", Small },
        { "ReLU", Small with { Normalizer = Normalizer.ReluOverPosition } },
        { "post-norm", Small with { PreNorm = false } },
        { "parts left out", Small with { WithoutAttention = [2], WithoutFeedForward = [0], LinearFeedForward = [1] } },
        { "parts left out, post-norm", Small with { PreNorm = false, WithoutAttention = [0], WithoutFeedForward = [0, 2], LinearFeedForward = [1] } },
    };

    [Theory]
    [MemberData(nameof(Shapes))]
    public void It_is_the_plain_formula(string name, BigramBackcopyOptions options)
    {
        Assert.NotEmpty(name);
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = Model(options);
        var tokens = randint(0, 11, [2, 9], dtype: int64);

        Assert.True((model.forward(tokens) - Plain(model, tokens)).abs().max().item<double>() < 1e-12);
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void No_token_sees_a_later_one_and_all_used_parameters_learn(string name, BigramBackcopyOptions options)
    {
        Assert.NotEmpty(name);
        using var scope = NewDisposeScope();
        using var model = Model(options);
        var tokens = randint(0, 10, [1, 12], dtype: int64);
        var changed = tokens.clone();
        changed[0, 7] = 10;
        var (first, second) = (model.forward(tokens), model.forward(changed));
        Assert.True((first - second).narrow(1, 0, 7).abs().max().item<double>() == 0);
        Assert.True((first - second).select(1, 7).abs().max().item<double>() > 1e-6);

        // Squares, for the sum of a layer norm's output does not depend on its input.
        first.square().sum().backward();
        foreach (var (parameter, tensor) in model.named_parameters())
        {
            var parts = parameter.Split('.');
            var unused = parts[0] == "layers" && int.Parse(parts[1]) is var layer
                && (parts[2].StartsWith("attention", StringComparison.Ordinal) ? options.WithoutAttention.Contains(layer) : options.WithoutFeedForward.Contains(layer));
            Assert.Equal(unused, tensor.grad is null || tensor.grad.abs().max().item<double>() == 0);
        }
    }

    [Fact]
    public void Names_are_the_authors()
    {
        using var scope = NewDisposeScope();
        using var model = new BigramBackcopyTransformer(Small with { Layers = 1 });
        string[] layer = ["attention.wk.weight", "attention.wo.weight", "attention.wq.weight", "attention.wv.weight", "attention_norm.bias", "attention_norm.weight", "ff.w1.weight", "ff.w2.weight", "ff_norm.bias", "ff_norm.weight"];
        Assert.Equal(
            [.. layer.Select(name => $"layers.0.{name}"), "norm.bias", "norm.weight", "output.weight", "pos_embeddings.weight", "tok_embeddings.weight"],
            model.named_parameters().Select(entry => entry.name).Order(StringComparer.Ordinal));
        using var post = new BigramBackcopyTransformer(Small with { PreNorm = false, LinearFeedForward = [0] });
        var names = post.named_parameters().Select(entry => entry.name).ToArray();
        Assert.DoesNotContain("norm.weight", names);
        Assert.Contains("layers.0.ff.weight", names);
    }

    [Fact]
    public void Hooks_see_and_change_heads_and_hidden_states()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = Model(Small);
        var tokens = randint(0, 11, [2, 9], dtype: int64);
        var plain = model.forward(tokens);
        var places = new List<StreamPoint>();
        using (model.Hooks.Install(new Watcher(site =>
        {
            if (site.Layer == 1)
            {
                places.Add(site.Point);
            }
        })))
        {
            Assert.True(model.forward(tokens).equal(plain).all().item<bool>());
        }

        Assert.Equal(
            [
                StreamPoint.BlockInput, StreamPoint.AttentionInput, StreamPoint.AttentionOutput, StreamPoint.FeedForwardInput, StreamPoint.Gate, StreamPoint.Activation, StreamPoint.FeedForwardOutput,
                StreamPoint.BlockOutput,
            ], places);
        using (model.Hooks.Install(HeadScaling.Zero((1, 0), (1, 1))))
        {
            using var without = Model(Small with { WithoutAttention = [1] });
            foreach (var (name, parameter) in model.named_parameters())
            {
                without.get_parameter(name)!.copy_(parameter);
            }

            Assert.True((model.forward(tokens) - without.forward(tokens)).abs().max().item<double>() < 1e-12);
        }

        Assert.True(model.forward(tokens).equal(plain).all().item<bool>());
    }

    [Fact]
    public void Training_leaves_nothing_behind()
    {
        using var model = new BigramBackcopyTransformer(Small);
        var before = 0L;
        for (var step = 0; step < 30; step++)
        {
            using (NewDisposeScope())
            {
                model.forward(randint(0, 11, [2, 12], dtype: int64)).square().mean().backward();
            }

            if (step == 9)
            {
                before = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
            }
        }

        Assert.Equal(before, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    [Fact]
    public void Shapes_that_make_no_model_and_tokens_it_cannot_read_are_refused_in_a_sentence()
    {
        static void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        Refused("WithoutAttention names layer 3", () => _ = new BigramBackcopyTransformer(Small with { WithoutAttention = [3] }));
        Refused("LinearFeedForward names layer -1", () => _ = new BigramBackcopyTransformer(Small with { LinearFeedForward = [-1] }));
        Refused("must be positive", () => _ = new BigramBackcopyTransformer(Small with { Layers = 0 }));
        Refused("3 heads", () => _ = new BigramBackcopyTransformer(Small with { Heads = 3 }));
        using var model = new BigramBackcopyTransformer(Small);
        Refused("1 to 12", () => model.forward(zeros([1, 13], dtype: int64)));
    }

    private static BigramBackcopyTransformer Model(BigramBackcopyOptions options)
    {
        manual_seed(3);
        var model = new BigramBackcopyTransformer(options);
        model.to(ScalarType.Float64);
        return model;
    }

    private static Tensor Plain(BigramBackcopyTransformer model, Tensor tokens)
    {
        var (options, length) = (model.Options, tokens.shape[1]);
        Tensor Of(string name) => model.get_parameter(name)!;
        Tensor Norm(Tensor x, string name) => nn.functional.layer_norm(x, [options.Width], Of(name + ".weight"), Of(name + ".bias"), 1e-5);
        var x = Of("tok_embeddings.weight")[tokens] + Of("pos_embeddings.weight").narrow(0, 0, length);
        var visible = ones(length, length, dtype: ScalarType.Bool).tril();
        for (var layer = 0; layer < options.Layers; layer++)
        {
            var at = $"layers.{layer}";
            Tensor Attend(Tensor input)
            {
                Tensor Split(string name) => input.matmul(Of($"{at}.attention.{name}.weight").t()).view(input.shape[0], length, options.Heads, -1).transpose(1, 2);
                var scores = Split("wq").matmul(Split("wk").transpose(2, 3)) / Math.Sqrt(options.Width / options.Heads);
                var weights = options.Normalizer == Normalizer.Softmax
                    ? scores.masked_fill(visible.logical_not(), double.NegativeInfinity).softmax(-1)
                    : scores.masked_fill(visible.logical_not(), 0).relu() / arange(1, length + 1, dtype: float64).view(-1, 1);
                return weights.matmul(Split("wv")).transpose(1, 2).reshape(input.shape).matmul(Of($"{at}.attention.wo.weight").t());
            }

            Tensor Feed(Tensor input) => options.LinearFeedForward.Contains(layer)
                ? input.matmul(Of($"{at}.ff.weight").t())
                : input.matmul(Of($"{at}.ff.w1.weight").t()).relu().matmul(Of($"{at}.ff.w2.weight").t());
            Tensor Add(Tensor states, Func<Tensor, Tensor> part, string norm) => options.PreNorm ? states + part(Norm(states, norm)) : Norm(states + part(states), norm);
            x = options.WithoutAttention.Contains(layer) ? x : Add(x, Attend, $"{at}.attention_norm");
            x = options.WithoutFeedForward.Contains(layer) ? x : Add(x, Feed, $"{at}.ff_norm");
        }

        return (options.PreNorm ? Norm(x, "norm") : x).matmul(Of("output.weight").t());
    }

    private sealed class Watcher(Action<StreamSite> seen) : StreamHook
    {
        public override bool ActsAt(StreamSite site) => true;

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            seen(site);
            return states;
        }
    }
}
