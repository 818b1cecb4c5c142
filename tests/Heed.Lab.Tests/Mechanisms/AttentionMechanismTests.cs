using Heed.Lab.Catalogue;
using Heed.Lab.Mechanisms;
using Heed.Lab.Tests.Inspection;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Mechanisms;

/// <summary>What every mechanism promises, whichever it is.</summary>
public sealed class AttentionMechanismTests
{
    private const int Tokens = 128;

    // Selections may be made for blocks of queries, all of one mind: what must not count is what comes after the block.
    private const int Boundary = 64;

    public static TheoryData<string> Names => [.. AttentionMechanism.All.Select(mechanism => mechanism.Name)];

    public static TheoryData<string> ThatCanComputeEverything => [.. AttentionMechanism.All.Where(mechanism => mechanism.Everything is not null).Select(mechanism => mechanism.Name)];

    public static TheoryData<string> ThatDecodeAsTheyPrefill => [.. AttentionMechanism.All.Where(mechanism => mechanism.DecodesAsPrefill).Select(mechanism => mechanism.Name)];

    [Theory]
    [MemberData(nameof(Names))]
    public void Later_tokens_do_not_change_what_is_said_of_earlier_ones(string name)
    {
        using var scope = NewDisposeScope();
        using var model = TinyModel.Create();
        foreach (var text in Examples(name))
        {
            var ids = Ids(1);
            using var installed = model.Model.Hooks.Install(AttentionMechanism.Edit(text));
            var before = model.Model.forward(ids);
            var changed = cat([ids.narrow(1, 0, Boundary), Ids(2).narrow(1, Boundary, Tokens - Boundary)], 1);
            var after = model.Model.forward(changed);

            Assert.True(Largest(before.narrow(1, 0, Boundary) - after.narrow(1, 0, Boundary)) < 1e-4, text);
            Assert.True(Largest(before - after) > 1e-2, text);
        }
    }

    [Theory]
    [MemberData(nameof(ThatDecodeAsTheyPrefill))]
    public void A_decoded_token_is_the_last_of_a_prefill(string name)
    {
        const int prompt = 90;
        using var scope = NewDisposeScope();
        using var model = TinyModel.Create();
        using var quiet = no_grad();
        var text = Find(name).Sparse ?? name;
        var ids = Ids(1);
        var whole = Swapped(model, text, () => model.Model.forward(ids));
        var steps = Swapped(model, text, () =>
        {
            using var cache = model.Model.CreateCache();
            List<Tensor> logits = [model.Model.forward(ids.narrow(1, 0, prompt), cache)];
            for (var token = prompt; token < Tokens; token++)
            {
                logits.Add(model.Model.forward(ids.narrow(1, token, 1), cache));
            }

            return cat(logits, 1);
        });

        Assert.True(Largest(whole - steps) < 1e-4, text);
    }

    [Theory]
    [MemberData(nameof(ThatCanComputeEverything))]
    public void Computing_everything_is_dense_attention(string name)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (query, key, value) = Inputs();
        var dense = Attention.Compute(query, key, value, AttentionOptions.CausalSelf);

