using Xunit;

namespace Heed.Onnx.Tests;

public sealed class OnnxEditTests
{
    // One graph per layout of maps: plain, batch and heads merged, axes in another order, groups, windows.
    public static TheoryData<string> Layouts => new("scaled-queries-11", "causal-13", "merged-heads-14", "einsum-ijbh-12", "einsum-bijh-13", "grouped-17", "windows-17", "sink-17");

    [Theory]
    [MemberData(nameof(Layouts))]
    public void HeadScalingMultipliesTheMapsOfItsHeads(string name)
    {
        var (before, after) = BeforeAndAfter(name, new OnnxHeadScaling { Heads = new HashSet<int> { 1, 3 }, Factor = 0.25 });
        Compare(before, after, (row, head) => [.. row.Select(weight => head is 1 or 3 ? weight * 0.25 : weight)]);
    }

    [Theory]
    [MemberData(nameof(Layouts))]
    public void ColumnScalingLeavesTheFreedMass(string name)
    {
        var (before, after) = BeforeAndAfter(name, new OnnxColumnScaling([0, -1]) { Heads = new HashSet<int> { 2 }, Factor = 0.5 });
        Compare(before, after, (row, head) => [.. row.Select((weight, i) => head == 2 && (i == 0 || i == row.Length - 1) ? weight * 0.5 : weight)]);
    }

    [Theory]
    [MemberData(nameof(Layouts))]
    public void ColumnScalingRenormalises(string name)
    {
        var (before, after) = BeforeAndAfter(name, new OnnxColumnScaling([1]) { Factor = 0.1, FreedMass = OnnxFreedMass.Renormalise });
        Compare(before, after, (row, _) =>
        {
            var scaled = row.Select((weight, i) => i == 1 ? weight * 0.1 : weight).ToArray();
            return [.. scaled.Select(weight => weight * row.Sum() / scaled.Sum())];
        });
    }

    [Theory]
    [MemberData(nameof(Layouts))]
    public void ColumnScalingRedistributesOverTheOthers(string name)
    {
        var (before, after) = BeforeAndAfter(name, new OnnxColumnScaling([0]) { Heads = new HashSet<int> { 0 }, Factor = 0.4, FreedMass = OnnxFreedMass.Redistribute });
        Compare(before, after, (row, head) =>
        {
            var others = row.Sum() - row[0];
            return head != 0 || others == 0 ? [.. row.Select((weight, i) => head == 0 && i == 0 ? weight * 0.4 : weight)] : [.. row.Select((weight, i) => i == 0 ? weight * 0.4 : weight * (1 + (0.6 * row[0] / others)))];
        });
    }

    [Fact]
    public void RemovingEveryHeadLeavesWhatGoesAroundAttention()
    {
        using var file = new GraphFile();
        using var model = file.SelfAttention().Load();
        using var edited = model.Edit(new OnnxHeadScaling { Factor = 0 });
        var run = edited.Run(Ramp());
        Assert.All(run.Outputs["y"].ToSingles(), value => Assert.Equal(0, value));
    }

    [Fact]
    public void EditsFollowEachOtherAndTheModelStaysAsItIs()
    {
        using var file = new GraphFile();
        using var model = file.SelfAttention().Load();
        using var twice = model.Edit(new OnnxHeadScaling { Factor = 0.5 }, new OnnxHeadScaling { Factor = 0.5 });
        using var thrice = twice.Edit(new OnnxHeadScaling { Factor = 2 });
        var plain = model.Run(Ramp()).Outputs["y"].ToSingles();
        Exported.AreClose([.. plain.Select(value => value / 4)], twice.Run(Ramp()).Outputs["y"].ToSingles());
        Exported.AreClose([.. plain.Select(value => value / 2)], thrice.Run(Ramp()).Outputs["y"].ToSingles());
    }

    [Theory]
    [InlineData("merged-heads-14")]
    [InlineData("causal-13")]
    public void AnEditedModelIsWrittenAndRunsElsewhere(string name)
    {
        var exported = Exported.Read(name);
        using var model = OnnxModel.Load(exported.Path);
        using var edited = model.Edit(new OnnxColumnScaling([0]) { Factor = 0, FreedMass = OnnxFreedMass.Renormalise });
        using var file = new GraphFile();
        using (var stream = File.Create(file.Path))
        {
            edited.WriteTo(stream);
        }

        using var again = OnnxModel.Load(file.Path);
        var none = new OnnxRunOptions { Layers = new HashSet<int>() };
        Assert.Equal(edited.Run(exported.Inputs, none).Outputs["y"].ToSingles(), again.Run(exported.Inputs, none).Outputs["y"].ToSingles());
        Assert.NotEqual(model.Run(exported.Inputs, none).Outputs["y"].ToSingles(), again.Run(exported.Inputs, none).Outputs["y"].ToSingles());
    }

    [Fact]
    public void WhatIsNotThereCannotBeEdited()
    {
        using var model = OnnxModel.Load(Exported.Read("causal-13").Path);
        Assert.Contains("0 to 0", Assert.Throws<ArgumentException>(() => model.Edit(new OnnxHeadScaling { Layers = new HashSet<int> { 1 } })).Message, StringComparison.Ordinal);
        Assert.Contains("0 to 0", Assert.Throws<ArgumentException>(() => model.Edit(new OnnxHeadScaling { Layers = new HashSet<int> { -1 } })).Message, StringComparison.Ordinal);
        Assert.Contains("heads 0 to 3", Assert.Throws<ArgumentException>(() => model.Edit(new OnnxHeadScaling { Heads = new HashSet<int> { 4 } })).Message, StringComparison.Ordinal);
        Assert.Contains("finite", Assert.Throws<ArgumentException>(() => model.Edit(new OnnxHeadScaling { Factor = double.NaN })).Message, StringComparison.Ordinal);
    }

    private static Dictionary<string, OnnxTensor> Ramp() => new() { ["x"] = OnnxTensor.Of([.. Enumerable.Range(0, 12).Select(i => (i % 5) - 1.5f)], 1, 3, 4) };

    private static (OnnxMap Before, OnnxMap After) BeforeAndAfter(string name, OnnxEdit edit)
    {
        var exported = Exported.Read(name);
        using var model = OnnxModel.Load(exported.Path).WithInputShapes(exported.Inputs.ToDictionary(input => input.Key, input => input.Value.Shape.ToArray()));
        using var edited = model.Edit(edit);
        var (before, after) = (model.Run(exported.Inputs), edited.Run(exported.Inputs));
        Assert.NotEqual(before.Outputs["y"].ToSingles(), after.Outputs["y"].ToSingles());
        return (before.Maps[0], after.Maps[0]);
    }

    private static void Compare(OnnxMap before, OnnxMap after, Func<double[], int, double[]> edit)
    {
        for (var batch = 0; batch < before.Batch; batch++)
        {
            for (var head = 0; head < before.Heads; head++)
            {
                for (var row = 0; row < before.Queries; row++)
                {
                    var range = (row * before.Keys)..((row + 1) * before.Keys);
                    var expected = edit([.. before.Head(batch, head)[range].ToArray().Select(weight => (double)weight)], head);
                    Exported.AreClose([.. expected.Select(weight => (float)weight)], after.Head(batch, head)[range], 1e-6f);
                }
            }
        }
    }
}
