using System.Globalization;
using Heed.Heads;
using Heed.Models.Decoders;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>The attention of the authors' Qwen3 model, gated or not (arXiv 2505.06708).</summary>
internal sealed class Qwen3GatedAttention : GoldenOperation
{
    public override string Name => "gated-attention/Qwen3GatedAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var gate = golden.Choice("gate", "none", ("none", GateOptions.None),
            ("headwise", new GateOptions { Layout = GateLayout.WithinQueryProjection, Granularity = GateGranularity.Headwise }),
            ("elementwise", new GateOptions { Layout = GateLayout.WithinQueryProjection }));
        var module = new GatedAttention(
            GatedAttentionCases.Shape(golden) with
            {
                Gate = gate,
                QueryKeyNorm = golden.Flag("use_qk_norm", true),
                QueryKeyValueBias = golden.Flag("qkv_bias", false),
                OutputBias = golden.Flag("qkv_bias", false),
            });
        var rotary = new RotaryEmbedding(golden.Integer("head_dim"), golden.Number("rope_theta", 10000));
        GatedAttentionCases.Run(run, module, rotary.Tables(run.Input("position_ids"), run.Type));
    }
}

/// <summary>The paper's variants: five positions, granularity, sharing, combination, activations, constant gates, and non-linearities without a gate.</summary>
internal sealed class GatedAttentionVariant : GoldenOperation
{
    public override string Name => "gated-attention/GatedAttentionVariant";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new GatedAttention(
            GatedAttentionCases.Shape(golden) with
            {
                Nonlinearity = golden.Choice("output_transform", "none", ("none", HeadNonlinearity.None), ("silu", HeadNonlinearity.SiLU), ("rmsnorm", HeadNonlinearity.RmsNorm)),
                Gate = new GateOptions
                {
                    Position = golden.Choice("position", "none", ("none", GatePosition.None), ("G1", GatePosition.SdpaOutput), ("G2", GatePosition.Value), ("G3", GatePosition.Key),
                        ("G4", GatePosition.Query), ("G5", GatePosition.DenseOutput)),
                    Granularity = golden.Choice("granularity", "elementwise", ("elementwise", GateGranularity.Elementwise), ("headwise", GateGranularity.Headwise)),
                    HeadShared = golden.Flag("head_shared", false),
                    Combine = golden.Choice("combine", "multiply", ("multiply", GateCombination.Multiply), ("add", GateCombination.Add)),
                    Activation = golden.Choice("activation", "sigmoid", ("sigmoid", GateActivation.Sigmoid), ("silu", GateActivation.SiLU), ("identity", GateActivation.Identity),
                        ("ns_sigmoid", GateActivation.NonSparseSigmoid)),
                    Source = golden.Choice("gate_source", "input", ("input", GateSource.Input), ("constant", GateSource.Constant)),
                },
            });
        GatedAttentionCases.Run(run, module, rotary: null);
    }
}

/// <summary>The authors' whole model: logits, hidden states, maps, and the statistics of sinks and massive activations.</summary>
internal sealed class Qwen3ForCausalLM : GoldenOperation
{
    public override string Name => "gated-attention/Qwen3ForCausalLM";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var model = new Decoder(new DecoderConfiguration
        {
            Family = DecoderFamily.Qwen3,
            VocabularySize = golden.Integer("vocab_size"),
            HiddenSize = golden.Integer("dim"),
            IntermediateSize = golden.Integer("intermediate_size"),
            Layers = golden.Integer("num_layers"),
            Heads = golden.Integer("num_heads"),
            KeyValueHeads = golden.Integer("num_kv_heads", 0),
            HeadWidth = golden.Integer("head_dim", 0),
            NormEpsilon = golden.Number("rms_norm_eps", 1e-6),
            RotaryTheta = golden.Number("rope_theta", 10000),
            TieEmbeddings = golden.Flag("tie_word_embeddings", false),
            QueryKeyNorm = golden.Flag("use_qk_norm", true),
            QueryKeyValueBias = golden.Flag("qkv_bias", false),
            OutputBias = golden.Flag("qkv_bias", false),
            OutputGate = golden.Choice("gate", "none", ("none", OutputGate.None), ("headwise", OutputGate.Headwise), ("elementwise", OutputGate.Elementwise)),
        });
        // Other code may list a tied weight under both of its names.
        run.Load(model, model.Configuration.TieEmbeddings ? new Dictionary<string, string> { ["lm_head.weight"] = "model.embed_tokens.weight" } : null);
        using var probe = new AttentionMapProbe();
        var hidden = new List<Tensor>();
        using (model.Hooks.Install(probe))
        {
            run.Output("logits", model.forward(run.Input("input_ids").to(int64), cache: null, hidden));
        }

