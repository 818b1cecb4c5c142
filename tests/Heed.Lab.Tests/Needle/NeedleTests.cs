using Heed.Lab.Needle;
using Heed.Lab.Training;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Needle;

public sealed class NeedleTests
{
    [Fact]
    public void A_text_holds_one_marker_before_its_value_and_ends_with_the_question()
    {
        using var scope = NewDisposeScope();
        var (texts, values, places) = new NeedleTask(40).Draw(50, 3);

        Assert.Equal([50, 40], texts.shape);
        Assert.True(texts.eq(NeedleTask.Marker).sum(-1).eq(1).all().item<bool>());
        Assert.True(texts.gather(1, places.unsqueeze(-1) - 1).eq(NeedleTask.Marker).all().item<bool>());
        Assert.True(texts.gather(1, places.unsqueeze(-1)).squeeze(-1).eq(values).all().item<bool>());
        Assert.True(texts.select(1, 39).eq(NeedleTask.Question).all().item<bool>());
        Assert.True(values.lt(NeedleTask.Values).all().item<bool>());
        Assert.True(texts.eq(new NeedleTask(40).Draw(50, 3).Texts).all().item<bool>());
        Assert.False(texts.eq(new NeedleTask(40).Draw(50, 4).Texts).all().item<bool>());
    }

    [Theory]
    [InlineData(NeedleAttention.Superlinear, true, true)]
    [InlineData(NeedleAttention.RandomRouting, false, true)]
    [InlineData(NeedleAttention.WithoutAccumulation, true, false)]
    [InlineData(NeedleAttention.Window, false, true)]
    [InlineData(NeedleAttention.Dense, false, true)]
    public void The_search_learns_where_it_is_used(NeedleAttention attention, bool searches, bool accumulates)
    {
        using var scope = NewDisposeScope();
        using var model = new NeedleModel(attention, 1);
        var (texts, values, _) = new NeedleTask(100).Draw(8, 1);
        nn.functional.cross_entropy(model.forward(texts), values).backward();
        bool Learns(string name) => model.named_parameters().Single(entry => entry.name == name).parameter.grad is { } gradient && gradient.abs().max().item<float>() > 0;

        Assert.Equal(searches, Learns("q_search_proj.weight"));
        Assert.Equal(accumulates, Learns("decay"));
        Assert.True(Learns("embedding"));
        var (accuracy, hit) = model.Measure(new(100), 64, 2);
        Assert.InRange(accuracy, 0, 1);
        Assert.InRange(hit, attention == NeedleAttention.Dense ? 1 : 0.2, 1);
    }

    [Fact]
    public void The_recipe_trains_and_tells_what_it_found()
    {
        var folder = Directory.CreateTempSubdirectory("heed-needle-").FullName;
        try
        {
            var result = new NeedleRecipe().Run(new() { Output = folder, Steps = 3, Attention = "superlinear:k=3" }, _ => { }, _ => { }, TestContext.Current.CancellationToken);

            Assert.All(result.Files, file => Assert.True(File.Exists(file), file));
            Assert.Equal(["accuracy", "value among the keys", "accuracy at 384 tokens", "value among the keys at 384 tokens", "attention"], result.Measures.Select(measure => measure.Name));
            Assert.False(File.Exists(Path.Combine(folder, "checkpoint.bin")));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Theory]
    [InlineData("psa", "superlinear, window or dense")]
    [InlineData("superlinear:spans=3", "no option 'spans'")]
    [InlineData("window:w=0", "at least 1")]
    public void Another_attention_is_refused(string attention, string words) => Assert.Contains(
        words, Assert.Throws<ArgumentException>(() => NeedleModel.Create(attention, 1).Dispose()).Message, StringComparison.Ordinal);

    [Fact]
    public void The_recipe_is_listed() => Assert.Equal("needle", TrainingRecipe.Find("needle").Name);
}
