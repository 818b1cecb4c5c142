using Heed.Lab.Training;
using Heed.Models.Checkpoints;
using Xunit;

namespace Heed.Lab.Tests.Training;

public sealed class GridRecipeTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-grid-").FullName;

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void A_stopped_run_goes_on_to_the_weights_of_an_unbroken_one()
    {
        var recipe = TrainingRecipe.Find("grid");
        var options = new RecipeOptions { Output = Path.Combine(_folder, "whole"), Steps = 3, Attention = "gna:w=4,stride=2" };
        recipe.Run(options, _ => { }, _ => { }, Token);
        var broken = options with { Output = Path.Combine(_folder, "broken") };
        using (var cancellation = new CancellationTokenSource())
        {
            Assert.Throws<OperationCanceledException>(() => recipe.Run(broken, _ => { }, _ => cancellation.Cancel(), cancellation.Token));
        }

        Assert.Contains("--resume", Assert.Throws<ArgumentException>(() => recipe.Run(broken, _ => { }, _ => { }, Token)).Message, StringComparison.Ordinal);
        var result = recipe.Run(broken with { Resume = true, Steps = null }, _ => { }, _ => { }, Token);
        Assert.All(result.Files, file => Assert.True(File.Exists(file)));
        using var first = new SafetensorsReader(Path.Combine(_folder, "whole", "model.safetensors"));
        using var second = new SafetensorsReader(Path.Combine(_folder, "broken", "model.safetensors"));
        Assert.All(first.Entries.Keys, name =>
        {
            using var a = first.Read(name);
            using var b = second.Read(name);
            Assert.True(a.equal(b).all().item<bool>(), name);
        });
        Assert.Equal("gna:w=4,stride=2", first.Metadata["attention"]);
    }

    [Theory]
    [InlineData("gna:w=20", "does not fit 16")]
    [InlineData("gna:w=4,z=2", "no option 'z'")]
    [InlineData("hip", "full or gna")]
    public void Attention_that_it_cannot_train_with_is_told_in_a_sentence(string attention, string sentence)
    {
        var output = Path.Combine(_folder, "none");
        var options = new RecipeOptions { Output = output, Steps = 1, Attention = attention };
        Assert.Contains(sentence, Assert.Throws<ArgumentException>(() => TrainingRecipe.Find("grid").Run(options, _ => { }, _ => { }, Token)).Message, StringComparison.Ordinal);
        Assert.False(Directory.Exists(output));
    }
}
