using CsCheck;
using Heed.Heads;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public class GatedAttentionTests
{
    private static readonly Gen<GatedAttentionOptions> RandomOptions =
        from position in Gen.Enum<GatePosition>()
        from headwise in Gen.Bool
        from shared in Gen.Bool
        from combine in Gen.Enum<GateCombination>()
        from activation in Gen.Enum<GateActivation>()
        from source in Gen.Enum<GateSource>()
        from within in Gen.Bool
        from transform in Gen.Enum<HeadNonlinearity>()
        from keyValueHeads in Gen.Int[1, 3]
        from perGroup in Gen.Int[1, 3]
        from halfWidth in Gen.Int[1, 3]
        from norm in Gen.Bool
        from bias in Gen.Bool
        from causal in Gen.Bool
        let dense = position == GatePosition.DenseOutput
        select new GatedAttentionOptions
        {
            Width = 7,
            Heads = keyValueHeads * perGroup,
            KeyValueHeads = keyValueHeads,
            HeadWidth = 2 * halfWidth,
            QueryKeyNorm = norm,
            QueryKeyValueBias = bias,
            OutputBias = bias,
            Nonlinearity = transform,
            Attention = causal ? AttentionOptions.CausalSelf : AttentionOptions.Default,
            Gate = new GateOptions
            {
                Position = position,
                Granularity = headwise && !dense ? GateGranularity.Headwise : GateGranularity.Elementwise,
                HeadShared = shared && !headwise && !dense,
                Combine = combine,
                Activation = activation,
                Source = source,
                Layout = within && position == GatePosition.SdpaOutput && source == GateSource.Input ? GateLayout.WithinQueryProjection : GateLayout.Separate,
            },
        };

    [Fact]
    public void EveryVariantIsItsEquationsInFloat64() => RandomOptions.Sample(
        options =>
        {
            using var scope = NewDisposeScope();
            using var quiet = no_grad();
            using var module = Module(options);
            var input = randn(2, 5, 7, dtype: float64);

            var (output, scores) = module.ForwardWithGate(input);

            var expected = Equations(options, module, input);
            Assert.Equal(options.Gate.Position == GatePosition.None, scores is null);
            Assert.True((output - expected).abs().max().item<double>() < 1e-12);
        },
        iter: 150, threads: 1);

    [Fact]
    public void GradientsAreThoseOfFiniteDifferences() => RandomOptions.Sample(
        options =>
        {
            using var scope = NewDisposeScope();
            using var module = Module(options);
            var input = randn(1, 4, 7, dtype: float64, requires_grad: true);
            var direction = randn(1, 4, 7, dtype: float64);
            (module.forward(input) * direction).sum().backward();
            double Value()
            {
                using var inner = NewDisposeScope();
                using var quiet = no_grad();
                return (module.forward(input) * direction).sum().item<double>();
            }

            foreach (var (name, leaf) in module.named_parameters().Select(entry => (entry.name, (Tensor)entry.parameter)).Append(("input", input)))
            {
                // Along the gradient itself, the directional derivative is its length: one number that every element takes part in.
                var gradient = leaf.grad!;
                var length = gradient.square().sum().sqrt().item<double>();
                if (length < 1e-9)
                {
                    continue;
                }

                const double Step = 1e-6;
                using var quiet = no_grad();
                var start = leaf.detach().clone();
                leaf.copy_(start + (gradient * (Step / length)));
                var above = Value();
                leaf.copy_(start - (gradient * (Step / length)));
                var below = Value();
                leaf.copy_(start);
                Assert.True(Math.Abs(((above - below) / (2 * Step)) - length) < 1e-6 * Math.Max(1, length), $"{name} of {options}");
            }
        },
        iter: 25, threads: 1);

    [Fact]
    public void TheTwoLayoutsAreTheSameGate()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var options = new GatedAttentionOptions { Width = 8, Heads = 4, KeyValueHeads = 2, HeadWidth = 3, Gate = new GateOptions { Granularity = GateGranularity.Headwise } };
        using var separate = new GatedAttention(options);
        using var within = new GatedAttention(options with { Gate = options.Gate with { Layout = GateLayout.WithinQueryProjection } });
        Tensor Of(string name) => separate.get_parameter(name)!;
        foreach (var name in new[] { "k_proj.weight", "v_proj.weight", "o_proj.weight" })
        {
            within.get_parameter(name)!.copy_(Of(name));
        }

        // Group by group: the rows of two query heads, then their two gate rows.
        var (query, gate) = (Of("q_proj.weight"), Of("gate.weight"));
        within.get_parameter("q_proj.weight")!.copy_(cat([query.narrow(0, 0, 6), gate.narrow(0, 0, 2), query.narrow(0, 6, 6), gate.narrow(0, 2, 2)]));
        var input = randn(2, 6, 8);

        Assert.True((separate.forward(input) - within.forward(input)).abs().max().item<float>() < 1e-6);
    }

    [Fact]
    public void AConstantGateStartsHalfOpen()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var module = new GatedAttention(new GatedAttentionOptions { Width = 8, Heads = 2, Gate = new GateOptions { Source = GateSource.Constant } });

        var (_, scores) = module.ForwardWithGate(randn(1, 3, 8));

        Assert.Equal([1, 3, 2, 4], scores!.shape);
        Assert.True(scores.eq(0.5).all().item<bool>());
    }

    [Fact]
    public void ACacheContinuesGatedKeysAndValues()
    {
        foreach (var position in Enum.GetValues<GatePosition>())
        {
            using var scope = NewDisposeScope();
            using var quiet = no_grad();
            using var module = Module(new GatedAttentionOptions { Width = 8, Heads = 4, KeyValueHeads = 2, HeadWidth = 4, Gate = new GateOptions { Position = position } });
            var input = randn(2, 7, 8, dtype: float64);
            using var cache = new KeyValueCache(1, ScalarType.Float64);

            var parts = Enumerable.Range(0, 7).Select(token => module.forward(input.narrow(1, token, 1), null, cache)).ToList();

            Assert.True((cat(parts, 1) - module.forward(input)).abs().max().item<double>() < 1e-12);
        }
    }

    [Fact]
    public void OptionsThatExcludeEachOtherAreNamed()
    {
        static string Message(GateOptions gate) => Assert.Throws<ArgumentException>(() => new GatedAttention(new GatedAttentionOptions { Width = 8, Heads = 4, Gate = gate })).Message;

        Assert.Contains("HeadShared", Message(new GateOptions { HeadShared = true, Granularity = GateGranularity.Headwise }));
        Assert.Contains("Granularity Headwise", Message(new GateOptions { Position = GatePosition.DenseOutput, Granularity = GateGranularity.Headwise }));
        Assert.Contains("HeadShared", Message(new GateOptions { Position = GatePosition.DenseOutput, HeadShared = true }));
        Assert.Contains("Position Value", Message(new GateOptions { Position = GatePosition.Value, Layout = GateLayout.WithinQueryProjection }));
        Assert.Contains("Source Constant", Message(new GateOptions { Source = GateSource.Constant, Layout = GateLayout.WithinQueryProjection }));
        static string Shape(GatedAttentionOptions options) => Assert.Throws<ArgumentException>(() => new GatedAttention(options)).Message;
        Assert.Contains("3 key/value heads do not divide 4", Shape(new GatedAttentionOptions { Width = 8, Heads = 4, KeyValueHeads = 3 }));
        Assert.Contains("does not divide into 3 heads", Shape(new GatedAttentionOptions { Width = 8, Heads = 3 }));
        Assert.Contains("must be positive", Shape(new GatedAttentionOptions { Width = 0, Heads = 3 }));
        using var module = new GatedAttention(new GatedAttentionOptions { Width = 8, Heads = 2 });
        Assert.Contains("[batch, tokens, 8]", Assert.Throws<ArgumentException>(() => module.forward(zeros(1, 2, 7))).Message);
    }

    private static GatedAttention Module(GatedAttentionOptions options)
    {
        var module = new GatedAttention(options);
        module.to(float64);
        using var quiet = no_grad();
        foreach (var parameter in module.parameters())
        {
            // Weights of ordinary size, norms that are not all one: an initialised module would hide a forgotten one.
            parameter.copy_(randn_like(parameter) * 0.6);
        }

        return module;
    }

    /// <summary>The paper's equations token by token and head by head, with no code of the module's.</summary>
    private static Tensor Equations(GatedAttentionOptions options, GatedAttention module, Tensor input)
    {
        var gate = options.Gate;
        var (heads, groups, width) = (options.Heads, options.KeyValueHeads, options.HeadWidth);
        var perGroup = heads / groups;
        var perHead = gate.Granularity == GateGranularity.Headwise ? 1 : width;
        Tensor? Parameter(string name) => module.named_parameters().Where(entry => entry.name == name).Select(entry => (Tensor)entry.parameter).FirstOrDefault();
        Tensor Project(string name, Tensor token) => Parameter($"{name}.weight")!.matmul(token) + (Parameter($"{name}.bias") ?? zeros(1, dtype: float64));
        Tensor Norm(string name, Tensor vector) => Parameter($"{name}.weight") is { } weight && (options.QueryKeyNorm || name == "out_norm")
            ? vector / (vector.square().mean() + 1e-6).sqrt() * weight : vector;
        Tensor Activate(Tensor logits) => gate.Activation switch
        {
            GateActivation.Sigmoid => 1 / (1 + (-logits).exp()),
            GateActivation.SiLU => logits / (1 + (-logits).exp()),
            GateActivation.NonSparseSigmoid => 0.5 + (0.5 / (1 + (-logits).exp())),
            _ => logits,
        };
        var gatedHeads = gate.Position is GatePosition.Value or GatePosition.Key ? groups : heads;

        Tensor Score(Tensor token, int head)
        {
            if (gate.Position == GatePosition.DenseOutput)
            {
                return Activate(gate.Source == GateSource.Constant ? Parameter("gate.logits")! : Project("gate", token));
            }

            Tensor Logits(int index)
            {
                if (gate.Layout == GateLayout.WithinQueryProjection)
                {
                    var start = (index / perGroup * perGroup * (width + perHead)) + (perGroup * width) + (index % perGroup * perHead);
                    return Project("q_proj", token).narrow(0, start, perHead);
                }

                return gate.Source == GateSource.Constant ? Parameter("gate.logits")![index] : Project("gate", token).narrow(0, index * perHead, perHead);
            }

            return gate.HeadShared
                ? stack(Enumerable.Range(0, gatedHeads).Select(index => Activate(Logits(index))).ToArray()).mean([0L])
                : Activate(Logits(head));
        }

        Tensor Gated(GatePosition at, Tensor vector, Tensor token, int head) => gate.Position != at ? vector
            : gate.Combine == GateCombination.Multiply ? vector * Score(token, head) : vector + Score(token, head);

        var result = zeros_like(input);
        for (var b = 0; b < input.shape[0]; b++)
        {
            var tokens = Enumerable.Range(0, (int)input.shape[1]).Select(index => input[b, index]).ToArray();
            for (var i = 0; i < tokens.Length; i++)
            {
                var merged = new List<Tensor>();
                for (var head = 0; head < heads; head++)
                {
                    var group = head / perGroup;
                    var queryStart = gate.Layout == GateLayout.WithinQueryProjection
                        ? (group * perGroup * (width + perHead)) + (head % perGroup * width) : head * width;
                    var query = Norm("q_norm", Gated(GatePosition.Query, Project("q_proj", tokens[i]).narrow(0, queryStart, width), tokens[i], head));
                    var last = options.Attention.Causal == Heed.Kernels.Causality.None ? tokens.Length : i + 1;
                    var weights = stack(tokens.Take(last).Select(token =>
                        (query * Norm("k_norm", Gated(GatePosition.Key, Project("k_proj", token).narrow(0, group * width, width), token, group))).sum() / Math.Sqrt(width)).ToArray()).softmax(0);
                    var sum = zeros(width, dtype: float64);
                    for (var j = 0; j < last; j++)
                    {
                        sum = sum + (weights[j] * Gated(GatePosition.Value, Project("v_proj", tokens[j]).narrow(0, group * width, width), tokens[j], group));
                    }

                    sum = options.Nonlinearity switch
                    {
                        HeadNonlinearity.SiLU => sum / (1 + (-sum).exp()),
                        HeadNonlinearity.RmsNorm => Norm("out_norm", sum),
                        _ => sum,
                    };
                    merged.Add(Gated(GatePosition.SdpaOutput, sum, tokens[i], head));
                }

                result[b, i] = Gated(GatePosition.DenseOutput, Project("o_proj", cat(merged)), tokens[i], 0);
            }
        }

        return result;
    }
}
