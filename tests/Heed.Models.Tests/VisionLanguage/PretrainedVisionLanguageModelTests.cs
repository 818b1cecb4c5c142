using Heed.Models.Checkpoints;
using Heed.Models.Tokenizers;
using Heed.Models.VisionLanguage;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.VisionLanguage;

public sealed class PretrainedVisionLanguageModelTests : IDisposable
{
    private static readonly long[] Row = [1, 5, TinyVisionLanguage.ImageToken, 7];

    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void WhatIsSavedLoadsAsTheSameModel()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var saved = new PretrainedVisionLanguageModel(TinyVisionLanguage.Make(), normalization: new([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]));
        saved.Save(_folder.Path);

        using var loaded = PretrainedVisionLanguageModel.Load(_folder.Path);
        using var wide = PretrainedVisionLanguageModel.Load(_folder.Path, ScalarType.Float64);

        var (images, ids) = (TinyVisionLanguage.Images(1), TinyVisionLanguage.Ids(Row));
        Assert.True(TinyVisionLanguage.Same(saved.Model.forward(images, ids), loaded.Model.forward(images, ids)));
        Assert.Equal(ScalarType.Float64, wide.Model.forward(images.to(float64), ids).dtype);
        Assert.Equal(saved.Normalization.Mean, loaded.Normalization.Mean);
        Assert.Equal(saved.Normalization.Deviation, loaded.Normalization.Deviation);
        Assert.True(PretrainedVisionLanguageModel.IsIn(_folder.Path));
    }

    // What the checkpoints of three places call the parts (transformers before and since 4.52, LLaVA's authors).
    [Theory]
    [InlineData("vision_tower.", "multi_modal_projector.linear_1.", "multi_modal_projector.linear_2.", "language_model.model.", "language_model.lm_head.")]
    [InlineData("model.vision_tower.", "model.multi_modal_projector.linear_1.", "model.multi_modal_projector.linear_2.", "model.language_model.", "lm_head.")]
    [InlineData("model.vision_tower.vision_tower.", "model.mm_projector.0.", "model.mm_projector.2.", "model.", "lm_head.")]
    public void CheckpointsOfThreePlacesLoad(string vision, string first, string second, string text, string head)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        Write(model, [("vision_tower.", vision), ("multi_modal_projector.linear_1.", first), ("multi_modal_projector.linear_2.", second), ("language_model.model.", text), ("language_model.lm_head.", head)]);
        File.WriteAllText(_folder.At("config.json"), TinyVisionLanguage.Configuration.ToJson());

        using var loaded = PretrainedVisionLanguageModel.Load(_folder.Path);

        var (images, ids) = (TinyVisionLanguage.Images(1), TinyVisionLanguage.Ids(Row));
        Assert.True(TinyVisionLanguage.Same(model.forward(images, ids), loaded.Model.forward(images, ids)));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void TheAuthorsFolderTellsTheEncoderByItsTensors(bool apart)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();

        // Heads of CLIP are 64 wide.
        var configuration = TinyVisionLanguage.Configuration with
        {
            Vision = TinyVisionLanguage.Configuration.Vision with { HiddenSize = 128 }, ImageTokenId = VisionLanguageConfiguration.NoImageToken, LinearProjector = true,
        };
        using var model = TinyVisionLanguage.Make(configuration);
        (string, string)[] names = [("multi_modal_projector.linear_1.", "model.mm_projector."), ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head.")];
        using var other = new TemporaryFolder();
        if (apart)
        {
            Write(model, names, name => !name.StartsWith("vision_tower.", StringComparison.Ordinal));
            Write(model, [("vision_tower.", "")], name => name.StartsWith("vision_tower.", StringComparison.Ordinal), other.Path, ("text_model.embeddings.position_ids", ones(1, 3)), ("logit_scale", ones(1)));
        }
        else
        {
            Write(model, [("vision_tower.", "model.vision_tower.vision_tower."), .. names]);
        }

        var text = configuration.Text.ToJson().TrimEnd().TrimEnd('}') + """
            , "mm_vision_tower": "openai/clip-tiny", "mm_hidden_size": 128, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch" }
            """;
        File.WriteAllText(_folder.At("config.json"), text.Replace("\"llama\"", "\"llava\"", StringComparison.Ordinal));

        using var loaded = PretrainedVisionLanguageModel.Load(_folder.Path, visionFolder: apart ? other.Path : null);

        Assert.Equal(configuration.Vision, loaded.Configuration.Vision);
        var images = TinyVisionLanguage.Images(1);
        var ids = TinyVisionLanguage.Ids([1, VisionLanguageConfiguration.NoImageToken, 7]);
        Assert.True(TinyVisionLanguage.Same(model.forward(images, ids), loaded.Model.forward(images, ids)));
        if (apart)
        {
            Assert.Contains("lacks the vision encoder (openai/clip-tiny)", Assert.Throws<InvalidDataException>(() => PretrainedVisionLanguageModel.Load(_folder.Path)).Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void DefaultsAreThoseOfTheTransformersLibrary()
    {
        var read = VisionLanguageConfiguration.Parse("""
            { "model_type": "llava", "image_token_index": 32000, "projector_hidden_act": "gelu", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
              "text_config": { "model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064 },
              "vision_config": { "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14 } }
            """);

        Assert.Equal(576, read.ImageTokens);
        Assert.Equal((4096, 11008, 32, 32, 32064), (read.Text.HiddenSize, read.Text.IntermediateSize, read.Text.Layers, read.Text.Heads, read.Text.VocabularySize));
        Assert.Equal(("quick_gelu", -2, false), (read.Vision.Activation, read.FeatureLayer, read.KeepClassToken));
        Assert.Equal(read.ToJson(), VisionLanguageConfiguration.Parse(read.ToJson()).ToJson());
    }

    [Fact]
    public void PromptsHoldTheirPictureWhereTheySayOrFirst()
    {
        using var named = new PretrainedVisionLanguageModel(TinyVisionLanguage.Make(), new WordTokenizer(TinyVisionLanguage.ImageToken));
        using var unnamed = new PretrainedVisionLanguageModel(
            TinyVisionLanguage.Make(TinyVisionLanguage.Configuration with { ImageTokenId = VisionLanguageConfiguration.NoImageToken }), new WordTokenizer(null));

        Assert.Equal([1L, 40, 3, 4], named.Encode("c d"));
        Assert.Equal([1L, 3, 40, 4], named.Encode("c <image> d"));
        Assert.Equal([1L, -200, 3, 4], unnamed.Encode("c d"));
        Assert.Equal([1L, 3, -200, 4], unnamed.Encode("c <image> d"));
    }

    [Fact]
    public void FoldersThatDoNotFitAreRefused()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        string Error(string json)
        {
            File.WriteAllText(_folder.At("config.json"), json);
            return Assert.Throws<InvalidDataException>(() => PretrainedVisionLanguageModel.Load(_folder.Path)).Message;
        }

        var json = TinyVisionLanguage.Configuration.ToJson();
        Write(model, []);
        Assert.Contains("not valid JSON", Error("{"), StringComparison.Ordinal);
        Assert.Contains("neither vision_config", Error("{}"), StringComparison.Ordinal);
        Assert.Contains("'siglip_vision_model'; supported is clip_vision_model", Error(json.Replace("clip_vision_model", "siglip_vision_model", StringComparison.Ordinal)), StringComparison.Ordinal);
        Assert.Contains("several encoder layers", Error(json.Replace("\"vision_feature_layer\": -2", "\"vision_feature_layer\": [-2, -1]", StringComparison.Ordinal)), StringComparison.Ordinal);
        Assert.Contains("lacks the tensor 'vision_tower.vision_model.encoder.layers.3", Error(json.Replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", StringComparison.Ordinal)), StringComparison.Ordinal);
        Assert.Contains("config.json asks for", Error(json.Replace("\"patch_size\": 4", "\"patch_size\": 6", StringComparison.Ordinal)), StringComparison.Ordinal);
        Write(model, [], more: ("model.image_newline", ones(3)));
        Assert.Contains("'model.image_newline', for which", Error(json), StringComparison.Ordinal);
        File.WriteAllText(_folder.At(PixelNormalization.FileName), """{ "image_mean": [0.5], "image_std": [0] }""");
        Write(model, []);
        Assert.Contains("does not say how pixels are scaled", Error(json), StringComparison.Ordinal);
        Assert.Throws<DirectoryNotFoundException>(() => PretrainedVisionLanguageModel.Load(_folder.At("absent")));
        Assert.False(PretrainedVisionLanguageModel.IsIn(_folder.At("absent")));
        using var pretrained = new PretrainedVisionLanguageModel(TinyVisionLanguage.Make());
        Assert.Contains("reads 3 x 12 x 12", Assert.Throws<ArgumentException>(() => pretrained.Picture(new byte[5])).Message, StringComparison.Ordinal);
        Assert.Contains("no tokenizer", Assert.Throws<InvalidOperationException>(() => pretrained.Encode("a")).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void PixelsAreScaledChannelByChannel()
    {
        using var scope = NewDisposeScope();
        var scaled = new PixelNormalization([0.5, 0, 1], [0.25, 1, 0.5]).Apply(full(1, 3, 2, 2, 255));

        Assert.Equal([2f, 1f, 0f], scaled[0, TensorIndex.Colon, 0, 0].data<float>().ToArray());
        Assert.Contains("3 channels", Assert.Throws<ArgumentException>(() => PixelNormalization.Clip.Apply(ones(1, 2, 2))).Message, StringComparison.Ordinal);
    }

    private void Write(VisionLanguageModel model, (string Ours, string Theirs)[] names, Func<string, bool>? only = null, string? folder = null, params (string Name, Tensor Value)[] more)
    {
        var tensors = new Dictionary<string, Tensor>();
        foreach (var (name, parameter) in model.named_parameters().Where(entry => only?.Invoke(entry.name) ?? true))
        {
            var (ours, theirs) = names.FirstOrDefault(pair => name.StartsWith(pair.Ours, StringComparison.Ordinal));
            tensors[ours is null ? name : theirs + name[ours.Length..]] = parameter;
        }

        foreach (var (name, value) in more)
        {
            tensors[name] = value;
        }

        SafetensorsWriter.Write(Path.Combine(folder ?? _folder.Path, "model.safetensors"), tensors, null, ScalarType.Float32);
    }

    /// <summary>Letters are tokens: a is 1, and begins texts, too.</summary>
    private sealed class WordTokenizer : TextTokenizer
    {
        private readonly int? _image;

        public WordTokenizer(int? image)
        {
            _image = image;
            BeginTokenId = 1;
        }

        public override int VocabularySize => 41;

        public override string Decode(IEnumerable<int> ids, bool skipSpecial = true) => string.Join(' ', ids.Select(TokenText));

        public override string TokenText(int id) => id == _image ? "<image>" : ((char)('a' + id - 1)).ToString();

        protected override void Encode(string text, ICollection<TextToken> tokens)
        {
            foreach (var word in text.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            {
                tokens.Add(new(word == "<image>" ? _image ?? throw new InvalidOperationException("The mark is no token here.") : word[0] - 'a' + 1, 0, 0));
            }
        }
    }
}
