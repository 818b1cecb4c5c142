namespace Heed.Models.Decoders;

/// <summary>Names and shapes of a decoder's parameters, told from its configuration alone.</summary>
internal static class DecoderTensors
{
    public static IEnumerable<(string Name, long[] Shape)> Of(DecoderConfiguration configuration)
    {
        long width = configuration.HiddenSize;
        long inner = configuration.IntermediateSize;
        long head = configuration.ResolvedHeadWidth;
        var keyValue = configuration.ResolvedKeyValueHeads * head;
        var query = configuration.Heads * (head + configuration.OutputGate switch { OutputGate.Headwise => 1, OutputGate.Elementwise => head, _ => 0 });
        yield return ("model.embed_tokens.weight", [configuration.VocabularySize, width]);
        for (var layer = 0; layer < configuration.Layers; layer++)
        {
            var prefix = $"model.layers.{layer}.";
            var projections = new (string Name, long Outputs, long Inputs, bool Bias)[]
            {
                ("self_attn.q_proj", query, width, configuration.QueryKeyValueBias), ("self_attn.k_proj", keyValue, width, configuration.QueryKeyValueBias),
                ("self_attn.v_proj", keyValue, width, configuration.QueryKeyValueBias), ("self_attn.o_proj", width, configuration.Heads * head, configuration.OutputBias),
                ("mlp.gate_proj", inner, width, configuration.FeedForwardBias), ("mlp.up_proj", inner, width, configuration.FeedForwardBias),
                ("mlp.down_proj", width, inner, configuration.FeedForwardBias),
            };
            foreach (var (name, outputs, inputs, bias) in projections)
            {
                yield return ($"{prefix}{name}.weight", [outputs, inputs]);
                if (bias)
                {
                    yield return ($"{prefix}{name}.bias", [outputs]);
                }
            }

            if (configuration.DynamicMaskWindow is not null)
            {
                yield return ($"{prefix}self_attn.A", [configuration.ResolvedKeyValueHeads]);
                yield return ($"{prefix}self_attn.dt_proj.weight", [configuration.ResolvedKeyValueHeads, keyValue]);
                if (configuration.QueryKeyValueBias)
                {
                    yield return ($"{prefix}self_attn.dt_proj.bias", [configuration.ResolvedKeyValueHeads]);
                }

                yield return ($"{prefix}input_residual", [width]);
                yield return ($"{prefix}post_attention_residual", [width]);
            }

            if (configuration.QueryKeyNorm)
            {
                yield return ($"{prefix}self_attn.q_norm.weight", [head]);
                yield return ($"{prefix}self_attn.k_norm.weight", [head]);
            }

            yield return ($"{prefix}input_layernorm.weight", [width]);
            yield return ($"{prefix}post_attention_layernorm.weight", [width]);
        }

        yield return ("model.norm.weight", [width]);
        if (!configuration.TieEmbeddings)
        {
            yield return ("lm_head.weight", [configuration.VocabularySize, width]);
        }
    }
}
