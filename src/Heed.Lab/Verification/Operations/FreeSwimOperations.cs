using Heed.Heads;
using Heed.Masks;
using Heed.Models.VideoTransformers;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Bounds of the inward window (arXiv 2511.14712).</summary>
internal sealed class InwardWindowOperation : GoldenOperation
{
    public override string Name => "freeswim/InwardWindow";

    public override void Run(GoldenRun run)
    {
        var rows = NeighborhoodCases.Rows(run.Input("problems"));
        var longest = run.Case.Read("out.row_first").shape[1];
        var bounds = full([4, rows.Length, longest], run.Case.Integer("pad_value", -1), dtype: int64);
        for (var row = 0; row < rows.Length; row++)
        {
            // One column per query, in raster order.
            var (height, width) = (rows[row][0], rows[row][1]);
            for (var query = 0L; query < height * width; query++)
            {
                (bounds[0, row, query], bounds[1, row, query]) = InwardWindow.Bounds(query / width, height, rows[row][2]);
                (bounds[2, row, query], bounds[3, row, query]) = InwardWindow.Bounds(query % width, width, rows[row][3]);
            }
        }

        run.Output("row_first", bounds[0]);
        run.Output("row_last", bounds[1]);
        run.Output("column_first", bounds[2]);
        run.Output("column_last", bounds[3]);
    }
}

/// <summary>Attention within the inward window.</summary>
internal sealed class InwardWindowAttentionOperation : GoldenOperation
{
    public override string Name => "freeswim/InwardWindowAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var query = run.Input("query");
        var scale = golden.HasOption("scale") ? golden.Number("scale") : Math.Sqrt(golden.Number("temperature_ratio_log", 1) / query.shape[^1]);
        run.Output("output", InwardWindowAttention.Compute(
            query, run.Input("key"), run.Input("value"), golden.Integer("num_frames"), golden.Integer("height"), golden.Integer("width"), golden.Integer("half_height"), golden.Integer("half_width"), scale));
    }
}

/// <summary>Self- and cross-attention of both branches.</summary>
internal sealed class DualPathAttention : GoldenOperation
{
    public override string Name => "freeswim/DualPathAttention";

    public override void Run(GoldenRun run)
    {
        using var pair = new FreeSwimLayerPair(run);
        run.Output("self", pair.Self("hidden_states", FreeSwimMode.Dual));
        run.Output("cross", pair.Cross("hidden_states", FreeSwimMode.Dual));
    }
}

/// <summary>Both layers when the full branch runs, when its output is used again, and without a prompt.</summary>
internal sealed class CachedDualPathAttention : GoldenOperation
{
    public override string Name => "freeswim/CachedDualPathAttention";

    public override void Run(GoldenRun run)
    {
        using var pair = new FreeSwimLayerPair(run);
        foreach (var (name, input, mode) in new[]
        {
            ("refresh", "hidden_states", FreeSwimMode.Refresh), ("reuse", "hidden_states_next", FreeSwimMode.Reuse), ("unconditional", "hidden_states", FreeSwimMode.WindowOnly),
        })
        {
            // The second call's hidden states are those of cross-attention, which must not look at them.
            run.Output($"self_{name}", pair.Self("hidden_states", mode));
            run.Output($"cross_{name}", pair.Cross(input, mode));
        }

        run.Output("cached", pair.Layers.Cached!);
    }
}

/// <summary>A whole model, no cache.</summary>
internal sealed class DualPathModel : GoldenOperation
{
    public override string Name => "freeswim/DualPathModel";

    public override void Run(GoldenRun run)
    {
        var latents = run.Input("latents");
        using var session = FreeSwimModels.Session(run, latents, cacheInterval: null);
        FreeSwimModels.Output(run, session.Step(latents, run.Input("timestep"), run.Input("prompt_embeds"), run.Input("negative_prompt_embeds"), run.Case.Number("guidance_scale", 5)), "");
    }
}

/// <summary>A whole model over several steps, some of which use the full branch's output again.</summary>
internal sealed class CachedDualPathModel : GoldenOperation
{
    public override string Name => "freeswim/CachedDualPathModel";

