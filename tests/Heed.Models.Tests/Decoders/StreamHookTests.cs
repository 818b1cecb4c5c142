using Heed.Models.Decoders;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Decoders;

/// <summary>Hidden states as hooks see and change them in a decoder.</summary>
public sealed class StreamHookTests
{
    private static readonly long[] s_ids = [3, 1, 4, 1, 5];

    [Fact]
    public void Every_place_is_shown_in_order_and_the_stream_adds_up()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = Model();
        using var recorder = new Recorder();
        using (model.Hooks.Install(recorder))
        {
            model.forward(tensor(s_ids).unsqueeze(0));
        }

        StreamPoint[] order =
        [
            StreamPoint.BlockInput, StreamPoint.AttentionInput, StreamPoint.AttentionOutput, StreamPoint.FeedForwardInput, StreamPoint.Gate, StreamPoint.Activation, StreamPoint.Up, StreamPoint.Product,
            StreamPoint.FeedForwardOutput, StreamPoint.BlockOutput,
        ];
        Assert.Equal(Enumerable.Range(0, model.Configuration.Layers).SelectMany(layer => order.Select(point => (layer, point))), recorder.Seen.Select(seen => (seen.Site.Layer, seen.Site.Point)));
        foreach (var layer in recorder.Seen.GroupBy(seen => seen.Site.Layer))
        {
            Tensor At(StreamPoint point) => layer.Single(seen => seen.Site.Point == point).States;
            Assert.True((At(StreamPoint.BlockInput) + At(StreamPoint.AttentionOutput) + At(StreamPoint.FeedForwardOutput) - At(StreamPoint.BlockOutput)).abs().max().item<double>() < 1e-12);
            Assert.True((nn.functional.silu(At(StreamPoint.Gate)) * At(StreamPoint.Up) - At(StreamPoint.Product)).abs().max().item<double>() < 1e-12);
            Assert.Equal($"model.layers.{layer.Key}", layer.First().Site.Name);
        }
    }

    [Fact]
    public void What_a_hook_returns_is_used_and_nothing_is_left_behind()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = Model();
        var ids = tensor(s_ids).unsqueeze(0);
        var plain = model.forward(ids);
        using (model.Hooks.Install(new Change(StreamPoint.FeedForwardOutput, states => states * 0)))
        using (model.Hooks.Install(new Change(StreamPoint.AttentionOutput, states => states * 0)))
        {
            var embeddings = new List<Tensor>();
            model.forward(ids, null, embeddings);
            Assert.All(embeddings.Skip(1).SkipLast(1), states => Assert.True((states - embeddings[0]).abs().max().item<double>() == 0));
        }

        Assert.True((model.forward(ids) - plain).abs().max().item<double>() == 0);
        using var wrong = model.Hooks.Install(new Change(StreamPoint.BlockOutput, states => states.narrow(1, 0, 1)));
        Assert.Contains("same shape", Assert.Throws<InvalidOperationException>(() => model.forward(ids)).Message);
    }

    private static Decoder Model()
    {
        var model = new Decoder(SmallModels.All["llama"], seed: 3);
        model.to(float64);
        return model;
    }

    private sealed class Recorder : StreamHook, IDisposable
    {
        public List<(StreamSite Site, Tensor States)> Seen { get; } = [];

        public override bool ActsAt(StreamSite site) => true;

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            Seen.Add((site, states.detach().clone().DetachFromDisposeScope()));
            return states;
        }

        public void Dispose() => Seen.ForEach(seen => seen.States.Dispose());
    }

    private sealed class Change(StreamPoint point, Func<Tensor, Tensor> change) : StreamHook
    {
        public override bool ActsAt(StreamSite site) => site.Point == point;

        public override Tensor OnStates(StreamSite site, Tensor states) => change(states);
    }
}
