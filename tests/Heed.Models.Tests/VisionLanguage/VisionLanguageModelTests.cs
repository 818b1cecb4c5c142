#pragma warning disable xUnit1051 // The calls take milliseconds: there is nothing to cancel.
using Heed.Models.Generation;
using Heed.Models.Tests.Decoders;
using Heed.Models.VisionLanguage;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.VisionLanguage;

public class VisionLanguageModelTests
{
    private static readonly long[] Row = [1, 5, TinyVisionLanguage.ImageToken, 7, 9, 11];

    [Fact]
    public void EmbeddingsGiveTheLogitsOfTheirTokens()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        foreach (var (name, configuration) in SmallModels.All)
        {
            using var model = new Heed.Models.Decoders.Decoder(configuration, seed: 3);
            var ids = DecoderTests.Ids(2, 9, seed: 5);
            var (fromIds, fromEmbeddings) = (new List<Tensor>(), new List<Tensor>());
            var embeddings = model.Embed(ids);

            Assert.True(TinyVisionLanguage.Same(model.forward(ids, null, fromIds), model.ForwardEmbeddings(embeddings, null, fromEmbeddings)), name);
            Assert.All(fromIds.Zip(fromEmbeddings), pair => Assert.True(TinyVisionLanguage.Same(pair.First, pair.Second)));
            Assert.False(embeddings.IsInvalid);
        }
    }

    [Fact]
    public void HiddenStatesOutliveTheCallAndTheCallersEmbeddingsStayWhereTheyWere()
    {
        using var quiet = no_grad();
        using var model = new Heed.Models.Decoders.Decoder(SmallModels.Llama, seed: 3);
        using var outer = NewDisposeScope();
        var states = new List<Tensor>();
        Tensor embeddings;
        using (NewDisposeScope())
        {
            embeddings = model.Embed(DecoderTests.Ids(1, 4, seed: 5));
            model.ForwardEmbeddings(embeddings, null, states);
            Assert.All(states, state => Assert.False(state.IsInvalid));
        }

        Assert.True(embeddings.IsInvalid);
    }

    [Fact]
    public void TheTokenOfThePictureIsReplacedByItsPatches()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        var images = TinyVisionLanguage.Images();
        var ids = TinyVisionLanguage.Ids(Row, [1, 6, TinyVisionLanguage.ImageToken, 8, 8, 8]);

        var logits = model.forward(images, ids);

        var patches = model.EncodeImages(images);
        var by = cat([model.Language.Embed(ids.narrow(1, 0, 2)), patches, model.Language.Embed(ids.narrow(1, 3, 3))], 1);
        Assert.Equal([2L, 14, 41], logits.shape);
        Assert.True(TinyVisionLanguage.Same(logits, model.Language.ForwardEmbeddings(by)));
        var layout = model.Hooks.Layout!;
        Assert.Equal([new(TokenKind.Text, 0, 2), new(TokenKind.Image, 2, 9, 3, 3), new TokenSpan(TokenKind.Text, 11, 3)], layout.Spans);
    }

    [Fact]
    public void APictureMayBeWrittenAsOneTokenOrAsManyAsItHas()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        var images = TinyVisionLanguage.Images(1);
        long[] expanded = [1, 5, .. Enumerable.Repeat((long)TinyVisionLanguage.ImageToken, 9), 7, 9, 11];

        Assert.True(TinyVisionLanguage.Same(model.forward(images, TinyVisionLanguage.Ids(Row)), model.forward(images, TinyVisionLanguage.Ids(expanded))));
    }

    [Fact]
    public void ThePictureMayComeFirstOrLast()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        var images = TinyVisionLanguage.Images(1);

        model.forward(images, TinyVisionLanguage.Ids([TinyVisionLanguage.ImageToken, 4]));
        Assert.Equal(2, model.Hooks.Layout!.Spans.Count);
        Assert.Equal(0, model.Hooks.Layout.Only(TokenKind.Image).Start);
        model.forward(images, TinyVisionLanguage.Ids([4, TinyVisionLanguage.ImageToken]));
        Assert.Equal(1, model.Hooks.Layout.Only(TokenKind.Image).Start);
    }

    [Fact]
    public void FeaturesAreThoseAfterTheLayerThatIsNamedWithoutTheClassToken()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        var images = TinyVisionLanguage.Images();
        var kept = new StateKeeper();
        using (model.Vision.Hooks.Install(kept))
        {
            model.Vision.forward(images);
        }

        // The output of the layer before the last is the input of the last.
        Assert.Equal(3, kept.Inputs.Count);
        Assert.True(TinyVisionLanguage.Same(kept.Inputs[2], model.Vision.Tokens(images, -2)));
        Assert.True(TinyVisionLanguage.Same(model.EncodeImages(images), model.Project(kept.Inputs[2].narrow(1, 1, 9))));
        Assert.True(TinyVisionLanguage.Same(model.Vision.Tokens(images, 2), model.Vision.Tokens(images, -2)));
        using var whole = TinyVisionLanguage.Make(TinyVisionLanguage.Configuration with { KeepClassToken = true });
        Assert.Equal(10, whole.EncodeImages(images).shape[1]);
    }

    [Fact]
    public void TheEncoderIsThatOfPlainFormulas()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        model.to(float64);
        var images = TinyVisionLanguage.Images(1).to(float64);
        var weights = model.Vision.named_parameters().ToDictionary(entry => entry.name["vision_model.".Length..], entry => (Tensor)entry.parameter);
        Tensor Norm(Tensor x, string name) => nn.functional.layer_norm(x, [16], weights[$"{name}.weight"], weights[$"{name}.bias"], 1e-5);
        Tensor Linear(Tensor x, string name) => x.matmul(weights[$"{name}.weight"].t()) + weights[$"{name}.bias"];
        var patches = images.view(1, 3, 3, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).reshape(1, 9, 48).matmul(weights["embeddings.patch_embedding.weight"].view(16, 48).t());
        var x = Norm(cat([weights["embeddings.class_embedding"].view(1, 1, 16), patches], 1) + weights["embeddings.position_embedding.weight"], "pre_layrnorm");
        for (var layer = 0; layer < 3; layer++)
        {
            var prefix = $"encoder.layers.{layer}.";
            var normal = Norm(x, $"{prefix}layer_norm1");
            Tensor Heads(string part) => Linear(normal, $"{prefix}self_attn.{part}_proj").view(1, 10, 2, 8).transpose(1, 2);
            var map = (Heads("q").matmul(Heads("k").transpose(2, 3)) / Math.Sqrt(8)).softmax(-1);
            x += Linear(map.matmul(Heads("v")).transpose(1, 2).reshape(1, 10, 16), $"{prefix}self_attn.out_proj");
            var hidden = Linear(Norm(x, $"{prefix}layer_norm2"), $"{prefix}mlp.fc1");
            x += Linear(hidden * (1.702 * hidden).sigmoid(), $"{prefix}mlp.fc2");
        }

        Assert.True((model.Vision.forward(images) - x).abs().max().item<double>() < 1e-11);
        Assert.True((model.Vision.Pool(x) - Norm(x[.., 0], "post_layernorm")).abs().max().item<double>() < 1e-12);
    }

    [Fact]
    public void GenerationReadsThePictureAndGoesOnWithACache()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        var images = TinyVisionLanguage.Images(1);
        using var prompt = model.Prompt(images, Row);
        TokenLayout? seen = null;
        var generator = new TextGenerator(model.Language);

        var result = generator.Generate(prompt, new() { Temperature = 0, MaximumTokens = 6, StopTokenIds = [] }, (int _) => seen = model.Hooks.Layout);

        var text = Row.ToList();
        for (var step = 0; step < 6; step++)
        {
            text.Add(model.forward(images, TinyVisionLanguage.Ids([.. text]))[0, -1].argmax().item<long>());
        }

        Assert.Equal(text.Skip(Row.Length).Select(id => (int)id), result.Ids);
        Assert.Equal(14, result.PromptTokens);
        Assert.Same(prompt.Layout, seen);
    }

    [Fact]
    public void TheLayoutOfAPromptEndsWithItsGeneration()
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Make();
        using var prompt = model.Prompt(TinyVisionLanguage.Images(1), Row);

        new TextGenerator(model.Language).Generate(prompt, new() { MaximumTokens = 2, Seed = 5 });

        Assert.Null(model.Hooks.Layout);
    }

    [Fact]
    public void SampledTextsDependOnTheSeedAlone()
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Make();
        using var prompt = model.Prompt(TinyVisionLanguage.Images(1), Row);
        var generator = new TextGenerator(model.Language);
        GenerationOptions Options(int seed) => new() { Temperature = 3, MaximumTokens = 20, Seed = seed, StopTokenIds = [] };

        Assert.Equal(generator.Generate(prompt, Options(1)).Ids, generator.Generate(prompt, Options(1)).Ids);
        Assert.NotEqual(generator.Generate(prompt, Options(1)).Ids, generator.Generate(prompt, Options(2)).Ids);
    }

    [Fact]
    public void GradientsReachTheEncoder()
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Make();

        model.forward(TinyVisionLanguage.Images(1), TinyVisionLanguage.Ids(Row)).square().sum().backward();

        // The last layer and the norm after it are behind the features.
        var without = model.named_parameters().Where(entry => entry.parameter.grad is null || entry.parameter.grad.abs().max().item<float>() == 0).Select(entry => entry.name).ToList();
        Assert.All(without, name => Assert.True(name.Contains("layers.2.", StringComparison.Ordinal) || name.Contains("post_layernorm", StringComparison.Ordinal), name));
    }

    [Fact]
    public void MapsOfThePictureAreThereToBeProbed()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        using var language = new AttentionMapProbe();
        using var vision = new AttentionMapProbe();
        using var first = model.Hooks.Install(language);
        using var second = model.Vision.Hooks.Install(vision);

        model.forward(TinyVisionLanguage.Images(1), TinyVisionLanguage.Ids(Row));

        Assert.Equal([1L, 4, 14, 14], language[language.Sites[1]].shape);
        Assert.Equal(["vision_model.encoder.layers.0.self_attn", "vision_model.encoder.layers.1.self_attn"], vision.Sites.Select(site => site.Name));
        Assert.Equal([1L, 2, 10, 10], vision[vision.Sites[0]].shape);
    }

    [Fact]
    public void WhatDoesNotFitIsRefused()
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Make();
        var images = TinyVisionLanguage.Images();
        string Error(Func<object?> action) => Assert.ThrowsAny<ArgumentException>(action).Message;

        Assert.Contains("no image in it", Error(() => model.forward(images, TinyVisionLanguage.Ids([1, 2], [1, 2]))), StringComparison.Ordinal);
        Assert.Contains("has it 2 times", Error(() => model.forward(images, TinyVisionLanguage.Ids([40, 40], [40, 40]))), StringComparison.Ordinal);
        Assert.Contains("row 1 is elsewhere", Error(() => model.forward(images, TinyVisionLanguage.Ids([1, 40], [40, 1]))), StringComparison.Ordinal);
        Assert.Contains("[batch, 3, 12, 12], not [2, 3, 16, 16]", Error(() => model.forward(ones(2, 3, 16, 16), TinyVisionLanguage.Ids(Row, Row))), StringComparison.Ordinal);
        Assert.Contains("as many pictures", Error(() => model.forward(images, TinyVisionLanguage.Ids(Row))), StringComparison.Ordinal);
        Assert.Contains("not in the vocabulary", Error(() => model.forward(images, TinyVisionLanguage.Ids([40, 99], [40, 99]))), StringComparison.Ordinal);
        Assert.Contains("after layer -4 to 3, not 4", Error(() => model.Vision.Tokens(images, 4)), StringComparison.Ordinal);
        Assert.Contains("[batch, tokens, 24]", Error(() => model.Language.ForwardEmbeddings(ones(1, 2, 23))), StringComparison.Ordinal);
        Assert.Contains("one sequence", Error(() => new EmbeddedPrompt(ones(2, 3, 24))), StringComparison.Ordinal);
        Assert.Contains("describes 4 tokens", Error(() => new EmbeddedPrompt(ones(1, 3, 24), new(new TokenSpan(TokenKind.Text, 0, 4)))), StringComparison.Ordinal);
        Assert.Contains("feature layer", Error(() => new VisionLanguageModel(TinyVisionLanguage.Configuration with { FeatureLayer = -5 })), StringComparison.Ordinal);
        Assert.Contains("quick_gelu or gelu", Error(() => new ClipVisionEncoder(TinyVisionLanguage.Configuration.Vision with { Activation = "relu" })), StringComparison.Ordinal);
        Assert.Contains("heads divide", Error(() => new ClipVisionEncoder(TinyVisionLanguage.Configuration.Vision with { Heads = 3 })), StringComparison.Ordinal);
    }

    private sealed class StateKeeper : StreamHook
    {
        public List<Tensor> Inputs { get; } = [];

        public override bool ActsAt(StreamSite site) => site.Point == StreamPoint.BlockInput;

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            Inputs.Add(states.detach().DetachFromDisposeScope());
            return states;
        }
    }
}
