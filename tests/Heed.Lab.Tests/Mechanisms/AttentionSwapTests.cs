using Heed.Lab.Catalogue;
using Heed.Lab.Mechanisms;
using Heed.Lab.Tests.Inspection;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Mechanisms;

public sealed class AttentionSwapTests
{
    [Fact]
    public void What_is_listed_is_accepted_and_has_a_paper_that_is_known()
    {
        Assert.All(AttentionSwap.Known, known =>
        {
            AttentionSwap.Parse(known.Usage);
            Assert.True(known.Slug is not { } slug || PaperCatalogue.Find(slug).Slug == slug);
        });
        Assert.Contains(AttentionSwap.Known, known => known.Name == "moh");
        Assert.Contains("moh", Assert.Throws<ArgumentException>(() => AttentionSwap.Parse("spiral")).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("moh:heads=3", "has no option 'heads'")]
    [InlineData("moh:shared=0.8,active=0.5", "active at least shared")]
    [InlineData("moh:active=1.5", "between 0 and 1")]
    [InlineData("moh:shared=few", "is a number")]
    public void Wrong_options_are_told_before_a_model_is_loaded(string text, string sentence) =>
        Assert.Contains(sentence, Assert.Throws<ArgumentException>(() => AttentionSwap.Parse(text)).Message, StringComparison.Ordinal);

    [Fact]
    public void Mixtures_of_heads_are_no_selectors() =>
        Assert.Contains("chooses heads", Assert.Throws<ArgumentException>(() => AttentionMechanism.Edit("moh")).Message, StringComparison.Ordinal);

    [Fact]
    public void A_swap_lasts_until_it_is_disposed()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyModel.Create();
        var ids = randint(0, 256, [1, 40], dtype: ScalarType.Int64);
        var before = model.Model.forward(ids);
        foreach (var (text, changes) in new[] { ("window:w=4", true), ("moh", true), ("moh:shared=0.5,active=1", false), ("moh:dense=2", false) })
        {
            using (AttentionSwap.Parse(text).Apply(model.Model))
            {
                Assert.Equal(changes, (model.Model.forward(ids) - before).abs().max().item<float>() > 1e-4);
            }

            Assert.True(model.Model.forward(ids).Equals(before), text);
        }
    }

    [Fact]
    public void A_mixture_of_heads_counts_the_pairs_of_the_tokens_that_chose_a_head()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyModel.Create();
        var swap = AttentionSwap.Parse("moh:shared=0.5,active=0.75,dense=1");
        using var swapped = swap.Apply(model.Model);
        Dictionary<int, double[]> shares = [];
        using (swap.Count(model.Model, shares))
        {
            model.Model.forward(randint(0, 256, [1, 40], dtype: ScalarType.Int64));
        }

        Assert.Equal([1, 1, 1, 1], shares[0]);
        Assert.Equal([1, 1], shares[1][..2]);

        // One of the two routed heads at every token.
        Assert.Equal(1, shares[1][2] + shares[1][3], 1e-12);
        Assert.Null(model.Model.Layers[1].SelfAttention!.Router!.Observer);
    }
}
