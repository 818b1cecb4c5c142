using Heed.Heads;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public sealed class MultiHeadAttentionTests
{
    private static readonly MultiHeadAttentionOptions NoBias = new() { Width = 12, Heads = 1, QueryBias = false, KeyBias = false, ValueBias = false, OutputBias = false, Names = AttentionNames.Matrices };

    [Fact]
    public void Every_projection_mode_is_its_similarity_and_its_map()
    {
        foreach (var mode in Enum.GetValues<QueryKeyMode>())
        {
            foreach (var output in Enum.GetValues<ValueOutputMode>())
            {
                using var scope = NewDisposeScope();
                using var module = new MultiHeadAttention(NoBias with { QueryKey = mode, ValueOutput = output });
                module.to(float64);
                var x = randn(2, 7, 12, dtype: float64);
                Tensor Matrix(string name) => module.get_parameter(name)!;
                var similarity = mode switch
                {
                    QueryKeyMode.Separate => Matrix("w_q").matmul(Matrix("w_k").t()),
                    QueryKeyMode.Shared => Matrix("w_q").matmul(Matrix("w_q").t()),
                    QueryKeyMode.Collapsed => Matrix("w_qk"),
                    QueryKeyMode.SymmetricMirror => Lower(Matrix("w_packed")) + Lower(Matrix("w_packed")).tril(-1).t(),
                    _ => Lower(Matrix("t_packed")).matmul(Lower(Matrix("t_packed")).t()),
                };
                var weights = (x.matmul(similarity).matmul(x.transpose(1, 2)) / Math.Sqrt(12)).softmax(-1);
                var map = output switch
                {
                    ValueOutputMode.Separate => Matrix("w_v").matmul(Matrix("w_o")),
                    ValueOutputMode.Collapsed => Matrix("w_vo"),
                    _ => eye(12, dtype: float64),
                };

                Close(weights.matmul(x).matmul(map), module.forward(x));
            }
        }
    }

    [Fact]
    public void Heads_are_slices_and_the_fused_matrix_holds_queries_keys_and_values()
    {
        using var scope = NewDisposeScope();
        using var fused = new MultiHeadAttention(new() { Width = 8, Heads = 4, KeyValueHeads = 2, HeadWidth = 3, Attention = AttentionOptions.CausalSelf });
        using var parts = new MultiHeadAttention(new() { Width = 8, Heads = 4, KeyValueHeads = 2, HeadWidth = 3, Attention = AttentionOptions.CausalSelf, Names = AttentionNames.Decoder });
        Randomize(fused);
        parts.to(float64);
        using (no_grad())
        {
            foreach (var kind in new[] { "weight", "bias" })
            {
                var all = fused.get_parameter($"qkv.{kind}")!;
                var rows = 0L;
                foreach (var name in new[] { "q_proj", "k_proj", "v_proj" })
                {
                    var part = parts.get_parameter($"{name}.{kind}")!;
                    part.copy_(all.narrow(0, rows, part.shape[0]));
                    rows += part.shape[0];
                }

                Assert.Equal(all.shape[0], rows);
                parts.get_parameter($"o_proj.{kind}")!.copy_(fused.get_parameter($"proj.{kind}")!);
            }
        }

        var x = randn(2, 6, 8, dtype: float64);
        var output = fused.forward(x);
        Close(output, parts.forward(x));

        // By the equations, head by head.
        Tensor Projected(string name) => nn.functional.linear(x, parts.get_parameter($"{name}.weight")!, parts.get_parameter($"{name}.bias")!);
        var (query, key, value) = (Projected("q_proj"), Projected("k_proj"), Projected("v_proj"));
        var later = ones(6, 6, dtype: ScalarType.Bool).triu(1);
        var merged = cat([.. Enumerable.Range(0, 4).Select(head =>
        {
            var group = head / 2 * 3;
            var scores = query.narrow(2, head * 3, 3).matmul(key.narrow(2, group, 3).transpose(1, 2)) / Math.Sqrt(3);
            return scores.masked_fill(later, double.NegativeInfinity).softmax(-1).matmul(value.narrow(2, group, 3));
        })], 2);
        Close(nn.functional.linear(merged, parts.get_parameter("o_proj.weight")!, parts.get_parameter("o_proj.bias")!), output);
    }

    [Fact]
    public void A_memory_before_the_input_gives_the_end_of_the_whole()
    {
        foreach (var mode in new[] { QueryKeyMode.Separate, QueryKeyMode.Shared })
        {
            using var scope = NewDisposeScope();
            using var module = new MultiHeadAttention(
                new() { Width = 8, Heads = 2, QueryKey = mode, QueryKeyNorm = HeadNorm.LayerNorm, Names = new(), Attention = AttentionOptions.CausalSelf }, positions: new RotaryPositions(new(4)));
            Randomize(module);
            var x = randn(2, 9, 8, dtype: float64);

            Close(module.forward(x).narrow(1, 5, 4), module.forward(x.narrow(1, 5, 4), x));
        }
    }

    [Fact]
    public void Gates_multiply_the_heads_before_they_are_merged_and_equal_GatedAttention()
    {
        foreach (var gate in new GateOptions[]
        {
            new(), new() { Granularity = GateGranularity.Headwise }, new() { HeadShared = true }, new() { Source = GateSource.Constant, Activation = GateActivation.SiLU },
            new() { Combine = GateCombination.Add, Activation = GateActivation.SiLU },
        })
        {
            using var scope = NewDisposeScope();
            using var module = new MultiHeadAttention(
                NoBias with { Heads = 3, Names = AttentionNames.Decoder, QueryKeyNorm = HeadNorm.RmsNorm, Attention = AttentionOptions.CausalSelf }, headOutput: new HeadGate(gate));
            using var peer = new GatedAttention(new() { Width = 12, Heads = 3, QueryKeyNorm = true, Gate = gate });
            Randomize(module);
            peer.to(float64);
            using (no_grad())
            {
                foreach (var (name, parameter) in module.named_parameters())
                {
                    peer.get_parameter(name)!.copy_(parameter);
                }
            }

            Assert.Equal(peer.named_parameters().Select(entry => entry.name).Order(), module.named_parameters().Select(entry => entry.name).Order());
            var x = randn(2, 5, 12, dtype: float64);
            Close(peer.forward(x), module.forward(x));
        }
    }

    [Fact]
    public void Gradients_are_those_of_differences()
    {
        foreach (var mode in Enum.GetValues<QueryKeyMode>())
        {
            using var scope = NewDisposeScope();
            using var module = new MultiHeadAttention(NoBias with { Width = 5, QueryKey = mode, ValueOutput = ValueOutputMode.Collapsed, Attention = AttentionOptions.CausalSelf });
            module.to(float64);
            var (x, weights) = (randn(1, 4, 5, dtype: float64), randn(1, 4, 5, dtype: float64));
            double Value() => (module.forward(x) * weights).sum().item<double>();
            (module.forward(x) * weights).sum().backward();
            using var quiet = no_grad();
            foreach (var parameter in module.parameters())
            {
                var flat = parameter.view(-1);
                var middle = flat.shape[0] / 2;
                var (gradient, before) = (parameter.grad!.view(-1)[middle].item<double>(), flat[middle].item<double>());
                flat[middle] = before + 1e-6;
                var above = Value();
                flat[middle] = before - 1e-6;
                var below = Value();
                flat[middle] = before;

                // Central differences of step 1e-6 in float64 are good to about 1e-9.
                Assert.Equal((above - below) / 2e-6, gradient, 1e-7);
            }
        }
    }

    [Fact]
    public void What_does_not_fit_together_is_told()
    {
        static string Message(MultiHeadAttentionOptions options) => Assert.Throws<ArgumentException>(() => new MultiHeadAttention(options)).Message;
        var two = NoBias with { Heads = 2 };

        Assert.Contains("QueryKey Collapsed is defined for one head, not for 2", Message(two with { QueryKey = QueryKeyMode.Collapsed }));
        Assert.Contains("QueryKey SymmetricMirror", Message(two with { QueryKey = QueryKeyMode.SymmetricMirror }));
        Assert.Contains("QueryKey SymmetricCholesky", Message(two with { QueryKey = QueryKeyMode.SymmetricCholesky }));
        Assert.Contains("ValueOutput None", Message(two with { ValueOutput = ValueOutputMode.None }));
        Assert.Contains("ValueOutput Collapsed", Message(two with { ValueOutput = ValueOutputMode.Collapsed }));
        Assert.Contains("does not divide into 5 heads", Message(NoBias with { Heads = 5 }));
        Assert.Contains("3 key/value heads do not divide 4", Message(NoBias with { Heads = 4, KeyValueHeads = 3 }));
        Assert.Contains("must be positive", Message(NoBias with { Width = 0 }));
        Assert.Contains("as wide as they are, 12, not 4", Message(NoBias with { QueryKey = QueryKeyMode.Collapsed, HeadWidth = 4 }));
        Assert.Contains("as many key/value heads as heads, 4, not 2", Message(NoBias with { Heads = 4, KeyValueHeads = 2, QueryKey = QueryKeyMode.Shared }));
        Assert.Contains("'qkv'", Message(new() { Width = 8, Heads = 2, ValueBias = false }));
        Assert.Contains("Bare matrices", Message(NoBias with { QueryBias = true }));
        using var module = new MultiHeadAttention(new() { Width = 8, Heads = 2 });
        Assert.Contains("input must be [batch, tokens, 8], not [1, 2, 7]", Assert.Throws<ArgumentException>(() => module.forward(zeros(1, 2, 7))).Message);
        Assert.Contains("fused projection", Assert.Throws<ArgumentException>(() => module.forward(zeros(1, 2, 8), zeros(1, 3, 8))).Message);
        var gate = new HeadGate(new());
        using var first = new MultiHeadAttention(new() { Width = 8, Heads = 2 }, headOutput: gate);
        Assert.Contains("belongs to another", Assert.Throws<ArgumentException>(() => new MultiHeadAttention(new() { Width = 8, Heads = 2 }, headOutput: gate)).Message);
        Assert.Contains("SdpaOutput", Assert.Throws<ArgumentException>(() => new HeadGate(new() { Position = GatePosition.Value })).Message);
    }

    [Fact]
    public void Training_steps_leave_nothing_behind()
    {
        using var module = new MultiHeadAttention(new() { Width = 8, Heads = 2, Attention = AttentionOptions.CausalSelf }, positions: new RotaryPositions(new(4)), headOutput: new HeadGate(new()));
        using var minimum = new MultiHeadAttention(NoBias with { Width = 8, QueryKey = QueryKeyMode.SymmetricCholesky, ValueOutput = ValueOutputMode.None });
        var before = 0L;
        for (var step = 0; step < 30; step++)
        {
            using (NewDisposeScope())
            {
                (module.forward(randn(2, 6, 8)) + minimum.forward(randn(2, 6, 8))).sum().backward();
            }

            module.zero_grad();
            minimum.zero_grad();
            before = step == 9 ? DisposeScopeManager.Statistics.ThreadTotalLiveCount : before;
        }

        Assert.Equal(before, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    private static Tensor Lower(Tensor packed)
    {
        var width = (int)((Math.Sqrt((8 * packed.shape[0]) + 1) - 1) / 2);
        return stack([.. Enumerable.Range(0, width).Select(row =>
            cat([packed.narrow(0, row * (row + 1) / 2, row + 1), zeros(width - row - 1, dtype: packed.dtype)]))]);
    }

    // Weights of ordinary size: the small initial ones would hide a mistake.
    private static void Randomize(MultiHeadAttention module)
    {
        module.to(float64);
        using var quiet = no_grad();
        foreach (var parameter in module.parameters())
        {
            parameter.copy_(randn_like(parameter) * 0.6);
        }
    }

    private static void Close(Tensor expected, Tensor actual) => Assertions.Close(expected, actual, 1e-12);
}
