using System.Text.Json.Nodes;
using Heed.Models.Checkpoints;
using Heed.Models.Speech;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Speech;

public sealed class PretrainedSpeechTests : IDisposable
{
    private static readonly LogMelOptions Features = new() { Bins = 6, Seconds = null, Normalization = FeatureNormalization.PerBin };
    private static readonly string[] Words = [.. Enumerable.Range(0, 11).Select(index => $"w{index}")];
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void A_folder_comes_back_as_it_was(int stride)
    {
        using var scope = NewDisposeScope();
        using var pretrained = new PretrainedSpeech(SpeechTransformerTests.Make(SpeechTransformerTests.Tiny with { FirstStride = stride }), Features, Words);
        pretrained.Save(_folder.Path);
        Assert.True(PretrainedSpeech.IsIn(_folder.Path));
        using var loaded = PretrainedSpeech.Load(_folder.Path);
        Assert.Equal(pretrained.Model.Configuration, loaded.Model.Configuration);
        Assert.Equal(Features, loaded.Features.Options);
        Assert.Equal(Words, loaded.Words);
        Assert.Equal(0.02 * stride, loaded.SecondsPerState, 1e-12);
        Assert.Equal(" w4", loaded.TextOf(4));
        using var still = no_grad();
        var (features, tokens) = (randn(1, 20, 6), tensor(new long[,] { { 1, 3 } }));
        Assert.True(pretrained.Model.forward(features, tokens).eq(loaded.Model.forward(features, tokens)).all().item<bool>());
    }

    [Fact]
    public void Names_are_those_of_Whisper_and_its_tied_output_layer_is_passed_over()
    {
        using var scope = NewDisposeScope();
        using var pretrained = new PretrainedSpeech(SpeechTransformerTests.Make(SpeechTransformerTests.Tiny with { FirstStride = 1 }), new() { Bins = 6 });
        pretrained.Save(_folder.Path);
        var configuration = JsonNode.Parse(File.ReadAllText(_folder.At("config.json")))!;
        Assert.Equal("whisper", (string)configuration["model_type"]!);
        Dictionary<string, Tensor> tensors;
        using (var reader = new SafetensorsReader(_folder.At("model.safetensors")))
        {
            string[] expected =
            [
                "model.encoder.conv1.weight", "model.encoder.conv2.bias", "model.encoder.embed_positions.weight", "model.encoder.layers.1.self_attn.q_proj.bias", "model.encoder.layers.0.self_attn.k_proj.weight",
                "model.encoder.layers.0.self_attn_layer_norm.weight", "model.encoder.layers.0.fc1.weight", "model.encoder.layers.0.final_layer_norm.bias", "model.encoder.layer_norm.weight",
                "model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight", "model.decoder.layers.1.encoder_attn.out_proj.weight", "model.decoder.layers.1.encoder_attn.v_proj.bias",
                "model.decoder.layers.0.encoder_attn_layer_norm.weight", "model.decoder.layers.0.fc2.bias", "model.decoder.layer_norm.bias",
            ];
            Assert.All(expected, name => Assert.Contains(name, reader.Entries.Keys));
            Assert.DoesNotContain(reader.Entries.Keys, name => name.EndsWith("k_proj.bias", StringComparison.Ordinal));

            // 2 convolutions with biases and positions; 15 tensors of an encoder's layer, 24 of a decoder's; norms and tables.
            Assert.Equal(5 + (2 * 15) + 2 + 2 + (2 * 24) + 2, reader.Entries.Count);
            tensors = reader.Entries.Keys.ToDictionary(name => name, reader.Read);
        }

        tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"];
        SafetensorsWriter.Write(_folder.At("model.safetensors"), tensors, new Dictionary<string, string>());
        using var loaded = PretrainedSpeech.Load(_folder.Path);
        Assert.Equal(FeatureNormalization.Whisper, loaded.Features.Options.Normalization);
        Assert.Equal(30, loaded.Features.Options.Seconds);
    }

    [Fact]
    public void What_does_not_fit_is_told()
    {
        using var scope = NewDisposeScope();
        using var pretrained = new PretrainedSpeech(SpeechTransformerTests.Make(), Features, Words);
        pretrained.Save(_folder.Path);
        var path = _folder.At("config.json");
        var good = File.ReadAllText(path);
        string Said(string changed)
        {
            File.WriteAllText(path, changed);
            return Assert.ThrowsAny<InvalidDataException>(() => PretrainedSpeech.Load(_folder.Path)).Message;
        }

        Assert.Contains("lacks d_model", Said(good.Replace("d_model", "d_mode", StringComparison.Ordinal)), StringComparison.Ordinal);
        Assert.Contains("type 'bert'", Said(good.Replace("heed-speech", "bert", StringComparison.Ordinal)), StringComparison.Ordinal);
        Assert.False(PretrainedSpeech.IsIn(_folder.Path));
        Assert.Contains("and config.json asks for", Said(good.Replace("\"decoder_ffn_dim\": 20", "\"decoder_ffn_dim\": 21", StringComparison.Ordinal)), StringComparison.Ordinal);
        Assert.Contains("lacks the tensor", Said(good.Replace("\"decoder_layers\": 2", "\"decoder_layers\": 3", StringComparison.Ordinal)), StringComparison.Ordinal);
        Assert.Contains("has no place", Said(good.Replace("\"encoder_layers\": 2", "\"encoder_layers\": 1", StringComparison.Ordinal)), StringComparison.Ordinal);
        Assert.Contains("describes no model", Said(good.Replace("\"encoder_attention_heads\": 2", "\"encoder_attention_heads\": 3", StringComparison.Ordinal)), StringComparison.Ordinal);
        Assert.Contains("not valid JSON", Said("{"), StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => (object)new PretrainedSpeech(pretrained.Model, Features, ["one"]));
    }
}
