using Heed.Edits;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Edits;

public sealed class StreamEditTests
{
    private static readonly StreamPlace[] Places = [.. Enumerable.Range(0, 3).Select(layer => new StreamPlace(new AttentionHooks(), layer, $"layer.{layer}"))];

    [Fact]
    public void Scales_and_adds_at_the_named_places_only()
    {
        using var scope = NewDisposeScope();
        var (states, vector) = (randn(2, 5, 4), randn(4));
        var edit = new StreamEdit(new StreamChange(StreamPoint.BlockOutput, [1], 0.5, vector, [0, -1, 7]), new StreamChange(StreamPoint.BlockOutput, [1], 2));
        var expected = states * 2;
        expected.index_copy_(1, tensor(new long[] { 0, 4 }), (states.index_select(1, tensor(new long[] { 0, 4 })) * 0.5 + vector) * 2);
        Assertions.Close(expected, Pass(edit, 1, StreamPoint.BlockOutput, states), 1e-6);
        Assert.Same(states, Pass(edit, 2, StreamPoint.BlockOutput, states));
        Assert.Same(states, Pass(edit, 1, StreamPoint.BlockInput, states));
    }

    [Fact]
    public void What_is_ablated_is_gone_whatever_it_was()
    {
        using var scope = NewDisposeScope();
        var states = full([1, 3, 2], double.PositiveInfinity);
        var edit = StreamEdit.Ablate([0], [2]);
        Assertions.Close(zeros_like(states), Pass(edit, 0, StreamPoint.AttentionOutput, states), 0);
        Assertions.Close(zeros_like(states), Pass(edit, 2, StreamPoint.FeedForwardOutput, states), 0);
        Assert.Same(states, Pass(edit, 2, StreamPoint.AttentionOutput, states));
        Assert.False(StreamEdit.Ablate().ActsAt(new(0, StreamPoint.AttentionOutput, "")));
    }

    [Fact]
    public void Gradients_flow_through_and_into_the_vector()
    {
        using var scope = NewDisposeScope();
        var (states, vector) = (randn(1, 4, 3).requires_grad_(), randn(3).requires_grad_());
        Pass(new StreamEdit(new StreamChange(StreamPoint.Up, null, 3, vector, [1])), 0, StreamPoint.Up, states).sum().backward();
        Assertions.Close(tensor(new float[] { 1, 3, 1, 1 }).view(1, 4, 1).expand(1, 4, 3), states.grad!, 1e-6);
        Assertions.Close(ones(3), vector.grad!, 1e-6);
    }

    [Fact]
    public void Refuses_what_cannot_be_done()
    {
        using var scope = NewDisposeScope();
        Assert.Contains("finite", Assert.Throws<ArgumentException>(() => new StreamEdit(new StreamChange(StreamPoint.Gate, Scale: double.NaN))).Message);
        Assert.Contains("layer from 0", Assert.Throws<ArgumentException>(() => new StreamEdit(new StreamChange(StreamPoint.Gate, [-1]))).Message);
        Assert.Contains("one position", Assert.Throws<ArgumentException>(() => new StreamEdit(new StreamChange(StreamPoint.Gate, Positions: []))).Message);
        var edit = new StreamEdit(new StreamChange(StreamPoint.Gate, Vector: ones(7)));
        Assert.Contains("[7] cannot be added", Assert.Throws<ArgumentException>(() => Pass(edit, 0, StreamPoint.Gate, randn(1, 2, 3))).Message);
    }

    private static Tensor Pass(StreamEdit edit, int layer, StreamPoint point, Tensor states)
    {
        using var installed = Places[layer].Hooks!.Install(edit);
        return Places[layer].Pass(point, states);
    }
}
