using Heed.Models.BrainEncoders;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Brain encoders (arXiv 2505.17329) of every readout, and their static baseline.</summary>
internal sealed class BrainEncoderOperation : GoldenOperation
{
    public override string Name => "brain-encoders/BrainEncoder";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var model = Model(run);
        model.eval();
        var features = run.Input("features");
        var padding = golden.Has("in.padding_mask") ? run.Input("padding_mask").to(ScalarType.Bool) : null;
        if (model is BrainEncoder encoder)
        {
            var read = encoder.Options.EncoderOutputLayer + (encoder.Options.EncoderOutputLayer < 0 ? encoder.Options.EncoderLayers : 0);
            run.Load(encoder, mayLack: name => Enumerable.Range(read + 1, Math.Max(0, encoder.Options.EncoderLayers - read - 1)).Any(layer => name.StartsWith($"transformer.encoder.layers.{layer}.", StringComparison.Ordinal)));
            run.Output("position", encoder.Positions(features, padding));
        }
        else
        {
            run.Load(model);
        }

        var prediction = model.Forward(features, padding, withAttention: true);
        run.Output("output_tokens", prediction.Tokens!);
        run.Output("lh_f_pred", prediction.Left);
        run.Output("rh_f_pred", prediction.Right);
        for (var layer = 0; layer < prediction.Attention.Count; layer++)
        {
            run.Output($"attention.{layer}", prediction.Attention[layer]);
        }

        var isByRegion = prediction.Left.dim() == 3;
        var vertices = prediction.Vertices(isByRegion ? run.Input("lh_roi_mask") : null, isByRegion ? run.Input("rh_roi_mask") : null);
        run.Output("lh_vertices", vertices.Left);
        run.Output("rh_vertices", vertices.Right);
        run.Output("loss", BrainModel.Loss(vertices, run.Input("lh_target"), run.Input("rh_target")));
    }

    private static TokenBrainModel Model(GoldenRun run)
    {
        var golden = run.Case;
        var isTransformer = golden.Choice("encoder_arch", "transformer", ("transformer", true), ("spatial_feature", false));
        var readout = golden.Choice("readout_res", "rois_all", ("rois_all", BrainReadout.Regions), ("voxels", BrainReadout.Vertices), ("hemis", BrainReadout.Hemispheres));
        var (left, right, queries, channels) = (golden.Integer("lh_vs"), golden.Integer("rh_vs"), golden.Integer("num_queries", 16), golden.Integer("num_channels", 768));
        if (!isTransformer)
        {
            var map = run.Input("features").shape;
            return new SpatialFeatureEncoder(new() { Readout = readout, LeftVertices = left, RightVertices = right, Queries = queries, Channels = channels }, (int)map[2], (int)map[3]);
        }

        return new BrainEncoder(new()
        {
            Readout = readout, LeftVertices = left, RightVertices = right, Queries = queries, Channels = channels, Width = golden.Integer("hidden_dim", 768), Heads = golden.Integer("nheads", 16),
            FeedForwardWidth = golden.Integer("dim_feedforward", 1024), EncoderLayers = golden.Integer("enc_layers", 0), EncoderOutputLayer = golden.Integer("enc_output_layer", -1),
            DecoderLayers = golden.Integer("dec_layers", 1), PreNorm = golden.Flag("pre_norm", true),
            Position = golden.Choice("position_embedding", "sine", ("sine", MapPosition.Sine), ("learned", MapPosition.Learned)),
            ProjectsInput = golden.Choice("backbone_kind", "vit", ("vit", false), ("cnn", true)),
        });
    }
}

/// <summary>The ensemble over backbone layers; the case's weights are not divided by the number of runs.</summary>
internal sealed class LayerEnsembleOperation : GoldenOperation
{
    public override string Name => "brain-encoders/LayerEnsemble";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var ensemble = new LayerEnsemble(run.Case.Number("temperature", 40), NormalizeRuns: false);
        using var layers = run.Input("layer").contiguous();
        var weights = ensemble.Weights([.. layers.data<long>()], run.Input("validation_correlation"));
        run.Output("weights", weights);
        run.Output("prediction", LayerEnsemble.Combine(run.Input("predictions"), weights));
    }
}
