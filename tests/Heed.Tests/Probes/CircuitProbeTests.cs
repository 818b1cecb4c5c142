using Heed.Heads;
using Heed.Layers;
using Heed.Mixers;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Probes;

public sealed class CircuitProbeTests
{
    [Theory]
    [InlineData(4, 4)]
    [InlineData(4, 2)]
    public void Circuits_say_what_the_projections_say(int heads, int groups)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        manual_seed(1);
        using var attention = new MultiHeadAttention(new()
        {
            Width = 12, Heads = heads, KeyValueHeads = groups, HeadWidth = 5, Names = AttentionNames.Decoder, QueryBias = false, KeyBias = false, ValueBias = false, OutputBias = false,
        });
        Parameters.InitializeByFan(attention);
        attention.to(float64);
        using var circuits = CircuitProbe.Of(attention, heads, groups);

        var x = randn([1, 3, 12], float64);
        var scores = matmul(matmul(x.unsqueeze(1), circuits.QueryKey.unsqueeze(0)), x.unsqueeze(1).transpose(-1, -2));
        var output = matmul(matmul(scores.softmax(-1), x.unsqueeze(1)), circuits.ValueOutput.unsqueeze(0)).sum(1);

        Assertions.Close(attention.forward(x), output, 1e-12);
    }

    [Fact]
    public void Fused_packed_and_bare_projections_are_read_alike()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        manual_seed(2);
        MultiHeadAttention Make(AttentionNames names) => new(new() { Width = 8, Heads = 2, Names = names, QueryBias = false, KeyBias = false, ValueBias = false, OutputBias = false });
        using var separate = Make(AttentionNames.Decoder);
        using var fused = Make(AttentionNames.Fused);
        using var bare = Make(AttentionNames.Matrices);
        using var packed = new PackedAttention(8, 2);
        Tensor[] weights = [.. new[] { "q_proj", "k_proj", "v_proj", "o_proj" }.Select(name => (Tensor)separate.get_parameter(name + ".weight")!)];
        fused.get_parameter("qkv.weight")!.copy_(cat(weights[..3], 0));
        fused.get_parameter("proj.weight")!.copy_(weights[3]);
        packed.get_parameter("in_proj_weight")!.copy_(cat(weights[..3], 0));
        packed.get_parameter("out_proj.weight")!.copy_(weights[3]);
        foreach (var (name, weight) in new[] { "w_q", "w_k", "w_v", "w_o" }.Zip(weights))
        {
            bare.get_parameter(name)!.copy_(weight.t());
        }

        using var expected = CircuitProbe.Of(separate, 2);
        foreach (var module in new nn.Module[] { fused, packed, bare })
        {
            using var circuits = CircuitProbe.Of(module, 2);
            Assert.Equal(0, (circuits.QueryKey - expected.QueryKey).abs().max().item<float>());
            Assert.Equal(0, (circuits.ValueOutput - expected.ValueOutput).abs().max().item<float>());
        }
    }

    [Fact]
    public void Measures_of_circuits_that_are_known()
    {
        using var scope = NewDisposeScope();
        // Two heads of width 3 over (x1, x2, y): KQ = w I on x with one entry off it, OV reads y with m and x1 with a little.
        var key = eye(3, dtype: float64).repeat(3, 1);
        var (slopes, values) = (new[] { 0.5, -0.4, 0.1 }, new[] { 2.0, -1.9, -0.1 });
        var query = cat(slopes.Select(slope => (eye(3, dtype: float64) * slope)).ToList(), 0);
        query[0, 1] = tensor(0.1);
        var value = cat(values.Select(weight => tensor(new double[,] { { 0, 0, weight }, { 0.05, 0, 0 }, { 0, 0, 0 } })).ToList(), 0);
        var output = tensor(new double[,] { { 1, 1, 0, 1, 1, 0, 1, 1, 0 } });
        using var circuits = new CircuitProbe(query, key, value, output, 3, scale: 1);

        var measured = circuits.Measure(2, (2, 0));

        Assert.Equal(slopes, measured.Heads.Select(head => Math.Round(head.Slope, 12)));
        Assert.Equal(values, measured.Heads.Select(head => Math.Round(head.Weight, 12)));
        Assert.All(measured.Heads, head => Assert.Equal(0.05, head.OtherWeight, 12));
        Assert.Equal([0.1, 0, 0], measured.Heads.Select(head => Math.Round(head.OffDiagonal, 12)));
        Assert.Equal(0.5 / 0.51, measured.Heads[0].DiagonalShare, 12);
        // The third head is no active one, so that its sign does not count; Σμ is over all.
        Assert.Equal(2, measured.Active.Count);
        Assert.Equal(1, measured.SignAgreement);
        Assert.Equal(0.2, measured.Diagonality, 12);
        Assert.Equal(0, measured.Homogeneity, 12);
        Assert.Equal(0, measured.ZeroSum, 12);
    }

    [Fact]
    public void What_cannot_be_read_is_told()
    {
        using var scope = NewDisposeScope();
        void Refused(string part, Action action) => Assert.Contains(part, Assert.Throws<ArgumentException>(action).Message, StringComparison.Ordinal);
        using var mixer = new AtrousProbe();
        Refused("has no projections", () => CircuitProbe.Of(mixer, 2));
        using var attention = new LinearAttention(8, 2);
        Refused("do not divide into 5 query heads", () => CircuitProbe.Of(attention, 5));
        Refused("must divide that of query heads", () => CircuitProbe.Of(attention, 2, 3));
        Refused("of one width", () => CircuitProbe.QueryKeyCircuits(zeros(8, 4), zeros(6, 4), 2));
        Refused("[outputs, 2 * width]", () => CircuitProbe.ValueOutputCircuits(zeros(8, 4), zeros(4, 6), 2));
        using var circuits = CircuitProbe.Of(attention, 2);
        Refused("8 inputs", () => circuits.Measure(9));
        Refused("8 outputs", () => circuits.Measure(4, (0, 8)));
    }

    private sealed class AtrousProbe() : nn.Module(nameof(AtrousProbe));
}
