using Heed.Models.Regression;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>The attention layer of arXiv 2503.12734: prediction, map, circuits and the gradients of its loss.</summary>
internal sealed class IclSoftmaxAttentionOperation : GoldenOperation
{
    public override string Name => "in-context-linear-regression/IclSoftmaxAttention";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var layer = new IclSoftmaxAttention(golden.Integer("d"), golden.Integer("num_heads"), golden.Integer("num_outputs", 1));
        run.Load(layer);
        using var maps = new AttentionMapProbe();
        using var watched = layer.Hooks.Install(maps);
        var prediction = layer.forward(run.Input("z_q"), run.Input("z"));
        run.Output("prediction", prediction);
        run.Output("attention", maps[IclAttention.Site].alias());
        run.Output("kq", layer.KqCircuits());
        run.Output("ov", layer.OvCircuits());
        run.Output("loss", nn.functional.mse_loss(prediction, run.Input("y_q")));
    }
}

/// <summary>The predictors of arXiv 2503.12734, its approximate loss and the flow down it.</summary>
internal sealed class IclPredictorsOperation : GoldenOperation
{
    public override string Name => "in-context-linear-regression/Predictors";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        // The case holds covariates as columns.
        var (x, y, query) = (run.Input("x").transpose(1, 2), run.Input("y"), run.Input("x_query"));
        double[] omega = [.. run.Input("omega").contiguous().data<double>()], mu = [.. run.Input("mu").contiguous().data<double>()];
        var theory = new IclTheory(golden.Integer("d"), golden.Integer("context_length"), golden.Number("noise_variance"));
        var best = theory.MuStar(omega);
        var step = 2 * Math.Abs(omega[0]) * Math.Abs(mu[0]);
        run.Output("predict_tf", IclPredictors.Softmax(x, y, query, omega, mu));
        run.Output("mu_star", tensor(best));
        run.Output("predict_tf_mu_star", IclPredictors.Softmax(x, y, query, omega, best));
        run.Output("predict_gd", IclPredictors.GradientDescent(x, y, query, step));
        run.Output("predict_debiased_gd", IclPredictors.DebiasedGradientDescent(x, y, query, step));
        run.Output("predict_ridge", IclPredictors.Ridge(x, y, query, theory.NoiseVariance));
        run.Output("approx_loss", theory.ApproxLoss(omega, mu));
        run.Output("approx_loss_mu_star", theory.ApproxLoss(omega, best));
        if (golden.HasOption("flow_steps"))
        {
            var scale = golden.Number("flow_mu_scale", 1);
            var flow = theory.GradientFlow(omega, [.. mu.Select(value => scale * value)], golden.Number("flow_lr"), golden.Integer("flow_steps"), golden.Integer("flow_stride", 1));
            run.Output("flow_omega", stack(flow.Select(point => tensor(point.Omega.ToArray()))));
            run.Output("flow_mu", stack(flow.Select(point => tensor(point.Mu.ToArray()))));
            run.Output("flow_loss", tensor(flow.Select(point => point.Loss).ToArray()));
        }
    }
}

/// <summary>Contexts of one regression from recorded draws.</summary>
internal sealed class LinearRegressionDataOperation : GoldenOperation
{
    public override string Name => "in-context-linear-regression/LinearRegressionData";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var task = new LinearRegressionTask(golden.Integer("d"), golden.Integer("context_length"), golden.Number("noise_std"));
        var (zQuery, z, target) = task.Assemble(run.Input("x"), run.Input("x_query"), run.Input("beta_normal"), run.Input("noise"), run.Input("noise_query"));
        run.Output("z_q", zQuery);
        run.Output("z", z);
        run.Output("y_q", target);
    }
}

/// <summary>Contexts of two regressions from recorded draws.</summary>
internal sealed class MultiTaskDataOperation : GoldenOperation
{
    public override string Name => "in-context-linear-regression/MultiTaskData";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var task = new MultiTaskLinearRegression(golden.Integer("d"), golden.Integer("d1"), golden.Integer("d2"), golden.Integer("context_length"), golden.Number("noise_std"));
        var (zQuery, z, target) = task.Assemble(run.Input("x"), run.Input("x_query"), run.Input("beta1"), run.Input("beta2"), run.Input("noise1"), run.Input("noise2"));
        run.Output("z_q", zQuery);
        run.Output("z", z);
        run.Output("y_q", target);
    }
}