    public override void Run(GoldenRun run)
    {
        var refresh = run.Case.Flags("refresh");
        var timesteps = run.Input("timesteps");
        using var session = FreeSwimModels.Session(run, run.Input("latents_0"), cacheInterval: 1);
        for (var step = 0; step < refresh.Length; step++)
        {
            var prediction = session.Step(
                run.Input($"latents_{step}"), timesteps.narrow(0, step, 1), run.Input("prompt_embeds"), run.Input("negative_prompt_embeds"), run.Case.Number("guidance_scale", 5), refresh[step]);
            FreeSwimModels.Output(run, prediction, $"_{step}");
            foreach (var (block, cached) in session.Cache.Index())
            {
                run.Output($"cached_{step}_{block}", cached.clone());
            }
        }
    }
}

/// <summary>A self- and a cross-attention layer with the weights of a case.</summary>
internal sealed class FreeSwimLayerPair : IDisposable
{
    private readonly GoldenRun _run;
    private readonly Pair _pair;
    private readonly PairRotaryTables _rotary;
    private readonly VideoGrid _grid;

    public FreeSwimLayerPair(GoldenRun run)
    {
        var golden = run.Case;
        _run = run;
        _pair = new Pair(golden.Integer("num_heads"), golden.Integer("head_dim"), golden.Number("eps", 1e-6));
        run.Load(_pair);
        _rotary = new(run.Input("rotary_cos"), run.Input("rotary_sin"));
        _grid = new(golden.Integer("num_frames"), golden.Integer("height"), golden.Integer("width"));
        Layers = new(
            new() { HalfHeight = golden.Integer("half_height"), HalfWidth = golden.Integer("half_width") },
            golden.HasOption("self_attention_scale") ? golden.Number("self_attention_scale") : null, golden.HasOption("cross_attention_scale") ? golden.Number("cross_attention_scale") : null);
        (_pair.self.Path, _pair.cross.Path) = (Layers.Self, Layers.Cross);
    }

    public FreeSwimLayers Layers { get; }

    public Tensor Self(string input, FreeSwimMode mode)
    {
        Layers.Mode = mode;
        return _pair.self.forward(_run.Input(input), null, _rotary, _grid);
    }

    public Tensor Cross(string input, FreeSwimMode mode)
    {
        Layers.Mode = mode;
        return _pair.cross.forward(_run.Input(input), _run.Input("encoder_hidden_states"), null, _grid);
    }

    // The modules are the run's.
    public void Dispose() => Layers.Forget();

    private sealed class Pair : nn.Module
    {
        public readonly WanAttention self;
        public readonly WanAttention cross;

        public Pair(int heads, int headWidth, double epsilon)
            : base(nameof(Pair))
        {
            self = new(heads, headWidth, epsilon);
            cross = new(heads, headWidth, epsilon);
            RegisterComponents();
        }
    }
}

/// <summary>What the cases of whole models share.</summary>
internal static class FreeSwimModels
{
    public static FreeSwimSession Session(GoldenRun run, Tensor latents, int? cacheInterval)
    {
        var golden = run.Case;
        var patch = golden.Integers("patch_size").Select(size => (int)size).ToArray();
        var model = new WanTransformer(new()
        {
            PatchSize = (patch[0], patch[1], patch[2]), Heads = golden.Integer("num_heads"), HeadWidth = golden.Integer("head_dim"), InputChannels = (int)latents.shape[1],
            OutputChannels = (int)latents.shape[1], TextWidth = golden.Integer("text_dim"), FrequencyWidth = golden.Integer("freq_dim"), FeedForwardWidth = golden.Integer("ffn_dim"),
            Layers = golden.Integer("num_layers"), Epsilon = golden.Number("eps", 1e-6),
        });
        run.Load(model);
        return FreeSwimEdit.Apply(model, new()
        {
            HalfHeight = golden.Integer("half_height"), HalfWidth = golden.Integer("half_width"), CacheInterval = cacheInterval, LogRatio = golden.Number("self_attention_log_ratio", 1),
        });
    }

    public static void Output(GoldenRun run, FreeSwimPrediction prediction, string suffix)
    {
        // The reference carries two rows even where they are the same.
        run.Output($"conditional{suffix}", Rows(prediction.Conditional));
        run.Output($"unconditional{suffix}", Rows(prediction.Unconditional));
        run.Output($"guided{suffix}", prediction.Guided);

        static Tensor Rows(Tensor tensor) => tensor.expand([2, .. tensor.shape[1..]]);
    }
}
