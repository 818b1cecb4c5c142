using Heed.Models.Checkpoints;
using Heed.Models.Decoders;
using Heed.Models.Tests.Decoders;
using Heed.Models.Tokenizers;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests;

public sealed class PretrainedModelTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public static TheoryData<string> Names { get; } = [.. SmallModels.All.Keys];

    public void Dispose() => _folder.Dispose();

    [Theory]
    [MemberData(nameof(Names))]
    public void WhatIsSavedLoadsAsTheSameModel(string name)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var saved = new PretrainedModel(new Decoder(SmallModels.All[name], seed: 7));
        saved.Save(_folder.Path);

        using var loaded = PretrainedModel.Load(_folder.Path);
        using var wide = PretrainedModel.Load(_folder.Path, ScalarType.Float64);

        var ids = DecoderTests.Ids(1, 9, seed: 2);
        var expected = saved.Model.forward(ids);
        Assert.Null(loaded.Tokenizer);
        Assert.True(expected.eq(loaded.Model.forward(ids)).all().item<bool>());
        Assert.Equal(ScalarType.Float64, wide.Model.forward(ids).dtype);
        Assert.True((expected.to(float64) - wide.Model.forward(ids)).abs().max().item<double>() < 1e-5);
    }

    [Fact]
    public void HalfPrecisionWeightsAndTheTokenizerAreSaved()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var configuration = SmallModels.Llama with { VocabularySize = 257 };
        using var saved = new PretrainedModel(new Decoder(configuration, seed: 7), new ByteTokenizer());
        saved.Save(_folder.Path, ScalarType.BFloat16);

        using var loaded = PretrainedModel.Load(_folder.Path);

        Assert.Contains("\"bfloat16\"", File.ReadAllText(_folder.At("config.json")));
        using var reader = new SafetensorsReader(_folder.At("model.safetensors"));
        Assert.All(reader.Entries.Values, entry => Assert.Equal(ScalarType.BFloat16, entry.Type));
        Assert.Equal(3, Directory.GetFiles(_folder.Path).Length);
        foreach (var ((name, expected), (_, actual)) in saved.Model.named_parameters().Zip(loaded.Model.named_parameters()))
        {
            Assert.Equal(ScalarType.Float32, actual.dtype);
            Assert.True(expected.to(bfloat16).to(float32).eq(actual).all().item<bool>(), name);
        }

        Assert.Equal(saved.Tokenizer!.Encode("aé😀"), loaded.Tokenizer!.Encode("aé😀"));
        Assert.Equal(256, loaded.Tokenizer.BeginTokenId);
    }

    [Fact]
    public void MissingExtraAndMisshapenTensorsAreNamed()
    {
        using var scope = NewDisposeScope();
        using var saved = new PretrainedModel(new Decoder(SmallModels.Llama));
        saved.Save(_folder.Path);
        var tensors = saved.Model.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter);
        void Rewrite(Action<Dictionary<string, Tensor>> change)
        {
            var changed = new Dictionary<string, Tensor>(tensors);
            change(changed);
            SafetensorsWriter.Write(_folder.At("model.safetensors"), changed);
        }

        string Message() => Assert.Throws<InvalidDataException>(() => PretrainedModel.Load(_folder.Path)).Message;

        Rewrite(changed => changed.Remove("model.layers.1.mlp.up_proj.weight"));
        Assert.Contains("lacks the tensor 'model.layers.1.mlp.up_proj.weight'", Message());
        Rewrite(changed => changed["model.layers.2.mlp.up_proj.weight"] = ones(1));
        Assert.Contains("has the tensor 'model.layers.2.mlp.up_proj.weight'", Message());
        Rewrite(changed => changed["model.norm.weight"] = ones(23));
        Assert.Contains("'model.norm.weight'", Message());
        Assert.Contains("[23]", Message());
        Rewrite(changed => changed["model.norm.weight"] = ones(24, dtype: int32));
        Assert.Contains("floating-point", Message());
        Rewrite(changed => changed["model.layers.0.self_attn.rotary_emb.inv_freq"] = ones(3));
        PretrainedModel.Load(_folder.Path).Dispose();
    }

    [Fact]
    public void FoldersThatAreNoModelAreRefusedWithASentence()
    {
        Assert.Contains("does not exist", Assert.Throws<DirectoryNotFoundException>(() => PretrainedModel.Load(_folder.At("none"))).Message);
        Assert.Contains("has no config.json", Assert.Throws<FileNotFoundException>(() => PretrainedModel.Load(_folder.Path)).Message);
        File.WriteAllText(_folder.At("config.json"), SmallModels.Llama.ToJson());
        Assert.Contains("neither", Assert.Throws<FileNotFoundException>(() => PretrainedModel.Load(_folder.Path)).Message);
    }
}
