using Heed.Edits;
using Heed.Models.Decoders;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Primary and secondary sinks in the residual streams of one sequence (arXiv 2512.22213).</summary>
internal sealed class DetectSinks : GoldenOperation
{
    public override string Name => "secondary-sinks/DetectSinks";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var candidates = golden.HasOption("bos_positions") ? golden.Integers("bos_positions").Select(position => (int)position).ToArray() : [.. SinkDetector.Candidates];
        var map = SinkDetector.Detect(run.Input("hidden_states"), candidates, new()
        {
            CosineThreshold = golden.Number("cosine_threshold", 0.9), ClipToPrimary = golden.Flag("clip_to_primary", true),
        });
        var labels = map.Label(golden.Integer("min_lifetime_exclusive", SinkMap.PublishedNoise), golden.Integer("primary_slack", SinkMap.PublishedSlack));
        var layers = new bool[map.Depth, map.Tokens];
        var levels = map.LevelHistogram();
        var histogram = new float[levels.GetLength(0), levels.GetLength(1)];
        for (var layer = 0; layer < map.Depth; layer++)
        {
            for (var token = 0; token < map.Tokens; token++)
            {
                layers[layer, token] = map[layer, token];
            }
        }

        for (var life = 0; life < levels.GetLength(0); life++)
        {
            for (var layer = 0; layer < levels.GetLength(1); layer++)
            {
                histogram[life, layer] = levels[life, layer];
            }
        }

        run.Output("bos_index", tensor((long)map.Primary));
        run.Output("window", tensor(new long[] { map.Start, map.End }));
        run.Output("sink_layers", tensor(layers));
        run.Output("creation_layer", tensor(map.Creation.Select(layer => (long)layer).ToArray()));
        run.Output("lifetime", tensor(map.Lifetime.Select(life => (long)life).ToArray()));
        run.Output("sink_type", tensor(labels.Select(label => (long)label).ToArray()));
        run.Output("level_histogram", tensor(histogram));
    }
}

/// <summary>The edit of the sink vector's norm at a gated perceptron (arXiv 2512.22213).</summary>
internal sealed class SteerSinkNorm : GoldenOperation
{
    public override string Name => "secondary-sinks/SteerSinkNorm";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var x = run.Input("x");
        var shape = new DecoderConfiguration
        {
            VocabularySize = 1, HiddenSize = (int)x.shape[^1], IntermediateSize = (int)golden.Read("param.gate_proj.weight").shape[0], Layers = 1, Heads = 1, Activation = golden.Text("activation", "silu"),
        };
        var mlp = new FeedForward(shape);
        run.Load(mlp);
        using var steering = new SinkNormSteering(
            0, run.Input("bos_direction"), golden.Number("target_norm", 100), golden.Number("cosine_threshold", SinkNormSteering.DefaultThreshold),
            golden.HasOption("excluded_positions") ? golden.Integers("excluded_positions") : null);
        var output = mlp.forward(x);
        var (cosine, steered) = steering.Find(output);
        run.Output("cosine", cosine.squeeze(0));
        run.Output("mask", steered.squeeze(0));
        run.Output("output", steering.Steer(output));
    }
}

/// <summary>The sink score of maps and the entropy of hidden states.</summary>
internal sealed class SinkProbeOperation : GoldenOperation
{
    public override string Name => "secondary-sinks/SinkProbe";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var score = SinkScore.Compute(run.Input("attention"), golden.Flag("causal", true), golden.Flag("include_self", true));
        run.Output("sink_score", score);
        run.Output("mean_sink_score", score.mean([0L]));
        var states = run.Input("hidden_states");
        run.Output("entropy", MatrixEntropy.Compute(states, golden.Number("entropy_order", 1)).squeeze());
        run.Output("renyi2", MatrixEntropy.Compute(states, 2).squeeze());
    }
}
