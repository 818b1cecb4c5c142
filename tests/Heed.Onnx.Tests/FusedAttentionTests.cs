using Heed.Onnx.Graphs;
using Xunit;

namespace Heed.Onnx.Tests;

/// <summary>Fused operators: what their plain form computes is what the runtime's own kernels compute.</summary>
public sealed class FusedAttentionTests
{
    private const int Batch = 2, Tokens = 5, Heads = 2, Width = 8;

    [Theory]
    [InlineData(false, "none")]
    [InlineData(true, "none")]
    [InlineData(false, "keys")]
    [InlineData(false, "pairs")]
    [InlineData(false, "lengths")]
    [InlineData(true, "bias")]
    public void AttentionOfMicrosoft(bool causal, string mask)
    {
        using var file = new GraphFile().Domain("com.microsoft").Input("x", Batch, Tokens, Width).Output("y")
            .Constant("w", OnnxConstant.Of([Width, 3 * Width], Noise(Width * 3 * Width, 1))).Constant("b", OnnxConstant.Of([3 * Width], Noise(3 * Width, 2)));
        var inputs = new Dictionary<string, OnnxTensor> { ["x"] = Tensor(3, Batch, Tokens, Width) };
        var (maskInput, bias) = Mask(file, inputs, mask);
        file.Node("Attention", "com.microsoft", ["x", "w", "b", maskInput, "", bias], ["y"], ("num_heads", (long)Heads), ("unidirectional", causal ? 1L : 0L));
        Check(file, inputs, causal);
    }

    [Theory]
    [InlineData(false, "none")]
    [InlineData(true, "none")]
    [InlineData(false, "keys")]
    [InlineData(false, "bias")]
    public void MultiHeadAttentionOfMicrosoft(bool causal, string mask)
    {
        using var file = new GraphFile().Domain("com.microsoft").Input("q", Batch, Tokens, Width).Input("k", Batch, Tokens, Width).Input("v", Batch, Tokens, Width).Output("y").Constant("b", OnnxConstant.Of([3 * Width], Noise(3 * Width, 2)));
        var inputs = new Dictionary<string, OnnxTensor> { ["q"] = Tensor(3, Batch, Tokens, Width), ["k"] = Tensor(4, Batch, Tokens, Width), ["v"] = Tensor(5, Batch, Tokens, Width) };
        var (maskInput, bias) = Mask(file, inputs, mask);
        file.Node("MultiHeadAttention", "com.microsoft", ["q", "k", "v", "b", maskInput, bias], ["y"], ("num_heads", (long)Heads), ("unidirectional", causal ? 1L : 0L), ("scale", 0.3f));
        Check(file, inputs, causal, OnnxAttentionKind.Cross);
    }

    [Theory]
    [InlineData(false, 2, false)]
    [InlineData(true, 2, false)]
    [InlineData(false, 4, false)]
    [InlineData(true, 1, true)]
    public void AttentionOfTheStandard(bool causal, int queriesPerKey, bool withMask)
    {
        var queryHeads = Heads * queriesPerKey;
        using var file = new GraphFile(23).Input("q", Batch, Tokens, 4 * queryHeads).Input("k", Batch, Tokens, 4 * Heads).Input("v", Batch, Tokens, 4 * Heads).Output("y");
        var inputs = new Dictionary<string, OnnxTensor> { ["q"] = Tensor(3, Batch, Tokens, 4 * queryHeads), ["k"] = Tensor(4, Batch, Tokens, 4 * Heads), ["v"] = Tensor(5, Batch, Tokens, 4 * Heads) };
        if (withMask)
        {
            file.Input("m", Tokens, Tokens);
            inputs["m"] = Tensor(6, Tokens, Tokens);
        }

        file.Node("Attention", "", ["q", "k", "v", withMask ? "m" : ""], ["y"], ("q_num_heads", (long)queryHeads), ("kv_num_heads", (long)Heads), ("is_causal", causal ? 1L : 0L), ("softcap", withMask ? 0f : 3f));
        Check(file, inputs, causal, OnnxAttentionKind.Cross);
    }

    [Fact]
    public void HeadsMayHaveAnAxisOfTheirOwn()
    {
        using var file = new GraphFile(23).Input("q", Batch, Heads, Tokens, 4).Input("k", Batch, Heads, 7, 4).Output("y");
        file.Node("Attention", "", ["q", "k", "k"], ["y"]);
        Check(file, new() { ["q"] = Tensor(3, Batch, Heads, Tokens, 4), ["k"] = Tensor(4, Batch, Heads, 7, 4) }, false, OnnxAttentionKind.Cross);
    }

