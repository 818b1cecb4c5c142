using Heed.Models.Checkpoints;
using Heed.Models.Decoders;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Decoders;

public sealed class MixtureOfHeadConversionTests
{
    private static readonly DecoderConfiguration Configuration = new()
    {
        VocabularySize = 50, HiddenSize = 32, IntermediateSize = 48, Layers = 2, Heads = 8, KeyValueHeads = 4, NormEpsilon = 1e-6,
    };

    [Fact]
    public void All_heads_active_change_nothing_and_fewer_do()
    {
        using var scope = NewDisposeScope();
        using var decoder = new Decoder(Configuration, seed: 3);
        decoder.eval();
        var ids = randint(50, [2, 12], dtype: int64);
        var before = decoder.forward(ids);
        decoder.ConvertToMoH(0.5, 1);
        Assert.True((decoder.forward(ids) - before).abs().max().item<float>() < 1e-5);
        decoder.ConvertToMoH();
        Assert.Equal((4, 2), (decoder.Layers[1].SelfAttention!.Router!.SharedHeads, decoder.Layers[1].SelfAttention!.Router!.RoutedHeads));
        Assert.True((decoder.forward(ids) - before).abs().max().item<float>() > 1e-5);
        decoder.ConvertToAllHeads();
        Assert.True(decoder.forward(ids).Equals(before));
    }

    [Fact]
    public void A_folder_in_the_form_of_MoH_LLaMA3_is_loaded_and_run_as_a_mixture()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var folder = new TemporaryFolder();
        // MoH-LLaMA3-8B has no tensors of its own; small sizes, its ratio of query to key/value heads.
        File.WriteAllText(folder.At("config.json"), """
            {
              "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
              "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "attention_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16"
            }
            """);
        var tensors = new Dictionary<string, Tensor> { ["model.embed_tokens.weight"] = randn(96, 64), ["model.norm.weight"] = ones(64), ["lm_head.weight"] = randn(96, 64) };
        for (var layer = 0; layer < 2; layer++)
        {
            foreach (var (name, rows, columns) in new[]
            {
                ("self_attn.q_proj", 64, 64), ("self_attn.k_proj", 16, 64), ("self_attn.v_proj", 16, 64), ("self_attn.o_proj", 64, 64), ("mlp.gate_proj", 96, 64), ("mlp.up_proj", 96, 64), ("mlp.down_proj", 64, 96),
            })
            {
                tensors[$"model.layers.{layer}.{name}.weight"] = randn(rows, columns) * 0.3;
            }

            tensors[$"model.layers.{layer}.input_layernorm.weight"] = ones(64);
            tensors[$"model.layers.{layer}.post_attention_layernorm.weight"] = ones(64);
        }

        SafetensorsWriter.Write(folder.At("model.safetensors"), tensors.ToDictionary(entry => entry.Key, entry => entry.Value.to(bfloat16)));
        using var loaded = PretrainedModel.Load(folder.Path);
        var ids = randint(96, [1, 20], dtype: int64);
        var dense = loaded.Model.forward(ids);
        loaded.Model.ConvertToMoH();
        List<Tensor> used = [];
        foreach (var layer in loaded.Model.Layers)
        {
            layer.SelfAttention!.Router!.Observer = routing => used.Add(routing.Chosen.sum(-1).DetachFromDisposeScope());
        }

        var mixed = loaded.Model.forward(ids);
        Assert.True(mixed.isfinite().all().item<bool>());
        Assert.False(mixed.allclose(dense));
        Assert.Equal(2, used.Count);
        foreach (var heads in used)
        {
            // Three quarters of eight heads.
            Assert.True(heads.eq(6).all().item<bool>());
            heads.Dispose();
        }
    }

    [Fact]
    public void Decoding_with_a_cache_gives_what_a_prefill_gives()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var decoder = new Decoder(Configuration, seed: 3);
        decoder.eval();
        decoder.ConvertToMoH();
        var ids = randint(50, [1, 300], dtype: int64);
        var whole = decoder.forward(ids);
        using var cache = decoder.CreateCache();
        decoder.forward(ids.narrow(1, 0, 298), cache);
        decoder.forward(ids.narrow(1, 298, 1), cache);
        var last = decoder.forward(ids.narrow(1, 299, 1), cache);
        Assert.True((last[0, 0] - whole[0, 299]).abs().max().item<float>() < 1e-4);
    }

    [Fact]
    public void Decoders_with_gates_and_impossible_shares_are_refused()
    {
        using var gated = new Decoder(Configuration with { Family = DecoderFamily.Qwen3, OutputGate = OutputGate.Headwise });
        Assert.Contains("plain attention", Assert.Throws<InvalidOperationException>(() => gated.ConvertToMoH()).Message, StringComparison.Ordinal);
        using var plain = new Decoder(Configuration);
        Assert.Contains("must be shared", Assert.Throws<ArgumentException>(() => plain.ConvertToMoH(0.5, 0.5)).Message, StringComparison.Ordinal);
    }
}
