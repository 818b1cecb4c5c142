using Heed.Lab.Backcopy;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Backcopy;

public sealed class ReducedSinkDynamicsTests
{
    [Theory]
    [InlineData(false, false)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    public void A_step_goes_down_the_gradient_of_the_loss(bool fixLogits, bool fixValue)
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        var (next, shares, contexts) = (rand([3, 5], dtype: float64).softmax(-1), rand([3], dtype: float64).softmax(-1), rand([4, 5], dtype: float64) * 3);
        var (alpha, beta) = (randn([3], dtype: float64).requires_grad_(), (fixValue ? ones([5], dtype: float64) : randn([5], dtype: float64)).requires_grad_());
        const double mass = 6, rate = 0.3;
        var weight = alpha.exp();
        var logits = next.log().unsqueeze(1) + (((weight.view(3, 1, 1) * beta) + contexts) / (weight.view(3, 1, 1) + mass));
        var loss = ((next.unsqueeze(1) * (next.log().unsqueeze(1) - logits.log_softmax(-1))).sum(-1).mean([1L]) * shares).sum();
        loss.backward();

        var dynamics = new ReducedSinkDynamics(
            new() { Next = Rows(next), Shares = Row(shares), Contexts = Rows(contexts), ContextMass = mass, LearningRate = rate, FixLogits = fixLogits, FixValue = fixValue }, Row(alpha.detach()), Row(beta.detach()));

        Assert.Equal(loss.item<double>(), dynamics.Step(), 12);
        Assert.Equal(Row(fixLogits ? alpha.detach() : (alpha - (alpha.grad! * rate)).detach()), dynamics.Alpha, (a, b) => Math.Abs(a - b) < 1e-12);
        Assert.Equal(Row(fixValue ? beta.detach() : (beta - (beta.grad! * rate)).detach()), dynamics.Beta, (a, b) => Math.Abs(a - b) < 1e-12);
    }

    [Fact]
    public void The_loss_falls_and_the_start_stays_the_callers()
    {
        double[] alpha = [0, 0.5], beta = [1, -1, 0.2];
        var dynamics = new ReducedSinkDynamics(
            new() { Next = [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]], Shares = [0.5, 0.5], Contexts = [[3, 0, 1], [0, 2, 2]], ContextMass = 5 }, alpha, beta);
        var losses = Enumerable.Range(0, 200).Select(_ => dynamics.Step()).ToArray();

        Assert.All(losses.Zip(losses.Skip(1)), pair => Assert.True(pair.Second < pair.First));
        Assert.Equal([0, 0.5], alpha);
        Assert.Equal([1, -1, 0.2], beta);
    }

    [Fact]
    public void Problems_that_make_no_sense_are_refused_in_a_sentence()
    {
        var problem = new ReducedSinkProblem { Next = [[0.5, 0.5]], Shares = [1], Contexts = [[1, 2]], ContextMass = 3 };
        static void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        Refused("as many logits", () => _ = new ReducedSinkDynamics(problem, [0, 0], [0, 0]));
        Refused("rows of 2", () => _ = new ReducedSinkDynamics(problem, [0], [0, 0, 0]));
        Refused("above 0", () => _ = new ReducedSinkDynamics(problem with { Next = [[0, 1.0]] }, [0], [0, 0]));
        Refused("must be positive", () => _ = new ReducedSinkDynamics(problem with { ContextMass = 0 }, [0], [0, 0]));
    }

    private static double[] Row(Tensor values) => values.contiguous().data<double>().ToArray();

    private static double[][] Rows(Tensor values) => [.. values.unbind(0).Select(Row)];
}
