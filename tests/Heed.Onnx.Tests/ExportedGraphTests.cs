using Xunit;

namespace Heed.Onnx.Tests;

public sealed class ExportedGraphTests
{
    public static TheoryData<string> All => new(Exported.Names);

    [Theory]
    [MemberData(nameof(All))]
    public void MapsAreThoseOfTheNetwork(string name)
    {
        var exported = Exported.Read(name);
        using var model = OnnxModel.Load(exported.Path);
        var run = model.Run(exported.Inputs);
        Assert.Equal(exported.Maps.Count, run.Maps.Count);
        for (var i = 0; i < run.Maps.Count; i++)
        {
            var map = run.Maps[i];
            Assert.Equal(exported.Maps[i].Shape, [map.Batch, map.Heads, map.Queries, map.Keys]);
            Exported.AreClose(exported.Maps[i].ToSingles(), map.Values);
        }

        Exported.AreClose(exported.Output.ToSingles(), run.Outputs["y"].ToSingles());
    }

    [Theory]
    [MemberData(nameof(All))]
    public void AWrittenModelHandsOverTheSameMaps(string name)
    {
        var exported = Exported.Read(name);
        using var model = OnnxModel.Load(exported.Path).WithInputShapes(exported.Inputs.ToDictionary(input => input.Key, input => input.Value.Shape.ToArray()));
        var (shown, outputs) = model.WithMaps();
        using var file = new GraphFile();
        using (var stream = File.Create(file.Path))
        {
            shown.WriteTo(stream);
        }

        using var again = OnnxModel.Load(file.Path);
        var run = again.Run(exported.Inputs);
        for (var i = 0; i < outputs.Count; i++)
        {
            Assert.Equal(exported.Maps[i].Shape, run.Outputs[outputs[i]].Shape);
            Exported.AreClose(exported.Maps[i].ToSingles(), run.Outputs[outputs[i]].ToSingles());
        }
    }

    [Theory]
    [InlineData("causal-13", true, OnnxAttentionKind.Self)]
    [InlineData("scaled-both-17", true, OnnxAttentionKind.Self)]
    [InlineData("scaled-queries-11", false, OnnxAttentionKind.Self)]
    [InlineData("bias-12", false, OnnxAttentionKind.Self)]
    [InlineData("merged-heads-14", false, OnnxAttentionKind.Self)]
    public void KindAndMaskAreRead(string name, bool causal, OnnxAttentionKind kind)
    {
        var attention = Assert.Single(OnnxAttention.Find(Exported.Read(name).Path));
        Assert.Equal(causal, attention.IsCausal);
        Assert.Equal(kind, attention.Kind);
        Assert.Equal(4, attention.Heads);
    }

    [Fact]
    public void CrossAttentionComesAfterSelfAttention()
    {
        var attentions = OnnxAttention.Find(Exported.Read("cross-17").Path);
        Assert.Equal([OnnxAttentionKind.Self, OnnxAttentionKind.Cross], attentions.Select(attention => attention.Kind));
        Assert.Equal(["a", "b"], attentions.Select(attention => attention.Name));
        Assert.Equal([0, 1], attentions.Select(attention => attention.Layer));
    }

    [Fact]
    public void AModelRunsInPartsWhereItsMapsDoNotFitTogether()
    {
        var exported = Exported.Read("cross-17");
        using var model = OnnxModel.Load(exported.Path);
        var bytes = exported.Maps.Max(map => map.Values.Length) * sizeof(float);
        var maps = new List<OnnxMap>();
        var run = model.Run(exported.Inputs, new() { MapBudget = bytes }, maps.Add);
        Assert.Empty(run.Maps);
        Assert.Equal(2, maps.Count);
        Exported.AreClose(exported.Maps[1].ToSingles(), maps[1].Values);
        var error = Assert.Throws<ArgumentException>(() => model.Run(exported.Inputs, new() { MapBudget = bytes }));
        Assert.Contains("fewer attentions", error.Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => model.Run(exported.Inputs, new() { MapBudget = 16 }, maps.Add));
    }

    [Fact]
    public void OnlyTheWantedMapsAreTaken()
    {
        var exported = Exported.Read("cross-17");
        using var model = OnnxModel.Load(exported.Path);
        Assert.Equal(1, Assert.Single(model.Run(exported.Inputs, new() { Layers = new HashSet<int> { 1 } }).Maps).Attention.Layer);
        Assert.Empty(model.Run(exported.Inputs, new() { Layers = new HashSet<int>() }).Maps);
    }

    [Fact]
    public async Task ACancelledRunStops()
    {
        var exported = Exported.Read("cross-17");
        using var model = OnnxModel.Load(exported.Path);
        using var cancelled = new CancellationTokenSource();
        await cancelled.CancelAsync();
        Assert.Throws<OperationCanceledException>(() => model.Run(exported.Inputs, cancellation: cancelled.Token));
    }
}
