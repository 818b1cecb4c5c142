using Heed.Models.Decoders;

namespace Heed.Models.VisionLanguage;

/// <summary>Names of a <see cref="VisionLanguageModel"/>'s parameters: what the checkpoints of several places call them, and their shapes told from the configuration alone.</summary>
internal static class LlavaTensors
{
    // Longer prefixes before those that they begin with.
    private static readonly (string Theirs, string Ours)[] s_prefixes =
    [
        // LLaVA's authors.
        ("model.vision_tower.vision_tower.", "vision_tower."),
        ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
        ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
        ("model.mm_projector.weight", "multi_modal_projector.linear_1.weight"),
        ("model.mm_projector.bias", "multi_modal_projector.linear_1.bias"),

        // The transformers library since version 4.52.
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),

        // Its earlier versions have the model's own names; what is left are the decoder's.
        ("vision_tower.", "vision_tower."),
        ("multi_modal_projector.", "multi_modal_projector."),
        ("language_model.", "language_model."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),

        // A CLIP checkpoint beside LLaVA's.
        ("vision_model.", "vision_tower.vision_model."),
    ];

    // Parts of CLIP that no vision-language model reads, and buffers that old checkpoints carry.
    private static readonly string[] s_unread = ["text_model.", "visual_projection.", "text_projection.", "logit_scale"];

    /// <summary>What the model calls a tensor of a checkpoint; null: it does not need it.</summary>
    public static string? NameOf(string name)
    {
        if (name.EndsWith(".rotary_emb.inv_freq", StringComparison.Ordinal) || name.EndsWith(".embeddings.position_ids", StringComparison.Ordinal)
            || s_unread.Any(prefix => name.StartsWith(prefix, StringComparison.Ordinal)))
        {
            return null;
        }

        foreach (var (theirs, ours) in s_prefixes)
        {
            if (name.StartsWith(theirs, StringComparison.Ordinal))
            {
                return ours + name[theirs.Length..];
            }
        }

        return name;
    }

    /// <summary>Names and shapes of the model's parameters.</summary>
    public static IEnumerable<(string Name, long[] Shape)> Of(VisionLanguageConfiguration configuration)
    {
        const string Encoder = "vision_tower.vision_model.";
        var vision = configuration.Vision;
        long width = vision.HiddenSize, inner = vision.IntermediateSize, text = configuration.Text.HiddenSize;
        yield return ($"{Encoder}embeddings.class_embedding", [width]);
        yield return ($"{Encoder}embeddings.patch_embedding.weight", [width, vision.Channels, vision.PatchSize, vision.PatchSize]);
        yield return ($"{Encoder}embeddings.position_embedding.weight", [1 + vision.Patches, width]);
        foreach (var norm in new[] { "pre_layrnorm", "post_layernorm" })
        {
            yield return ($"{Encoder}{norm}.weight", [width]);
            yield return ($"{Encoder}{norm}.bias", [width]);
        }

        for (var layer = 0; layer < vision.Layers; layer++)
        {
            var prefix = $"{Encoder}encoder.layers.{layer}.";
            foreach (var (name, outputs, inputs) in new[]
            {
                ("self_attn.q_proj", width, width), ("self_attn.k_proj", width, width), ("self_attn.v_proj", width, width), ("self_attn.out_proj", width, width), ("mlp.fc1", inner, width), ("mlp.fc2", width, inner),
            })
            {
                yield return ($"{prefix}{name}.weight", [outputs, inputs]);
                yield return ($"{prefix}{name}.bias", [outputs]);
            }

            foreach (var norm in new[] { "layer_norm1", "layer_norm2" })
            {
                yield return ($"{prefix}{norm}.weight", [width]);
                yield return ($"{prefix}{norm}.bias", [width]);
            }
        }

        foreach (var (name, inputs) in configuration.LinearProjector ? [("linear_1", width)] : new[] { ("linear_1", width), ("linear_2", text) })
        {
            yield return ($"multi_modal_projector.{name}.weight", [text, inputs]);
            if (configuration.ProjectorBias)
            {
                yield return ($"multi_modal_projector.{name}.bias", [text]);
            }
        }

        foreach (var (name, shape) in DecoderTensors.Of(configuration.Text))
        {
            yield return ($"language_model.{name}", shape);
        }
    }
}
