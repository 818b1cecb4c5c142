using Heed.Lab.Images;
using Heed.Lab.Inspection;
using Heed.Lab.Mechanisms;
using Heed.Lab.Tests.Images;
using Heed.Models.Images;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Inspection;

public sealed class ImageInspectorTests
{
    [Fact]
    public void An_edit_is_looked_at_beside_the_model_as_it_was_trained()
    {
        using var scope = NewDisposeScope();
        using var model = ImageModel.Make("vit:depth=2", FashionMnist.Task);
        var plain = ImageInspector.Run(model, Card("vit"), Picture(), cancellation: TestContext.Current.CancellationToken);
        var edit = ModelEdit.Parse("move:heads=1.2,sink=0");
        var edited = ImageInspector.Run(model, Card("vit"), Picture(), null, ("moved", target => edit(target)), TestContext.Current.CancellationToken);
        Assert.Equal("moved", edited.Edit);
        Assert.Equal(plain.Probabilities, edited.Before!.Probabilities);
        Assert.NotEqual(plain.Probabilities, edited.Probabilities);
        // The head that was moved looks at the first patch from everywhere, the others of its layer as before.
        foreach (var (before, after) in edited.Before.Heads.Zip(edited.Heads))
        {
            Assert.Equal((before.Site, before.Head), (after.Site, after.Head));
            if (after is { Site: "blocks.1.attn", Head: 2 })
            {
                Assert.All(after.Weights.Chunk(49), row => Assert.Equal(1, row[0]));
            }
            else
            {
                Assert.All(before.Weights.Zip(after.Weights), pair => Assert.Equal(pair.First, pair.Second, 1e-6f));
            }
        }

        Assert.Empty(model.Hooks.Installed);
        Assert.Empty(model.Hooks.Watchers);
    }

    [Theory]
    [InlineData("mlp-mixer:depth=1", "heads:scale=*.*", "the model has none")]
    [InlineData("mlp-mixer:depth=1", "heads:scale=0.1", "there is no head")]
    [InlineData("focalnet", "ablate:mlp=0", "no attention and no blocks")]
    [InlineData("vit:depth=1", "heads:scale=1.0", "names layer 1")]
    [InlineData("vit:depth=1", "informed", "vision-language model")]
    [InlineData("vit:depth=2", "stream:scale=1e38", "not finite any more")]
    public void An_edit_that_the_model_has_no_place_for_is_refused(string name, string text, string sentence)
    {
        using var scope = NewDisposeScope();
        using var model = ImageModel.Make(name, FashionMnist.Task);
        var edit = ModelEdit.Parse(text);
        var error = Assert.Throws<ArgumentException>(() => ImageInspector.Run(model, Card(name), Picture(), null, (text, target => edit(target)), TestContext.Current.CancellationToken));
        Assert.Contains(sentence, error.Message, StringComparison.Ordinal);
        Assert.Empty(model.Hooks.Installed);
    }

    [Fact]
    public void Attention_over_the_picture_has_rows_that_sum_to_one()
    {
        using var scope = NewDisposeScope();
        using var model = ImageModel.Make("vit:depth=2", FashionMnist.Task);
        var inspection = ImageInspector.Run(model, Card("vit"), Picture(), SmallPictures.Data(10, 5).Test, null, TestContext.Current.CancellationToken);
        Assert.Equal(8, inspection.Heads.Count);
        Assert.Equal(["blocks.0.attn", "blocks.1.attn"], inspection.Heads.Select(head => head.Site).Distinct());
        Assert.All(inspection.Heads, head =>
        {
            Assert.Equal(7, head.Side);
            Assert.All(head.Weights.Chunk(49), row => Assert.Equal(1, row.Sum(), 1e-4));
            Assert.InRange(head.MeanDistance, 0, 9);
        });
        // Norms of the streams behind both blocks, over their median.
        Assert.Equal(["blocks.0", "blocks.1"], inspection.Maps.Select(map => map.Site));
        Assert.All(inspection.Maps, map =>
        {
            Assert.Equal((7, 7, "norm over the median"), (map.Height, map.Width, map.Name));
            Assert.Equal(1f, map.Values.Order().ElementAt(24));
            Assert.Contains("outlier", map.Label, StringComparison.Ordinal);
        });
        Assert.Equal(1, inspection.Probabilities.Sum(), 1e-9);
        Assert.Equal(5, inspection.ReceptiveField.Pictures);
        Assert.Equal(1, inspection.ReceptiveField.Values.Max());
        Assert.Empty(inspection.Notices);
        Assert.Empty(model.Hooks.Installed);
    }

