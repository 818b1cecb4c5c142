using Heed.Lab.Brains;
using Heed.Lab.Drawing;
using Heed.Lab.Training;
using Heed.Models.BrainEncoders;
using SkiaSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Brains;

public sealed class BrainTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-brain-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Scenes_hold_one_object_of_each_category_and_responses_follow_the_rule()
    {
        using var scope = NewDisposeScope();
        var brain = new SyntheticBrain(3, contrast: 6);
        var scenes = brain.Draw(400, 7);
        Assert.Equal([400, 32, 7, 7], scenes.Features.shape);
        Assert.Equal([400, 80], scenes.Left.shape);
        // At this contrast an object's channel is largest where the object stands.
        var found = scenes.Features.narrow(1, 0, 4).flatten(2).argmax(-1);
        Assert.True(found.eq(scenes.Places).to(float32).mean().item<float>() > 0.99);
        Assert.All(Enumerable.Range(0, 4), scene => Assert.Equal(4, scenes.Places[scene].data<long>().Distinct().Count()));
        Assert.Equal(4, brain.LocationPatches.Distinct().Count());
        // Variance 1 and noise of a quarter.
        Assert.InRange(scenes.Left.var().item<float>(), 1.2f, 1.3f);
        Assert.True(scenes.Features.equal(brain.Draw(400, 7).Features).all().item<bool>());
        Assert.False(scenes.Features.allclose(brain.Draw(400, 8).Features));
        // What decides a location area is a linear function of its patch: fitted to it, ridge reaches the ceiling.
        var patch = scenes.Features.flatten(2).select(2, brain.LocationPatches[0]);
        var area = scenes.Right.narrow(1, 0, 20);
        using var ridge = RidgeEncoder.Fit(patch.narrow(0, 0, 300), area.narrow(0, 0, 300), [1]);
        Assert.InRange(VertexCorrelation.Pearson(ridge.Predict(patch.narrow(0, 300, 100)), area.narrow(0, 300, 100)).mean().item<double>(), SyntheticBrain.Ceiling - 0.06, SyntheticBrain.Ceiling + 0.06);
    }

    [Fact]
    public void Peaks_and_entropies_of_known_maps()
    {
        using var scope = NewDisposeScope();
        var brain = new SyntheticBrain(1);
        var test = brain.Draw(50, 2);
        using var model = new BrainSetting(IsUniform: true).Make(1);
        model.eval();
        var result = BrainSetting.Test(model, brain, test);
        Assert.Equal(Math.Log(49), result.ContentEntropy!.Value, 4);
        Assert.Equal(0, result.LocationMoves);
        using var linear = new BrainSetting(BrainArchitecture.Linear, Stride: 2).Make(1);
        Assert.Null(BrainSetting.Test(linear, brain, test).OnObject);
    }

    [Theory]
    [InlineData("transformer:position=learned,heads=2,ff=16", 5)]
    [InlineData("spatial", 5)]
    [InlineData("linear:stride=3", 4)]
    public void The_recipe_leaves_weights_a_record_figures_and_maps(string model, int files)
    {
        var result = new BrainRecipe().Run(new RecipeOptions { Output = _folder, Steps = 3, Model = model }, _ => { }, _ => { }, TestContext.Current.CancellationToken);
        Assert.Equal(files, Directory.GetFiles(_folder).Length);
        Assert.Equal(files, result.Files.Count);
        Assert.Contains("\"model\": \"" + model + "\"", File.ReadAllText(Path.Combine(_folder, "training.json")), StringComparison.Ordinal);
        if (files == 5)
        {
            using var picture = SKBitmap.Decode(Path.Combine(_folder, "maps.png"));
            Assert.True(picture.Width > picture.Height);
        }
    }

    [Fact]
    public void A_stopped_run_goes_on_to_the_same_end()
    {
        var (whole, halves) = (Path.Combine(_folder, "whole"), Path.Combine(_folder, "halves"));
        RecipeOptions Options(string folder, bool resume) => new() { Output = folder, Steps = 5, Seed = 2, Model = "transformer:dropout=0", Resume = resume };
        var expected = new BrainRecipe().Run(Options(whole, false), _ => { }, _ => { }, TestContext.Current.CancellationToken);
        using var stop = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => new BrainRecipe().Run(Options(halves, false), _ => { }, progress =>
        {
            if (progress.Step == 2)
            {
                stop.Cancel();
            }
        }, stop.Token));
        var resumed = new BrainRecipe().Run(Options(halves, true), _ => { }, _ => { }, TestContext.Current.CancellationToken);
        Assert.Equal(expected.Measures, resumed.Measures);
    }

    [Fact]
    public void Pictures_of_queries_show_weights_and_rings()
    {
        var map = new double[4];
        map[3] = 1;
        var png = QueryMapPicture.Png("queries", 2, ["one"], [new(["A", null, null, null], [map], [3])]);
        using var picture = SKBitmap.Decode(png);
        // The second panel begins at 24 + 112 + 14; its last patch is blue, its first white.
        Assert.Equal(new SKColor(0x00, 0x72, 0xB2), picture.GetPixel(150 + 100, 92 + 84 + 20));
        Assert.Equal(SKColors.White, picture.GetPixel(150 + 28, 92 + 28));
        Assert.Contains("a map and a ring", Assert.Throws<ArgumentException>(() => QueryMapPicture.Png("", 2, ["one"], [new(["A"], [map], [3])])).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void What_cannot_be_is_refused_in_a_sentence()
    {
        void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        Refused("trains transformer, spatial, linear, ridge, not 'mlp'", () => BrainSetting.Parse("mlp"));
        Refused("no option 'heads'", () => BrainSetting.Parse("spatial:heads=2"));
        Refused("position of 'transformer'", () => BrainSetting.Parse("transformer:position=none"));
        Refused("from 0 on, not -1", () => _ = new SyntheticBrain(1, -1));
        Refused("fitted at once", () => new BrainRecipe().Run(new RecipeOptions { Output = _folder, Model = "ridge", Steps = 3 }, _ => { }, _ => { }, default));
        Refused("takes --model", () => new BrainRecipe().Run(new RecipeOptions { Output = _folder, Model = "ridge", TextFile = "a" }, _ => { }, _ => { }, default));
        Refused("heads must divide the width", () => new BrainRecipe().Run(new RecipeOptions { Output = _folder, Model = "transformer:heads=5" }, _ => { }, _ => { }, default));
    }
}