        var states = stack(hidden);
        var weights = stack(probe.Sites.Select(site => probe[site]).ToArray());
        run.Output("hidden_states", states);
        run.Output("attn_weights", weights);
        run.Output("first_token_share", AttentionSinks.FirstTokenShare(weights));
        run.Output("max_activation", MassiveActivations.Maximum(states.narrow(0, 1, states.shape[0] - 1)));
    }
}

/// <summary>The paper's statistics of sinks, activations and gates, from recorded maps and states.</summary>
internal sealed class SinkStatistics : GoldenOperation
{
    private const string SparsityPrefix = "out.hidden_fraction_below_";

    public override string Name => "gated-attention/SinkStatistics";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (weights, states) = (run.Input("attn_weights"), run.Input("hidden_states"));
        var perLayer = AttentionSinks.FirstTokenShare(weights);
        run.Output("first_token_share", perLayer.mean());
        run.Output("first_token_share_per_layer", perLayer);
        run.Output("first_token_share_excluding_first_query", AttentionSinks.FirstTokenShare(weights, skipQueries: 1));
        var largest = MassiveActivations.Maximum(states);
        run.Output("max_activation_per_layer", largest);
        run.Output("mean_max_activation", largest.mean());

        var (scores, output) = (run.Input("gate_score"), run.Input("sdpa_output"));
        var gate = GateStatistics.Of(scores, output);
        run.Output("mean_gate_score", gate.MeanScore);
        run.Output("gate_fraction_below_half", gate.ShareBelowHalf);
        run.Output("mean_abs_before", gate.MeanBefore);
        run.Output("mean_abs_after", gate.MeanAfter);
        foreach (var name in golden.Names.Where(name => name.StartsWith(SparsityPrefix, StringComparison.Ordinal)))
        {
            run.Output(name["out.".Length..], GateStatistics.SparsityAfter(scores, output, Threshold(golden, name)));
        }
    }

    // The configuration's threshold; where there is none, the tensor's name says it, with an underscore for the minus sign.
    private static double Threshold(GoldenCase golden, string name) =>
        golden.HasOption("threshold") ? golden.Number("threshold")
        : double.TryParse(name[SparsityPrefix.Length..].Replace('_', '-'), NumberStyles.Float, CultureInfo.InvariantCulture, out var named) ? named
        : throw new InvalidDataException($"Neither the config nor the name of '{name}' says the threshold.");
}

/// <summary>What the cases of single attention modules share.</summary>
internal static class GatedAttentionCases
{
    public static GatedAttentionOptions Shape(GoldenCase golden) => new()
    {
        Width = golden.Integer("dim"),
        Heads = golden.Integer("num_heads"),
        KeyValueHeads = golden.Integer("num_kv_heads", 0),
        HeadWidth = golden.Integer("head_dim", 0),
        NormEpsilon = golden.Number("rms_norm_eps", 1e-6),
        Attention = golden.Flag("causal", true) ? AttentionOptions.CausalSelf : AttentionOptions.Default,
    };

    public static void Run(GoldenRun run, GatedAttention module, RotaryTables? rotary)
    {
        run.Load(module);
        using var probe = new AttentionMapProbe();
        module.Hooks = new AttentionHooks();
        using (module.Hooks.Install(probe))
        {
            var (output, scores) = module.ForwardWithGate(run.Input("x"), rotary);
            run.Output("output", output);
            if (scores is not null)
            {
                run.Output("gate_score", scores);
            }
        }

        run.Output("attn_weights", probe[probe.Sites[0]]);
    }
}
