using Heed.Onnx.Graphs;
using Xunit;

namespace Heed.Onnx.Tests;

public sealed class OnnxModelErrorTests
{
    [Fact]
    public void AFileThatIsNoModelIsRefused()
    {
        using var file = new GraphFile();
        Assert.Contains("no model file", Assert.Throws<FileNotFoundException>(() => OnnxModel.Load(file.Path)).Message, StringComparison.Ordinal);
        foreach (var bytes in new[] { [], "In the beginning was the word."u8.ToArray(), new byte[64], [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF] })
        {
            File.WriteAllBytes(file.Path, bytes);
            Assert.Contains("not an ONNX model", Assert.Throws<InvalidDataException>(() => OnnxModel.Load(file.Path)).Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void DamageIsAnErrorAndNeverMore()
    {
        var whole = File.ReadAllBytes(Exported.Read("causal-13").Path);
        using var file = new GraphFile();
        var random = new Random(1);
        for (var round = 0; round < 300; round++)
        {
            var bytes = round % 2 == 0 ? whole[..random.Next(whole.Length)] : (byte[])whole.Clone();
            for (var flip = 0; flip < round % 7 && bytes.Length > 0; flip++)
            {
                bytes[random.Next(bytes.Length)] = (byte)random.Next(256);
            }

            File.WriteAllBytes(file.Path, bytes);
            try
            {
                OnnxModel.Load(file.Path).Dispose();
            }
            catch (Exception error) when (error is InvalidDataException or NotSupportedException or FileNotFoundException)
            {
                Assert.DoesNotContain('\n', error.Message);
            }
        }
    }

    [Fact]
    public void OldOperatorsAreRefused()
    {
        using var file = new GraphFile(6);
        Assert.Contains("version 6", Assert.Throws<NotSupportedException>(() => file.SelfAttention().Load()).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void AnUnknownOperatorIsTheRuntimesSentence()
    {
        using var file = new GraphFile();
        using var model = file.SelfAttention().Node("Bewilder", ["y"], "z").Output("z").Load();
        Assert.Contains("Bewilder", Assert.Throws<InvalidDataException>(() => model.Run(Given(1, 3, 4))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void AModelWithoutAttentionSaysSo()
    {
        using var file = new GraphFile();
        using var model = file.Input("x", 1, 4).Output("y").Constant("w", OnnxConstant.Of([4, 3], new float[12])).Node("MatMul", ["x", "w"], "logits").Node("Softmax", ["logits"], "y", ("axis", -1L)).Load();
        Assert.Empty(model.Attentions);
        Assert.Contains("No attention", Assert.Throws<ArgumentException>(() => model.Run(Given(1, 4))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void InputsAreChecked()
    {
        using var file = new GraphFile();
        using var model = file.SelfAttention().Load();
        void Fails(string words, Dictionary<string, OnnxTensor> inputs) => Assert.Contains(words, Assert.Throws<ArgumentException>(() => model.Run(inputs)).Message, StringComparison.Ordinal);
        Fails("x [1, ?, 4] Float32 was not given", []);
        Fails("no input 'z'", new() { ["x"] = OnnxTensor.Of(new float[12], 1, 3, 4), ["z"] = OnnxTensor.Of(new float[1], 1) });
        Fails("given as [1, 3, 5]", Given(1, 3, 5));
        Fails("given as [3, 4]", Given(3, 4));
        Assert.Contains("does not have", Assert.Throws<ArgumentException>(() => OnnxTensor.Of(new float[3], 2, 2)).Message, StringComparison.Ordinal);
        // Whole numbers become the input's type, where nothing is lost.
        Assert.Single(model.Run(new Dictionary<string, OnnxTensor> { ["x"] = OnnxTensor.Of(new long[12], 1, 3, 4) }).Maps);
    }

    [Fact]
    public void FractionsAreNoTokenIds()
    {
        using var file = new GraphFile();
        using var model = file.Input("ids", OnnxElementType.Int64, 1, null).Constant("table", OnnxConstant.Of([3, 4], [.. Enumerable.Range(0, 12).Select(i => (float)i)])).Node("Gather", ["table", "ids"], "x").Output("y")
            .Node("Transpose", ["x"], "keys", ("perm", new long[] { 0, 2, 1 })).Node("MatMul", ["x", "keys"], "scores").Node("Softmax", ["scores"], "w").Node("MatMul", ["w", "x"], "y").Load();
        Assert.Contains("without loss", Assert.Throws<ArgumentException>(() => model.Run(new Dictionary<string, OnnxTensor> { ["ids"] = OnnxTensor.Of([0.5f, 1], 1, 2) })).Message, StringComparison.Ordinal);
        // Ids beyond the table are the runtime's own complaint, on one line.
        Assert.DoesNotContain('\n', Assert.Throws<InvalidDataException>(() => model.Run(new Dictionary<string, OnnxTensor> { ["ids"] = OnnxTensor.Of([9L, 1], 1, 2) })).Message);
    }

    [Fact]
    public void AttentionInABodyIsSaidToBeOutOfReach()
    {
        using var file = new GraphFile();
        using var model = file.Input("x", 1, 3, 4).Output("y").Body("If", "then_branch", ["c"], "y", OnnxNode.Make("MatMul", ["x", "x"], ["s"]), OnnxNode.Make("Softmax", ["s"], ["w"]), OnnxNode.Make("MatMul", ["w", "x"], ["y"])).Load();
        Assert.Contains("in its body", Assert.Single(model.Notices), StringComparison.Ordinal);
    }

    [Fact]
    public void WeightsBesideTheModelAreFound()
    {
        using var file = new GraphFile();
        file.SelfAttention().External("w", [4, 4], "weights.bin").Node("MatMul", ["y", "w"], "z").Output("z");
        Assert.Contains("weights.bin", Assert.Throws<FileNotFoundException>(() => file.Load()).Message, StringComparison.Ordinal);
        float[] identity = [.. Enumerable.Range(0, 16).Select(i => i % 5 == 0 ? 2f : 0)];
        File.WriteAllBytes(Path.Combine(file.Folder, "weights.bin"), System.Runtime.InteropServices.MemoryMarshal.AsBytes(identity.AsSpan()).ToArray());
        using var model = OnnxModel.Load(file.Path);
        Assert.Equal(["weights.bin"], model.WeightFiles);
        var run = model.Run(Given(1, 3, 4));
        Exported.AreClose([.. run.Outputs["y"].ToSingles().Select(value => 2 * value)], run.Outputs["z"].ToSingles());
    }

    [Fact]
    public void WeightsOutsideTheFolderAreRefused()
    {
        using var file = new GraphFile();
        Assert.Contains("own folder", Assert.Throws<InvalidDataException>(() => file.SelfAttention().External("w", [4, 4], "../weights.bin").Load()).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void WhatIsNotKnownSurvivesARoundTrip()
    {
        var bytes = File.ReadAllBytes(Exported.Read("bias-12").Path);
        byte[] strange = [.. bytes, .. new WireMessage().Text(777, "kept").ToArray()];
        var written = OnnxGraph.Read(strange).Write().ToArray();
        Assert.Contains("kept", Wire.Read(written).Where(field => field.Number == 777).Select(field => field.Text));
        Assert.Equal(strange.Length, written.Length);
        Assert.Equal(OnnxGraph.Read(strange).Nodes.Select(node => node.Operation), OnnxGraph.Read(written).Nodes.Select(node => node.Operation));
    }

    private static Dictionary<string, OnnxTensor> Given(params long[] shape) => new() { ["x"] = OnnxTensor.Of([.. Enumerable.Range(0, (int)shape.Aggregate(1L, (count, size) => count * size)).Select(i => (i % 7) / 7f)], shape) };
}
