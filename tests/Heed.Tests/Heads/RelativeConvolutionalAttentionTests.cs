using Heed.Heads;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public sealed class RelativeConvolutionalAttentionTests
{
    private static readonly RelativeConvolutionalAttentionOptions Small = new() { Width = 8, Heads = 2, Reach = 12 };

    [Fact]
    public void Every_form_is_its_equations()
    {
        foreach (var (relative, convolution, causal, memory, kernel) in new[]
        {
            (true, true, true, 4, 3), (true, true, false, 3, 2), (true, false, true, 0, 3), (false, true, true, 2, 1), (false, false, false, 0, 3), (true, true, true, 0, 5), (true, true, false, 0, 3),
        })
        {
            using var scope = NewDisposeScope();
            using var module = Module(Small with { IsRelative = relative, IsConvolutional = convolution, Causal = causal, Kernel = kernel });
            var (x, before) = (randn(2, 5, 8, dtype: float64), memory > 0 ? randn(2, memory, 8, dtype: float64) : null);

            Assertions.Close(Equations(module, x, before), module.ForwardWithMemory(x, before), 1e-11);
        }
    }

    [Fact]
    public void A_call_of_one_token_at_the_end_of_a_full_memory_is_in_reach()
    {
        foreach (var reach in new[] { 1, 2, 12 })
        {
            using var scope = NewDisposeScope();
            using var module = Module(Small with { Reach = reach });
            var (x, before) = (randn(1, 1, 8, dtype: float64), reach > 1 ? randn(1, reach - 1, 8, dtype: float64) : null);

            Assertions.Close(Equations(module, x, before), module.ForwardWithMemory(x, before), 1e-11);
        }
    }

    [Fact]
    public void A_kernel_that_takes_the_present_alone_leaves_relative_attention()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var module = Module(Small);
        using var plain = Module(Small with { IsConvolutional = false });
        foreach (var (name, parameter) in plain.named_parameters())
        {
            parameter.copy_(module.get_parameter(name.Replace(".linear", ".0.linear", StringComparison.Ordinal))!);
        }

        foreach (var name in new[] { "query", "key", "value" })
        {
            module.get_parameter($"{name}.1.conv.weight")!.copy_(tensor(new double[] { 0, 0, 1 }).expand(4, 1, 3));
            module.get_parameter($"{name}.1.conv.bias")!.zero_();
        }

        var (x, memory) = (randn(2, 5, 8, dtype: float64), randn(2, 3, 8, dtype: float64));
        Assertions.Close(plain.ForwardWithMemory(x, memory), module.ForwardWithMemory(x, memory), 1e-12);
    }

    [Fact]
    public void Scores_depend_on_distance_alone()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var module = Module(Small with { Reach = 32 });

        // The same tokens, two places later in a longer memory; keys near its start see the zeros before it, so the window of the comparison leaves them out by masking through weights: all else is far from them.
        var (old, text, x) = (randn(1, 2, 8, dtype: float64), randn(1, 6, 8, dtype: float64), randn(1, 4, 8, dtype: float64));
        Tensor Scores(Tensor memory)
        {
            using var probe = new AttentionMapProbe();
            module.Hooks = new();
            using var installed = module.Hooks.Install(probe);
            module.ForwardWithMemory(x, memory).Dispose();
            return probe[probe.Sites[0]].log().DetachFromDisposeScope();
        }

        using var near = Scores(text);
        using var far = Scores(cat([old, text], 1));

        // Of the keys whose convolution sees only shared tokens, the last query's scores differ by one constant, the normaliser.
        var (a, b) = (near.select(2, 3).narrow(2, 2, 8), far.select(2, 3).narrow(2, 4, 8));
        Assertions.Close(a - a.narrow(2, 7, 1), b - b.narrow(2, 7, 1), 1e-11);
    }

    [Fact]
    public void What_comes_later_is_not_seen()
    {
        using var scope = NewDisposeScope();
        using var module = Module(Small);
        var x = randn(1, 6, 8, dtype: float64).requires_grad_();

        module.forward(x).narrow(1, 0, 3).sum().backward();

        Assert.Equal(0, x.grad!.narrow(1, 3, 3).abs().max().item<double>());
        Assert.True(x.grad.narrow(1, 0, 3).abs().min().item<double>() > 0);
    }

    [Fact]
    public void Float32_goes_through_the_fused_kernel_with_the_same_result()
    {
        using var scope = NewDisposeScope();
        using var module = Module(Small with { Reach = 64 });
        var (x, memory) = (randn(2, 40, 8, dtype: float64), randn(2, 20, 8, dtype: float64));
        var expected = module.ForwardWithMemory(x, memory);
        expected.square().sum().backward();
        var gradient = module.get_parameter("key_pos_embeddings")!.grad!.clone();
        module.to(float32);
        module.zero_grad();
        var output = module.ForwardWithMemory(x.to(float32), memory.to(float32));
        output.square().sum().backward();

        // Float32 keeps 24 bits; sums here are of some hundred terms of ordinary size.
        Assertions.Close(expected, output, 1e-4);
        Assertions.Close(gradient / gradient.abs().max(), module.get_parameter("key_pos_embeddings")!.grad! / gradient.abs().max().to(float32), 1e-4);
    }

    [Fact]
    public void What_does_not_fit_is_told()
    {
        static string Message(Action action) => Assert.ThrowsAny<ArgumentException>(action).Message;
        Assert.Contains("8 does not divide into 3", Message(() => new RelativeConvolutionalAttention(Small with { Heads = 3 }).Dispose()));
        Assert.Contains("at least 1 tap, not 0", Message(() => new RelativeConvolutionalAttention(Small with { Kernel = 0 }).Dispose()));
        Assert.Contains("reach", Message(() => new RelativeConvolutionalAttention(Small with { Reach = 0 }).Dispose()));
        using var module = new RelativeConvolutionalAttention(Small);
        Assert.Contains("reach 12 tokens, memory included; 7 queries over 13 keys", Message(() => module.ForwardWithMemory(zeros(1, 7, 8), zeros(1, 6, 8))));
        Assert.Contains("batch and width of the input", Message(() => module.ForwardWithMemory(zeros(1, 7, 8), zeros(2, 2, 8))));
    }

    [Fact]
    public void Training_steps_leave_nothing_behind()
    {
        using var module = new RelativeConvolutionalAttention(Small);
        var before = 0L;
        for (var step = 0; step < 30; step++)
        {
            using (NewDisposeScope())
            {
                module.ForwardWithMemory(randn(2, 6, 8), randn(2, 4, 8)).sum().backward();
            }

            module.zero_grad();
            before = step == 9 ? DisposeScopeManager.Statistics.ThreadTotalLiveCount : before;
        }

        Assert.Equal(before, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    private static RelativeConvolutionalAttention Module(RelativeConvolutionalAttentionOptions options)
    {
        var module = new RelativeConvolutionalAttention(options);
        module.to(float64);
        using var quiet = no_grad();
        foreach (var parameter in module.parameters())
        {
            parameter.copy_(randn_like(parameter) * 0.6);
        }

        return module;
    }

    /// <summary>The specification's equations, pair by pair.</summary>
    private static Tensor Equations(RelativeConvolutionalAttention module, Tensor x, Tensor? memory)
    {
        using var quiet = no_grad();
        var parameters = module.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter);
        var whole = memory is null ? x : cat([memory, x], 1);
        var (n, m, heads, width) = ((int)x.shape[1], (int)whole.shape[1], module.Options.Heads, module.HeadWidth);
        var relative = parameters.ContainsKey("query_pos_bias");
        var reach = relative ? (int)parameters["key_pos_bias"].shape[0] / 2 : 0;

        // [B, T, H, D]
        Tensor Project(string name, Tensor tokens)
        {
            var convolution = parameters.GetValueOrDefault($"{name}.1.conv.weight");
            var prefix = convolution is null ? $"{name}.linear" : $"{name}.0.linear";
            var projected = tokens.matmul(parameters[$"{prefix}.weight"].t());
            projected = (parameters.TryGetValue($"{prefix}.bias", out var bias) ? projected + bias : projected).view(tokens.shape[0], tokens.shape[1], heads, width);
            if (convolution is null)
            {
                return projected;
            }

            var result = zeros_like(projected) + parameters[$"{name}.1.conv.bias"];
            var taps = (int)convolution.shape[2];
            for (var t = 0; t < tokens.shape[1]; t++)
            {
                for (var u = 0; u < taps; u++)
                {
                    var source = t - (taps - 1) + u;
                    if (source >= 0)
                    {
                        result.select(1, t).add_(projected.select(1, source) * convolution.select(2, u).squeeze(1));
                    }
                }
            }

            return result;
        }

        var (query, key, value) = (Project("query", x), Project("key", whole), Project("value", whole));
        var merged = new List<Tensor>();
        for (var i = 0; i < n; i++)
        {
            var perHead = new List<Tensor>();
            for (var head = 0; head < heads; head++)
            {
                var scores = new List<Tensor>();
                for (var j = 0; j < m; j++)
                {
                    var distance = m - n + i - j;
                    var (q, k) = (query.select(1, i).select(1, head), key.select(1, j).select(1, head));
                    var score = (q * k).sum(-1);
                    if (relative)
                    {
                        score = ((q + parameters["query_pos_bias"][head]) * k).sum(-1);
                        if (distance >= 0 || module.Options.Attention.Causal == Heed.Kernels.Causality.None)
                        {
                            score = score + (q * parameters["key_pos_embeddings"][reach - distance][head]).sum(-1) + parameters["key_pos_bias"][reach - distance][head];
                        }
                    }

                    score = score / Math.Sqrt(width);
                    scores.Add(distance < 0 && module.Options.Attention.Causal != Heed.Kernels.Causality.None ? full_like(score, double.NegativeInfinity) : score);
                }

                var weights = stack([.. scores], -1).softmax(-1);
                perHead.Add((weights.unsqueeze(-1) * value.select(2, head)).sum(1));
            }

            merged.Add(cat([.. perHead], -1));
        }

        return stack([.. merged], 1).matmul(parameters["output.weight"].t()) + parameters["output.bias"];
    }
}