    [Fact]
    public void WhatKeepsItsWeightsToItselfIsSaid()
    {
        using var file = new GraphFile().Domain("com.microsoft").Input("q", 1, 5, 8).Output("y");
        file.Node("GroupQueryAttention", "com.microsoft", ["q", "q", "q"], ["y"], ("num_heads", 2L), ("kv_num_heads", 2L));
        using var model = file.Load();
        Assert.Empty(model.Attentions);
        Assert.Contains("GroupQueryAttention", Assert.Single(model.Notices), StringComparison.Ordinal);
        Assert.Contains("GroupQueryAttention", Assert.Throws<ArgumentException>(() => model.Edit(new OnnxHeadScaling())).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void ACacheHasNoPlainForm()
    {
        using var file = new GraphFile().Domain("com.microsoft").Input("q", 1, 5, 8).Input("p", 1, 2, 3, 4).Output("y");
        file.Node("MultiHeadAttention", "com.microsoft", ["q", "q", "q", "", "", "", "p", "p"], ["y"], ("num_heads", 2L));
        using var model = file.Load();
        var error = Assert.Throws<NotSupportedException>(() => model.Run(new Dictionary<string, OnnxTensor> { ["q"] = Tensor(1, 1, 5, 8), ["p"] = Tensor(2, 1, 2, 3, 4) }));
        Assert.Contains("cache", error.Message, StringComparison.Ordinal);
    }

    private static (string Mask, string Bias) Mask(GraphFile file, Dictionary<string, OnnxTensor> inputs, string kind)
    {
        switch (kind)
        {
            case "keys":
                file.Input("m", OnnxElementType.Int32, Batch, Tokens);
                inputs["m"] = OnnxTensor.Of([1L, 1, 1, 1, 1, 1, 1, 1, 0, 0], Batch, Tokens);
                return ("m", "");
            case "pairs":
                file.Input("m", OnnxElementType.Int32, Batch, Tokens, Tokens);
                inputs["m"] = OnnxTensor.Of([.. Enumerable.Range(0, Batch * Tokens * Tokens).Select(i => i % 3 == 0 ? 0L : 1)], Batch, Tokens, Tokens);
                return ("m", "");
            case "lengths":
                file.Input("m", OnnxElementType.Int32, Batch);
                inputs["m"] = OnnxTensor.Of([5L, 3], Batch);
                return ("m", "");
            case "bias":
                file.Input("a", Batch, Heads, Tokens, Tokens);
                inputs["a"] = Tensor(7, Batch, Heads, Tokens, Tokens);
                return ("", "a");
            default:
                return ("", "");
        }
    }

    /// <summary>The operator's own output is that of the plain form; maps sum to one and, multiplied out by a factor, scale the output.</summary>
    private static void Check(GraphFile file, Dictionary<string, OnnxTensor> inputs, bool causal, OnnxAttentionKind kind = OnnxAttentionKind.Self)
    {
        using var model = file.Load();
        var attention = Assert.Single(model.Attentions);
        Assert.Equal(kind, attention.Kind);
        Assert.Equal(causal, attention.IsCausal);
        var own = model.Run(inputs, new() { Layers = new HashSet<int>() });
        using var plain = model.Edit(new OnnxHeadScaling { Factor = 1 });
        var run = plain.Run(inputs);
        Exported.AreClose(own.Outputs["y"].ToSingles(), run.Outputs["y"].ToSingles());
        var map = Assert.Single(model.Run(inputs).Maps);
        Exported.AreClose(run.Maps[0].Values, map.Values);
        Assert.Equal(attention.Heads, map.Heads);
        for (var row = 0; row < map.Batch * map.Heads * map.Queries; row++)
        {
            var weights = map.Values.AsSpan(row * map.Keys, map.Keys);
            Assert.Equal(1, weights.ToArray().Sum(), 1e-5);
            Assert.True(!causal || weights[((row % map.Queries) + 1)..].IndexOfAnyExcept(0f) < 0);
        }

        using var halved = model.Edit(new OnnxHeadScaling { Factor = 0.5 });
        Exported.AreClose([.. own.Outputs["y"].ToSingles().Select(value => value / 2)], halved.Run(inputs).Outputs["y"].ToSingles());
    }

    private static OnnxTensor Tensor(int seed, params long[] shape) => OnnxTensor.Of(Noise((int)shape.Aggregate(1L, (count, size) => count * size), seed), shape);

    private static float[] Noise(int count, int seed)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => (float)((random.NextDouble() * 2) - 1))];
    }
}
