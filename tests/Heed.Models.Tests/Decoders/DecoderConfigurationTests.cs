using Heed.Heads;
using Heed.Masks;
using Heed.Models.Decoders;
using Xunit;

namespace Heed.Models.Tests.Decoders;

public class DecoderConfigurationTests
{
    private const string Sizes = "\"vocab_size\":50,\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":3,\"num_attention_heads\":8";

    public static TheoryData<string> Names { get; } = [.. SmallModels.All.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void WhatIsWrittenReadsBackTheSame(string name)
    {
        var configuration = SmallModels.All[name];

        var read = DecoderConfiguration.Parse(configuration.ToJson());

        Assert.Equal(configuration.ToJson(), read.ToJson());
        Assert.Equal(configuration.Family, read.Family);
        Assert.Equal(configuration.OutputGate, read.OutputGate);
        Assert.Equal(configuration.QueryKeyNorm, read.QueryKeyNorm);
        Assert.Equal((configuration.DynamicMaskWindow, configuration.DynamicMaskForm), (read.DynamicMaskWindow, read.DynamicMaskForm));
        Assert.Equal((configuration.BeginTokenId, configuration.TieEmbeddings), (read.BeginTokenId, read.TieEmbeddings));
        Assert.Equal(configuration.EndTokenIds, read.EndTokenIds);
        Assert.Equal(Enumerable.Range(0, 2).Select(configuration.WindowOf), Enumerable.Range(0, 2).Select(read.WindowOf));
    }

    [Fact]
    public void AbsentKeysHaveTheDefaultsOfTheFamily()
    {
        var llama = DecoderConfiguration.Parse($"{{\"model_type\":\"llama\",{Sizes}}}");
        var mistral = DecoderConfiguration.Parse($"{{\"model_type\":\"mistral\",{Sizes}}}");
        var qwen2 = DecoderConfiguration.Parse($"{{\"model_type\":\"qwen2\",{Sizes}}}");
        var qwen3 = DecoderConfiguration.Parse($"{{\"model_type\":\"qwen3\",{Sizes}}}");

        Assert.Equal((8, 8, 1e-6, 10000, false), (llama.ResolvedKeyValueHeads, llama.ResolvedHeadWidth, llama.NormEpsilon, llama.RotaryTheta, llama.TieEmbeddings));
        Assert.Equal((2048, 131072, 32768), (llama.ContextLength, mistral.ContextLength, qwen3.ContextLength));
        Assert.Equal((null, 4096, null, null), (llama.SlidingWindow, mistral.SlidingWindow, qwen2.SlidingWindow, qwen3.SlidingWindow));
        Assert.Equal((false, false, true, false), (llama.QueryKeyValueBias, mistral.QueryKeyValueBias, qwen2.QueryKeyValueBias, qwen3.QueryKeyValueBias));
        Assert.Equal((false, true, 128), (qwen2.QueryKeyNorm, qwen3.QueryKeyNorm, qwen3.ResolvedHeadWidth));
        Assert.False(qwen2.OutputBias);
    }

    [Fact]
    public void DogeHasTheFormOfTheCodeThatNamesItsWindow()
    {
        static DecoderConfiguration Read(string more) => DecoderConfiguration.Parse($"{{\"model_type\":\"doge\",{Sizes}{more}}}");

        Assert.Equal((9, ImportanceForm.Linear), (Read(",\"window_size\":9").DynamicMaskWindow, Read(",\"window_size\":9").DynamicMaskForm));
        Assert.Equal((9, ImportanceForm.Exponential), (Read(",\"keep_window_size\":9").DynamicMaskWindow, Read(",\"keep_window_size\":9").DynamicMaskForm));
        Assert.Equal((2048, 8, true, 2048), (Read("").DynamicMaskWindow, Read("").ResolvedKeyValueHeads, Read("").QueryKeyNorm, Read("").ContextLength));
        Assert.Null(Read("").BeginTokenId);
    }

    [Fact]
    public void WhatAFamilyCannotExpressIsNotWritten()
    {
        static string Message(DecoderConfiguration configuration) => Assert.Throws<InvalidOperationException>(() => configuration.ToJson()).Message;

        Assert.Contains("QueryKeyNorm", Message(SmallModels.Llama with { QueryKeyNorm = true }));
        Assert.Contains("OutputGate", Message(SmallModels.Llama with { OutputGate = OutputGate.Headwise }));
        Assert.Contains("SlidingWindow", Message(SmallModels.Llama with { SlidingWindow = 3 }));
        Assert.Contains("SlidingLayers", Message(SmallModels.All["mistral"] with { SlidingLayers = [true, false] }));
    }

    [Fact]
    public void WindowsFollowTheFamilysKeys()
    {
        static int?[] Windows(string json) => [.. Enumerable.Range(0, 3).Select(DecoderConfiguration.Parse($"{{{Sizes},{json}}}").WindowOf)];

        Assert.Equal([7, 7, 7], Windows("\"model_type\":\"mistral\",\"sliding_window\":7"));
        Assert.Equal([null, null, null], Windows("\"model_type\":\"mistral\",\"sliding_window\":null"));
        Assert.Equal([null, null, null], Windows("\"model_type\":\"qwen2\",\"sliding_window\":7,\"use_sliding_window\":false,\"max_window_layers\":0"));
        Assert.Equal([null, 7, 7], Windows("\"model_type\":\"qwen2\",\"sliding_window\":7,\"use_sliding_window\":true,\"max_window_layers\":1"));
        Assert.Equal([7, null, 7], Windows("\"model_type\":\"qwen3\",\"sliding_window\":7,\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\"]"));
    }

    [Fact]
    public void RotaryScalingsAreReadInOldAndNewForm()
    {
        static DecoderConfiguration Read(string json) => DecoderConfiguration.Parse($"{{\"model_type\":\"llama\",{Sizes},{json}}}");

        Assert.Equal(new LinearRotaryScaling(4), Read("\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}").RotaryScaling);
        Assert.Equal(
            new Llama3RotaryScaling(8, 1, 4, 8192),
            Read("\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}").RotaryScaling);
        var yarn = Read("\"max_position_embeddings\":4096,\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":500000.0,\"factor\":2.0}");
        Assert.Equal(new YarnRotaryScaling(2, 4096), yarn.RotaryScaling);
        Assert.Equal(500000, yarn.RotaryTheta);
        Assert.Null(Read("\"rope_scaling\":null").RotaryScaling);
        foreach (var configuration in new[] { yarn, Read("\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}") })
        {
            Assert.Equal(
                new RotaryEmbedding(8, 10000, configuration.RotaryScaling).InverseFrequencies,
                new RotaryEmbedding(8, 10000, DecoderConfiguration.Parse(configuration.ToJson()).RotaryScaling).InverseFrequencies);
        }
    }

    [Theory]
    [InlineData("{", "not valid JSON")]
    [InlineData("[]", "not a JSON object")]
    [InlineData("{}", "no model_type")]
    [InlineData("{\"model_type\":\"gpt2\"}", "type 'gpt2'; supported are llama")]
    [InlineData("{\"model_type\":\"llama\",\"num_attention_heads\":4,\"num_hidden_layers\":2000000000}", "2000000000 layers")]
    [InlineData("{\"model_type\":\"doge\",SIZES,\"is_moe\":true}", "with experts (is_moe), which is not supported")]
    [InlineData("{\"model_type\":\"doge\",SIZES,\"sliding_window\":8}", "neither SlidingWindow nor OutputGate")]
    [InlineData("{\"model_type\":\"llama\",\"vocab_size\":50}", "has no num_attention_heads")]
    [InlineData("{\"model_type\":\"llama\",SIZES,\"num_key_value_heads\":3}", "does not divide")]
    [InlineData("{\"model_type\":\"llama\",SIZES,\"num_key_value_heads\":-3}", "num_key_value_heads must be a whole number from 1, not -3")]
    [InlineData("{\"model_type\":\"llama\",SIZES,\"head_dim\":7}", "must be even")]
    [InlineData("{\"model_type\":\"llama\",SIZES,\"hidden_act\":\"swoosh\"}", "activation 'swoosh'")]
    [InlineData("{\"model_type\":\"llama\",SIZES,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", "rope scaling 'dynamic'")]
    [InlineData("{\"model_type\":\"llama\",SIZES,\"rope_scaling\":{\"type\":\"linear\"}}", "factor of at least 1")]
    [InlineData("{\"model_type\":\"llama\",SIZES,\"rope_scaling\":3}", "rope_scaling must be an object, not 3")]
    [InlineData("{\"model_type\":\"llama\",SIZES,\"rms_norm_eps\":\"small\"}", "rms_norm_eps must be a number")]
    [InlineData("{\"model_type\":\"qwen3\",SIZES,\"use_sliding_window\":true,\"layer_types\":[\"linear_attention\"]}", "'linear_attention'")]
    [InlineData("{\"model_type\":\"qwen3\",SIZES,\"use_sliding_window\":true,\"layer_types\":[\"full_attention\"]}", "1 entries for 3 layers")]
    public void WhatCannotBeReadIsRefusedWithASentence(string json, string expected)
    {
        var error = Assert.Throws<InvalidDataException>(() => DecoderConfiguration.Parse(json.Replace("SIZES", Sizes, StringComparison.Ordinal)));

        Assert.Contains(expected, error.Message);
        Assert.DoesNotContain('\n', error.Message);
    }
}
