using System.Text.Json;
using Heed.Lab.Regression;
using Heed.Lab.Training;
using Heed.Models.Regression;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Regression;

public sealed class RegressionTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-regression-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void A_name_and_its_options_make_the_model_and_the_task()
    {
        using var scope = NewDisposeScope();
        var setting = RegressionSetting.Parse("heads=4,start=opposed,mean=1");
        Assert.Equal(new RegressionSetting(4, Start: IclStart.Opposed, Mean: 1), setting);
        using var model = setting.Make(3);
        Assert.Equal((4, 5, 1), (model.HeadCount, model.Dimensions, model.OutputCount));
        Assert.Equal(RegressionSetting.Parse("softmax:heads=4,mean=1,start=opposed"), setting);

        var two = RegressionSetting.Parse("linear:tasks=2,per-length=1");
        using var linear = two.Make(1);
        Assert.IsType<IclLinearAttention>(linear);
        Assert.Equal((6, 2, 4), (linear.Dimensions, linear.OutputCount, two.TaskWidth));
        Assert.Equal([3, 7, 8], two.Sample(3, 7, 1).Z.shape);
    }

    [Fact]
    public void Held_out_contexts_are_always_the_same_and_of_any_length()
    {
        using var scope = NewDisposeScope();
        var setting = new RegressionSetting();
        Assert.Equal([4000, 4000, 1000], setting.HeldOut(9000, 3).Select(part => part.Z.shape[0]));
        using var model = setting.Make(1);
        Assert.Equal(setting.Error(model, 500, 12), setting.Error(model, 500, 12));
    }

    [Fact]
    public void The_recipe_leaves_circuits_and_their_course()
    {
        var result = new RegressionRecipe().Run(new RecipeOptions { Output = _folder, Steps = 4, Model = "heads=2" }, _ => { }, _ => { }, TestContext.Current.CancellationToken);
        Assert.Equal(
            ["circuits.json", "held-out.png", "loss.png", "model.safetensors", "mu.png", "omega.png", "training.json"], Directory.GetFiles(_folder).Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal));
        Assert.Equal(7, result.Files.Count);
        using var circuits = JsonDocument.Parse(File.ReadAllText(Path.Combine(_folder, "circuits.json")));
        Assert.Equal([20, 40, 100], circuits.RootElement.GetProperty("errors").EnumerateArray().Select(entry => entry.GetProperty("length").GetInt32()));
        Assert.Equal(2, circuits.RootElement.GetProperty("outputs")[0].GetProperty("heads").GetArrayLength());
        using var training = JsonDocument.Parse(File.ReadAllText(Path.Combine(_folder, "training.json")));
        Assert.Equal(["mu 0", "mu 1", "omega 0", "omega 1"], training.RootElement.GetProperty("validations")[0].GetProperty("observed").EnumerateObject().Select(number => number.Name).Order(StringComparer.Ordinal));
    }

    [Fact]
    public void A_stopped_run_goes_on_to_the_same_end()
    {
        var (whole, halves) = (Path.Combine(_folder, "whole"), Path.Combine(_folder, "halves"));
        RecipeOptions Options(string folder, bool resume) => new() { Output = folder, Steps = 6, Seed = 5, Model = "softmax:heads=2,tasks=2", Resume = resume };
        new RegressionRecipe().Run(Options(whole, false), _ => { }, _ => { }, TestContext.Current.CancellationToken);
        using var stop = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => new RegressionRecipe().Run(Options(halves, false), _ => { }, progress =>
        {
            if (progress.Step == 3)
            {
                stop.Cancel();
            }
        }, stop.Token));

        new RegressionRecipe().Run(Options(halves, true), _ => { }, _ => { }, TestContext.Current.CancellationToken);

        Assert.Equal(File.ReadAllBytes(Path.Combine(whole, "model.safetensors")), File.ReadAllBytes(Path.Combine(halves, "model.safetensors")));
        Assert.Equal(File.ReadAllBytes(Path.Combine(whole, "omega.png")), File.ReadAllBytes(Path.Combine(halves, "omega.png")));
    }

    [Fact]
    public void What_cannot_be_is_refused_in_a_sentence()
    {
        void Refused(string part, string setting) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(() => RegressionSetting.Parse(setting)).Message, StringComparison.Ordinal);
        Refused("trains softmax or linear, not 'cubic'", "cubic:heads=2");
        Refused("no option 'per-length'", "softmax:per-length=1");
        Refused("start of 'softmax'", "start=large");
        Refused("one or two tasks", "tasks=3");
        Refused("with one task only", "tasks=2,mean=1");
        Refused("correlation between -1 and 1", "rho=1.5");
        Assert.Contains("not an attention", Assert.Throws<ArgumentException>(() => new RegressionRecipe().Run(new RecipeOptions { Output = _folder, Attention = "dense" }, _ => { }, _ => { }, TestContext.Current.CancellationToken)).Message, StringComparison.Ordinal);
    }
}
