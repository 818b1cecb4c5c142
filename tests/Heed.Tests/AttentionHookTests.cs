using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

public sealed class AttentionHookTests
{
    private static readonly AttentionSite Site = new(3, AttentionKind.Self, "layer.3");

    [Fact]
    public void Every_stage_is_called_in_order_and_what_it_returns_is_used()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(1, 2, 5, 4), randn(1, 2, 5, 4), randn(1, 2, 5, 4));
        var hook = new Recorder
        {
            Inputs = call => call.Value = call.Value * 2,
            Scores = scores => scores + 1,
            Weights = weights => weights * 3,
            Output = output => output + 5,
        };
        var hooks = new AttentionHooks();
        using (hooks.Install(hook))
        {
            var output = Attention.Compute(q, k, v, AttentionOptions.CausalSelf, Site, hooks);
            Assertions.Close((Attention.Compute(q, k, v, AttentionOptions.CausalSelf) * 6) + 5, output, 1e-5);
            Assert.Equal(["inputs", "scores", "weights", "map", "statistics", "output"], hook.Calls);
            Assert.Equal(3, hook.SumOfRow, 1e-4);
        }

        hook.Calls.Clear();
        Attention.Compute(q, k, v, AttentionOptions.CausalSelf, Site, hooks);
        Assert.Empty(hook.Calls);
    }

    [Fact]
    public void A_hook_is_left_alone_where_it_has_no_business()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(1, 2, 5, 4), randn(1, 2, 5, 4), randn(1, 2, 5, 4));
        var hook = new Recorder { Layer = 1 };
        var hooks = new AttentionHooks();
        using var installed = hooks.Install(hook);
        Attention.Compute(q, k, v, null, Site, hooks);
        Assert.Empty(hook.Calls);
    }

    [Fact]
    public void Gradients_flow_through_edits()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(1, 1, 3, 4), randn(1, 1, 3, 4), randn(1, 1, 3, 4).requires_grad_());
        var hooks = new AttentionHooks();
        using var installed = hooks.Install(new Recorder { Output = output => output * 2 });
        Attention.Compute(q, k, v, null, Site, hooks).sum().backward();
        Assert.Equal(2 * 3 * 4, v.grad!.sum().item<float>(), 1e-4f);
    }

    private sealed class Recorder : AttentionHook
    {
        public List<string> Calls { get; } = [];

        public int Layer { get; init; } = 3;

        public double SumOfRow { get; private set; }

        public Action<AttentionCall> Inputs { get; init; } = _ => { };

        public Func<Tensor, Tensor> Scores { get; init; } = scores => scores;

        public Func<Tensor, Tensor> Weights { get; init; } = weights => weights;

        public Func<Tensor, Tensor> Output { get; init; } = output => output;

        public override AttentionStages StagesAt(AttentionSite site) => site.Layer == Layer
            ? AttentionStages.Inputs | AttentionStages.Scores | AttentionStages.Weights | AttentionStages.Map | AttentionStages.Statistics | AttentionStages.Output
            : AttentionStages.None;

        public override AttentionStatisticsRequest? StatisticsAt(AttentionSite site) => new() { Entropy = true };

        public override void OnInputs(AttentionCall call)
        {
            Calls.Add("inputs");
            Inputs(call);
        }

        public override Tensor OnScores(AttentionCall call, Tensor scores)
        {
            Calls.Add("scores");
            return Scores(scores);
        }

        public override Tensor OnWeights(AttentionCall call, Tensor weights)
        {
            Calls.Add("weights");
            return Weights(weights);
        }

        public override void OnMap(AttentionCall call)
        {
            Calls.Add("map");
            SumOfRow = call.Weights([0], [2]).sum().item<float>();
        }

        public override void OnStatistics(AttentionCall call, AttentionStatistics statistics) => Calls.Add("statistics");

        public override Tensor OnOutput(AttentionCall call, Tensor output)
        {
            Calls.Add("output");
            return Output(output);
        }
    }
}
