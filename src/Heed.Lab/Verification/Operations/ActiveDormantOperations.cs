using Heed.Kernels;
using Heed.Lab.Backcopy;
using Heed.Models.Texts;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Texts, triggers and true probabilities of the bigram-backcopy language (arXiv 2410.13835).</summary>
internal sealed class BigramBackcopySequence : GoldenOperation
{
    public override string Name => "active-dormant-heads/BigramBackcopySequence";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var language = new BigramBackcopy(run.Input("cond"), run.Input("marginal"), golden.Integer("bos"), golden.Integer("num_triggers", 3));
        if (golden.Integer("vocab_size", language.Vocabulary) != language.Vocabulary)
        {
            throw new InvalidDataException($"The table is of {language.Vocabulary} tokens, and vocab_size says {golden.Integer("vocab_size")}.");
        }

        var tokens = language.Sample(run.Input("uniforms"), golden.HasOption("sequence_length") ? golden.Integer("sequence_length") : null);
        run.Output("tokens", tokens);
        run.Output("triggers", tensor(language.Triggers.Select(trigger => (long)trigger).ToArray()));
        run.Output("trigger_mask", language.TriggerMask(tokens));
        if (golden.Has("out.oracle"))
        {
            // Cases keep the oracle of a corner of the texts only: it is large.
            var shape = golden.Read("out.oracle").shape;
            run.Output("oracle", language.Oracle(tokens.narrow(0, 0, shape[0]).narrow(1, 0, shape[1])));
        }
    }
}

/// <summary>The authors' transformer: logits, loss, risks against the oracle, and what its heads do at the sink.</summary>
internal sealed class BigramBackcopyTransformerOperation : GoldenOperation
{
    public override string Name => "active-dormant-heads/BigramBackcopyTransformer";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        static int[] Layers(GoldenCase golden, string key) => golden.HasOption(key) ? [.. golden.Integers(key).Select(layer => (int)layer)] : [];
        var model = new BigramBackcopyTransformer(new()
        {
            Vocabulary = golden.Integer("vocab_size"), Layers = golden.Integer("num_layers", 1), Width = golden.Integer("dim"), Heads = golden.Integer("num_heads", 1), Length = golden.Integer("max_length"),
            Normalizer = golden.Flag("relu_attention", false) ? Normalizer.ReluOverPosition : Normalizer.Softmax, PreNorm = golden.Flag("pre_norm", true), NormEpsilon = golden.Number("norm_eps", 1e-5),
            WithoutAttention = Layers(golden, "no_attention"), WithoutFeedForward = Layers(golden, "no_ffn"), LinearFeedForward = Layers(golden, "linear_ffn"),
        });
        run.Load(model);
        using var probe = new BackcopyProbe(model);
        var (tokens, triggers) = (run.Input("tokens"), run.Input("trigger_mask"));
        var logits = model.forward(tokens);
        run.Output("logits", logits);
        run.Output("loss", nn.functional.cross_entropy(logits.flatten(0, 1), run.Input("targets").flatten()));
        var (copying, other) = BackcopyRisk.Of(logits, run.Input("oracle"), triggers);
        run.Output("copy_risk", copying);
        run.Output("bigram_risk", other);
        foreach (var layer in probe.Layers)
        {
            run.Output($"residual.{layer.Index}", layer.Residual);
            run.Output($"residual_norm.{layer.Index}", layer.ResidualNorm());
            if (layer.Weights is { } weights)
            {
                run.Output($"attention.{layer.Index}", weights);
                run.Output($"sink_attention.{layer.Index}", layer.SinkAttention(triggers.logical_not()));
                run.Output($"sink_attention_trigger.{layer.Index}", layer.SinkAttention(triggers));
                run.Output($"value_norm.{layer.Index}", layer.ValueNorm());
                run.Output($"sink_logit_gap.{layer.Index}", layer.SinkLogitGap());
            }
        }
    }
}

/// <summary>Gradient descent on the reduced model of logit and value of a sink.</summary>
internal sealed class ReducedSinkDynamicsOperation : GoldenOperation
{
    public override string Name => "active-dormant-heads/ReducedSinkDynamics";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        double[] Row(Tensor values) => values.to(float64).contiguous().data<double>().ToArray();
        double[][] Rows(string name) => run.Input(name) is var values && values.dim() == 1 ? [Row(values)] : [.. values.unbind(0).Select(Row)];
        var dynamics = new ReducedSinkDynamics(
            new()
            {
                Next = Rows("p"), Shares = Row(run.Input("pi")), Contexts = Rows("noise_value"), ContextMass = golden.Number("context_mass"), LearningRate = golden.Number("lr", 1),
                FixLogits = golden.Flag("fix_alpha", false), FixValue = golden.Flag("fix_beta", false),
            },
            Row(run.Input("alpha0")), golden.Has("in.beta0") ? Row(run.Input("beta0")) : new double[run.Input("p").shape[^1]]);
        var (steps, stride) = (golden.Integer("steps"), golden.Integer("stride", 1));
        var (alpha, beta, losses) = (new List<double>(), new List<double>(), new List<double>());
        for (var step = 1; step <= steps; step++)
        {
            var loss = dynamics.Step();
            if (step % stride == 0)
            {
                alpha.AddRange(dynamics.Alpha);
                beta.AddRange(dynamics.Beta);
                losses.Add(loss);
            }
        }

        run.Output("alpha", tensor(alpha.ToArray()).view(losses.Count, -1));
        run.Output("beta", tensor(beta.ToArray()).view(losses.Count, -1));
        run.Output("loss", tensor(losses.ToArray()));
    }
}
