using Heed.Lab.Images;
using Xunit;

namespace Heed.Lab.Tests.Images;

public sealed class ImageComparisonTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-compare-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Commas_stand_between_models_and_between_options() =>
        Assert.Equal(["vit", "mobilenet:ulsam=4,width=16", "mlp-mixer:depth=2"], ImageComparison.ModelsOf("vit, mobilenet:ulsam=4,width=16,mlp-mixer:depth=2"));

    [Theory]
    [InlineData("vit")]
    [InlineData("mlp-mixer")]
    [InlineData("ninformer")]
    public void Models_are_scaled_to_the_common_number_of_parameters(string name)
    {
        var (model, parameters) = ParameterBudget.Scale(name, FashionMnist.Task, 60_000);
        Assert.InRange(parameters, 54_000, 66_000);
        using var made = ImageModel.Make(model, FashionMnist.Task);
        Assert.Equal(parameters, made.parameters().Sum(parameter => parameter.numel()));
    }

    [Fact]
    public void A_width_that_is_given_stays() => Assert.Equal("vit:width=32", ParameterBudget.Scale("vit:width=32", FashionMnist.Task, 60_000).Model);

    [Fact]
    public void What_was_measured_is_kept_and_written_as_a_page()
    {
        var data = SmallPictures.Data(128, 60);
        var options = new ImageComparisonOptions { Folder = Path.Combine(_folder, "runs"), Models = ["mlp-mixer:patch=7", "vit:patch=7"], Parameters = 8000, Seconds = 0.2, Seeds = [1, 2] };
        var told = new List<ComparisonProgress>();
        var runs = ImageComparison.Run(options, data, told.Add, TestContext.Current.CancellationToken);
        Assert.Equal(4, runs.Count);
        Assert.All(runs, run => Assert.InRange(run.Parameters, 7200, 8800));
        Assert.Contains(told, progress => progress is { Model: "vit:patch=7", Seed: 2, Training: not null });

        // Nothing is measured again: a cancelled token would stop it.
        using var cancelled = new CancellationTokenSource();
        cancelled.Cancel();
        var again = ImageComparison.Run(options, data, null, cancelled.Token);
        Assert.Equal(runs.Select(run => (run.Model, run.Seed, run.Accuracy, run.Date)), again.Select(run => (run.Model, run.Seed, run.Accuracy, run.Date)));
        Assert.Throws<OperationCanceledException>(() => ImageComparison.Run(options with { Seeds = [3] }, data, null, cancelled.Token));
        Assert.Equal(4, ImageComparison.Found(options).Count);
        Assert.Empty(ImageComparison.Found(options with { Seconds = 1 }));

        var page = Path.Combine(_folder, "docs", "comparison.md");
        Assert.All(ImageComparisonReport.Write(page, runs), file => Assert.True(File.Exists(file)));
        var text = File.ReadAllText(page);
        Assert.Equal(2, text.Split('\n').Count(line => line.StartsWith("| `", StringComparison.Ordinal)));
        Assert.Contains("2 seed(s)", text, StringComparison.Ordinal);
        var summary = ImageComparisonReport.Summary(runs);
        Assert.True(summary[0].Accuracy >= summary[1].Accuracy);
        var own = runs.Where(run => run.Model == summary[0].Model).Select(run => run.Accuracy).ToList();
        Assert.Equal(own.Average(), summary[0].Accuracy, 1e-12);
        Assert.Equal(Math.Abs(own[0] - own[1]) / Math.Sqrt(2), summary[0].Spread!.Value, 1e-12);
    }

    [Fact]
    public void A_misspelt_model_is_told_before_anything_trains() =>
        Assert.Throws<ArgumentException>(() => ImageComparison.Run(new() { Folder = _folder, Models = ["vit", "painter"] }, SmallPictures.Data(20, 10), null, TestContext.Current.CancellationToken));
}