        var sparse = Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { Selector = SelectorOf(Find(name).Everything!) });

        Assert.True(Largest(dense - sparse) < 1e-5, Find(name).Everything);
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void What_is_counted_and_drawn_is_what_is_applied(string name)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (query, key, value) = Inputs();
        foreach (var text in Examples(name))
        {
            var call = SelectorOf(text).Select(query, key, value, AttentionOptions.CausalSelf);
            var pairs = call.Pairs().expand(1, 4, Tokens, call.Key.size(2));
            for (var head = 0; head < 4; head++)
            {
                var told = new bool[Tokens, call.Key.size(2)];
                ComputedPairs.Tell(call, 0, head, (row, first, last) =>
                {
                    for (var column = first; column <= last; column++)
                    {
                        Assert.False(told[row, column]);
                        told[row, column] = true;
                    }
                });
                Assert.True(tensor(told).eq(pairs[0][head]).all().item<bool>(), text);
                Assert.Equal(pairs[0][head].sum().item<long>(), ComputedPairs.Count(call, 0, head));
            }

            // A query that sees nothing says nothing; every other one must.
            var output = Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { Selector = SelectorOf(text) });
            Assert.True(output.isfinite().all().item<bool>(), text);
            Assert.True(pairs.any(-1).eq(output.abs().sum(-1).gt(0)).all().item<bool>(), text);
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void The_example_leaves_pairs_out(string name)
    {
        using var scope = NewDisposeScope();
        var (query, key, value) = Inputs();

        var call = SelectorOf(Find(name).Sparse ?? name).Select(query, key, value, AttentionOptions.CausalSelf);

        Assert.InRange(ComputedPairs.Count(call, 0, 0), 1, (Tokens * (Tokens + 1) / 2) - 1);
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Texts_of_any_length_are_read(string name)
    {
        using var scope = NewDisposeScope();
        using var model = TinyModel.Create();
        foreach (var length in new[] { 1, 2, 17, 65, 127 })
        {
            foreach (var text in Examples(name))
            {
                using var installed = model.Model.Hooks.Install(AttentionMechanism.Edit(text));
                Assert.True(model.Model.forward(Ids(3).narrow(1, 0, length)).isfinite().all().item<bool>(), $"{text}, {length} tokens");
            }
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void A_misspelt_option_is_refused_and_the_others_are_listed(string name) => Assert.Contains(
        $"'{name}' has no option 'no_such_option'; it has: ", Assert.Throws<ArgumentException>(() => AttentionMechanism.Edit($"{name}:no_such_option=1")).Message, StringComparison.Ordinal);

    [Theory]
    [MemberData(nameof(Names))]
    public void The_usage_is_one_that_is_accepted(string name)
    {
        AttentionMechanism.Selectors(Find(name).Usage);
        Assert.Equal(name, Specification.Parse(Find(name).Usage).Name);
        Assert.True(Find(name).Slug is not { } slug || PaperCatalogue.Find(slug).Slug == slug);
    }

    [Fact]
    public void An_unknown_mechanism_is_told_with_those_that_exist() =>
        Assert.Contains("window", Assert.Throws<ArgumentException>(() => AttentionMechanism.Edit("spiral")).Message, StringComparison.Ordinal);

    [Fact]
    public void The_first_layers_stay_dense_where_that_is_asked_for()
    {
        var selectors = AttentionMechanism.Selectors("window:w=4,dense=2");

        Assert.Equal([true, true, false, false], Enumerable.Range(0, 4).Select(layer => selectors(new(layer, AttentionKind.Self, "layer")) is null));
    }

    private static AttentionMechanism Find(string name) => AttentionMechanism.All.Single(mechanism => mechanism.Name == name);

    private static IEnumerable<string> Examples(string name) => new[] { name, Find(name).Sparse }.OfType<string>();

    private static AttentionSelector SelectorOf(string text) => AttentionMechanism.Selectors(text)(new(0, AttentionKind.Self, "model.layers.0.self_attn"))!;

    private static Tensor Swapped(Heed.Models.PretrainedModel model, string text, Func<Tensor> run)
    {
        using var installed = model.Model.Hooks.Install(AttentionMechanism.Edit(text));
        return run();
    }

    private static Tensor Ids(ulong seed)
    {
        using var generator = new Generator(seed);
        return randint(0, 256, [1, Tokens], dtype: ScalarType.Int64, generator: generator);
    }

    private static (Tensor Query, Tensor Key, Tensor Value) Inputs()
    {
        using var generator = new Generator(4);
        return (randn([1, 4, Tokens, 16], generator: generator), randn([1, 2, Tokens, 16], generator: generator), randn([1, 2, Tokens, 16], generator: generator));
    }

    private static double Largest(Tensor difference) => difference.abs().max().item<float>();
}
