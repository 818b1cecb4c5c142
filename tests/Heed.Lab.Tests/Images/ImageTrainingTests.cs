using Heed.Lab.Images;
using Heed.Lab.Training;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Images;

public sealed class ImageTrainingTests : IDisposable
{
    private const string Small = "mlp-mixer:patch=7,width=24,depth=1,tokens=16";
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-images-").FullName;

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Training_learns_repeats_and_leaves_the_threads_as_they_were()
    {
        using var scope = NewDisposeScope();
        var data = SmallPictures.Data();
        var threads = get_num_threads();
        ImageTrainingResult Run()
        {
            manual_seed(3);
            using var model = ImageModel.Make(Small, FashionMnist.Task);
            return ImageTraining.Train(model, data.Train, data.Test, new() { Steps = 60, Batch = 32, LearningRate = 5e-3, Watched = 50 }, cancellation: Token);
        }

        var (first, second) = (Run(), Run());
        Assert.InRange(first.Accuracy, 0.9, 1);
        Assert.Equal(60, first.Points.Count);
        Assert.Equal(10, first.Validations.Count);
        Assert.Equal(first.Points.Select(point => point.Loss), second.Points.Select(point => point.Loss));
        Assert.Equal(threads, get_num_threads());
    }

    [Fact]
    public void Testing_leaves_the_mode_as_it_was_and_counts_every_picture_once()
    {
        using var scope = NewDisposeScope();
        using var model = ImageModel.Make(Small, FashionMnist.Task);
        model.train();
        var data = SmallPictures.Data(10, 600).Test;
        var (accuracy, _) = ImageTraining.Test(model, data, cancellation: Token);
        Assert.True(model.training);
        model.eval();
        using var quiet = no_grad();
        var (images, labels) = data.Range(0, 600);
        Assert.Equal(model.forward(images).argmax(1).eq(labels).to(float64).mean().item<double>(), accuracy, 1e-12);
    }

    [Fact]
    public void Pictures_that_do_not_suit_the_model_are_refused()
    {
        using var model = ImageModel.Make(Small, FashionMnist.Task with { Classes = 3 });
        var data = SmallPictures.Data(64, 10);
        Assert.Contains("3 classes", Assert.Throws<ArgumentException>(() => ImageTraining.Train(model, data.Train, data.Test, new() { Steps = 1 }, cancellation: Token)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_recipe_resumes_to_the_same_weights_and_its_folder_can_be_loaded()
    {
        var data = SmallPictures.Write(_folder);
        var recipe = TrainingRecipe.Find("fashion");
        var options = new RecipeOptions { Output = Path.Combine(_folder, "whole"), Steps = 4, Model = Small, DataFolder = data, Threads = 1 };
        var result = recipe.Run(options, _ => { }, _ => { }, Token);
        Assert.All(result.Files, file => Assert.True(File.Exists(file), file));
        var broken = options with { Output = Path.Combine(_folder, "broken") };
        using (var cancellation = new CancellationTokenSource())
        {
            Assert.Throws<OperationCanceledException>(() => recipe.Run(broken, _ => { }, step => { if (step.Step == 2) { cancellation.Cancel(); } }, cancellation.Token));
        }

        recipe.Run(broken with { Resume = true, Steps = null }, _ => { }, _ => { }, Token);
        using var first = new SafetensorsReader(Path.Combine(_folder, "whole", "model.safetensors"));
        using var second = new SafetensorsReader(Path.Combine(_folder, "broken", "model.safetensors"));
        Assert.Equal(Small, first.Metadata["model"]);
        using var scope = NewDisposeScope();
        Assert.All(first.Entries.Keys, name => Assert.True(first.Read(name).equal(second.Read(name)).all().item<bool>(), name));

        var (card, model) = ImageModelCard.Load(Path.Combine(_folder, "whole"));
        Assert.Equal((Small, "fashion", FashionMnist.Task), (card.Model, card.Recipe, card.Task));
        Assert.Equal(card.Accuracy, ImageTraining.Test(model, FashionMnist.LoadTest(data), cancellation: Token).Accuracy, 1e-12);
        model.Dispose();
    }

    [Theory]
    [InlineData("{}", "does not describe")]
    [InlineData("not json", "does not describe")]
    [InlineData("{\"model\":\"painter\"", "does not describe")]
    public void A_folder_that_holds_something_else_is_told(string card, string sentence)
    {
        File.WriteAllText(Path.Combine(_folder, "model.json"), card);
        File.WriteAllText(Path.Combine(_folder, "model.safetensors"), "");
        Assert.Contains(sentence, Assert.Throws<InvalidDataException>(() => ImageModelCard.Load(_folder)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Weights_of_another_model_are_told()
    {
        var whole = Path.Combine(_folder, "model");
        TrainingRecipe.Find("fashion").Run(new() { Output = whole, Steps = 1, Model = Small, DataFolder = SmallPictures.Write(_folder) }, _ => { }, _ => { }, Token);
        var card = Path.Combine(whole, "model.json");
        var text = File.ReadAllText(card);
        File.WriteAllText(card, text.Replace("width=24", "width=28", StringComparison.Ordinal));
        Assert.Contains("has another shape", Assert.Throws<InvalidDataException>(() => ImageModelCard.Load(whole)).Message, StringComparison.Ordinal);
        File.WriteAllText(card, text.Replace("depth=1", "depth=2", StringComparison.Ordinal));
        Assert.Contains("in one of the two only", Assert.Throws<InvalidDataException>(() => ImageModelCard.Load(whole)).Message, StringComparison.Ordinal);
        File.WriteAllText(card, text.Replace("mlp-mixer", "painter", StringComparison.Ordinal));
        Assert.Contains("cannot be made", Assert.Throws<InvalidDataException>(() => ImageModelCard.Load(whole)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("attention", "give --model")]
    [InlineData("text", "leave --text out")]
    [InlineData("data", "apt-get install dataset-fashion-mnist")]
    public void Options_that_it_cannot_take_are_told(string which, string sentence)
    {
        var options = new RecipeOptions { Output = Path.Combine(_folder, "none"), Steps = 1 };
        options = which switch { "attention" => options with { Attention = "dense" }, "text" => options with { TextFile = "a" }, _ => options with { DataFolder = _folder } };
        Assert.Contains(sentence, Assert.ThrowsAny<Exception>(() => TrainingRecipe.Find("fashion").Run(options, _ => { }, _ => { }, Token)).Message, StringComparison.Ordinal);
        Assert.False(Directory.Exists(options.Output));
        Assert.Contains("fashion", Assert.Throws<ArgumentException>(() => TrainingRecipe.Find("grid").Run(options with { Attention = null, TextFile = null, DataFolder = null, Model = "vit" }, _ => { }, _ => { }, Token)).Message, StringComparison.Ordinal);
    }
}
