using Heed.Lab.Scenes;
using Heed.Lab.Training;
using Heed.Models.VisionLanguage;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Scenes;

public sealed class CaptionRecipeTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-captions-").FullName;

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void A_stopped_run_goes_on_to_the_same_end()
    {
        RecipeOptions Options(string name, bool resume) => new() { Output = Path.Combine(_folder, name), Steps = 4, Seed = 5, Resume = resume };
        var expected = new CaptionRecipe().Run(Options("whole", false), _ => { }, _ => { }, Token);
        using var stop = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => new CaptionRecipe().Run(Options("halves", false), _ => { }, progress =>
        {
            if (progress.Step == 2)
            {
                stop.Cancel();
            }
        }, stop.Token));
        Assert.Equal([Path.Combine(_folder, "halves", "checkpoint.bin")], Directory.GetFileSystemEntries(Path.Combine(_folder, "halves")));
        Assert.Contains("go on with it by --resume", Assert.Throws<ArgumentException>(() => new CaptionRecipe().Run(Options("halves", false), _ => { }, _ => { }, Token)).Message, StringComparison.Ordinal);

        var notices = new List<string>();
        var resumed = new CaptionRecipe().Run(Options("halves", true), notices.Add, _ => { }, Token);

        Assert.Equal("Going on after step 2 of 4.", notices[0]);
        Assert.Equal(expected.Measures, resumed.Measures);
        foreach (var file in new[] { "model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", Path.Combine("scenes", "captions.json"), Path.Combine("scenes", "07.png") })
        {
            Assert.Equal(File.ReadAllBytes(Path.Combine(_folder, "whole", file)), File.ReadAllBytes(Path.Combine(_folder, "halves", file)));
        }

        Assert.False(File.Exists(Path.Combine(_folder, "halves", "checkpoint.bin")));

        // The folder is a model, and not the one that training began with.
        using var scope = NewDisposeScope();
        using var pretrained = PretrainedVisionLanguageModel.Load(Path.Combine(_folder, "halves"));
        using var fresh = SceneTask.Create(new(), 5);
        Assert.Equal(fresh.parameters().Sum(parameter => parameter.numel()), pretrained.Model.parameters().Sum(parameter => parameter.numel()));
        Assert.False(fresh.Language.parameters().Last().eq(pretrained.Model.Language.parameters().Last()).all().item<bool>());
    }
}