    [Fact]
    public void Maps_of_mixers_are_taken_and_probabilities_are_those_of_the_model_alone()
    {
        using var scope = NewDisposeScope();
        using var model = ImageModel.Make("ninformer", FashionMnist.Task);
        var inspection = ImageInspector.Run(model, Card("ninformer"), Picture(), cancellation: TestContext.Current.CancellationToken);
        var gates = inspection.Maps.Where(map => !map.Name.StartsWith("norm", StringComparison.Ordinal)).ToArray();
        Assert.Equal(12, gates.Length);
        Assert.All(gates, map => Assert.Equal((7, 7, 49, "gate"), (map.Height, map.Width, map.Values.Length, map.Name)));
        Assert.Equal(["mean", "root mean square"], inspection.Maps.Take(2).Select(map => map.Label));
        using var quiet = no_grad();
        var expected = model.forward(FashionMnist.Scale.Apply(tensor(Picture().Pixels).view(1, 1, 28, 28))).to(float64).softmax(1)[0].data<double>().ToArray();
        Assert.Equal(expected, inspection.Probabilities);
    }

    [Fact]
    public void A_model_that_looks_at_one_patch_has_a_field_of_one_patch()
    {
        using var scope = NewDisposeScope();
        using var patches = new VisionTransformer(
            new() { ImageSize = 28, PatchSize = 4, Channels = 1, Classes = 10, Width = 8, Depth = 1, Positions = false }, _ => nn.Identity());
        patches.eval();
        var field = ImageInspector.FieldOf(patches, randn(3, 1, 28, 28));
        for (var i = 0; i < 784; i++)
        {
            // The centre cell of 7 x 7 is the fourth of each axis.
            Assert.True((i / 28 / 4 == 3 && i % 28 / 4 == 3) || field.Values[i] == 0);
        }

        Assert.InRange(field.HalfSide, 1, 4);
        using var mixer = ImageModel.Make("mlp-mixer:depth=1", FashionMnist.Task);
        mixer.eval();
        Assert.Equal(784, ImageInspector.FieldOf(mixer, randn(3, 1, 28, 28)).Values.Count(value => value > 0));
    }

    [Fact]
    public void A_page_holds_everything_and_a_picture_of_another_size_is_refused()
    {
        using var scope = NewDisposeScope();
        using var model = ImageModel.Make("vit:depth=1", FashionMnist.Task);
        var inspection = ImageInspector.Run(model, Card("vit"), Picture() with { Source = "</script><b>" }, cancellation: TestContext.Current.CancellationToken);
        using var stream = new MemoryStream();
        ImageInspectionReport.Write(inspection, stream);
        var page = System.Text.Encoding.UTF8.GetString(stream.ToArray());
        Assert.StartsWith("<!doctype html>", page, StringComparison.Ordinal);
        Assert.DoesNotContain("</script><b>", page, StringComparison.Ordinal);
        Assert.DoesNotContain("{{", page, StringComparison.Ordinal);
        Assert.Contains("1 x 28 x 28", Assert.Throws<ArgumentException>(() => ImageInspector.Run(model, Card("vit"), new("small", new byte[4]), cancellation: TestContext.Current.CancellationToken)).Message, StringComparison.Ordinal);
    }

    private static ImageModelCard Card(string model) => new(model, "fashion", FashionMnist.Task, FashionMnist.ClassNames, 0.5, 1, FashionMnist.Scale);

    private static InspectedPicture Picture() => new("a picture", SmallPictures.Data(3, 3).Test.PixelsAt(1).ToArray(), 1);
}
