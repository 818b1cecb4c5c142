using Heed.Lab.Recall;
using Heed.Lab.Training;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Recall;

public sealed class RecallTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-recall-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Every_question_asks_for_the_value_of_its_key()
    {
        using var scope = NewDisposeScope();
        var task = new RecallTask(Length: 40, Pairs: 5, Vocabulary: 32);
        var (texts, targets) = task.Draw(20, seed: 3);
        for (var text = 0; text < 20; text++)
        {
            var (tokens, asked) = (texts[text].data<long>().ToArray(), targets[text].data<long>().ToArray());
            var values = Enumerable.Range(0, 5).ToDictionary(pair => tokens[2 * pair], pair => tokens[(2 * pair) + 1]);
            Assert.Equal(5, values.Count);
            Assert.All(values, pair => Assert.True(pair.Key is > 0 and < 16 && pair.Value is >= 16 and < 32));
            var questions = Enumerable.Range(0, 40).Where(place => asked[place] != RecallTask.NotAsked).ToList();
            Assert.Equal(5, questions.Count);
            Assert.All(questions, place => Assert.True(place >= 10 && place % 2 == 0 && asked[place] == values[tokens[place]]));
            Assert.All(Enumerable.Range(10, 30).Except(questions), place => Assert.True(tokens[place] >= 16));
        }

        Assert.True(texts.eq(task.Draw(20, seed: 3).Tokens).all().item<bool>());
        Assert.False(texts.eq(task.Draw(20, seed: 4).Tokens).all().item<bool>());
    }

    [Theory]
    [InlineData("dense")]
    [InlineData("window:w=8")]
    [InlineData("dma:form=exp,w=8")]
    [InlineData("dma:form=linear,w=8")]
    public void A_model_learns_a_small_task_by_heart(string attention)
    {
        var task = new RecallTask(Length: 12, Pairs: 2, Vocabulary: 12);
        using var model = new RecallModel(task, attention, seed: 1, width: 16);
        using var texts = task.Draw(8, 1).Tokens;
        using var targets = task.Draw(8, 1).Targets;
        using var optimizer = optim.AdamW(model.parameters(), 1e-2);
        for (var step = 0; step < 80; step++)
        {
            using var scope = NewDisposeScope();
            var loss = model.Loss(texts, targets);
            optimizer.zero_grad();
            loss.backward();
            optimizer.step();
        }

        Assert.Equal(1, model.Accuracy(texts, targets));
    }

    [Fact]
    public void Frozen_amplitudes_are_a_sliding_window()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var task = new RecallTask();
        using var frozen = new RecallModel(task, "dma:w=10,frozen=1", seed: 2);
        using var window = new RecallModel(task, "window:w=10", seed: 2);
        var shared = window.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter);
        foreach (var (name, parameter) in frozen.named_parameters())
        {
            if (shared.TryGetValue(name, out var same))
            {
                parameter.copy_(same);
            }
        }

        var texts = task.Draw(3, 1).Tokens;
        Assert.True((frozen.forward(texts) - window.forward(texts)).abs().max().item<float>() < 1e-5);
        Assert.Equal(2, frozen.parameters().Count(parameter => !parameter.requires_grad));
    }

    [Fact]
    public void The_recipe_leaves_weights_a_record_and_figures()
    {
        var progress = new List<long>();
        var result = new RecallRecipe().Run(
            new RecipeOptions { Output = _folder, Steps = 6, Seed = 4, Attention = "dma:form=exp,w=16" }, _ => { }, step => progress.Add(step.Step), TestContext.Current.CancellationToken);

        Assert.Equal(["held-out.png", "loss.png", "model.safetensors", "training.json"], Directory.GetFiles(_folder).Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal));
        Assert.Equal([1, 2, 3, 4, 5, 6], progress);
        Assert.InRange(double.Parse(result.Measures[0].Value, System.Globalization.CultureInfo.InvariantCulture), 0, 1);
        using var weights = new SafetensorsReader(Path.Combine(_folder, "model.safetensors"));
        Assert.Contains("layers.0.attention.A", weights.Entries.Keys);
        Assert.Contains("\"attention\": \"dma:form=exp,w=16\"", File.ReadAllText(Path.Combine(_folder, "training.json")), StringComparison.Ordinal);
    }

    [Fact]
    public void A_stopped_run_goes_on_to_the_same_end()
    {
        var (whole, halves) = (Path.Combine(_folder, "whole"), Path.Combine(_folder, "halves"));
        RecipeOptions Options(string folder, bool resume) => new() { Output = folder, Steps = 8, Seed = 5, Attention = "dma:w=16", Resume = resume };
        var expected = new RecallRecipe().Run(Options(whole, false), _ => { }, _ => { }, TestContext.Current.CancellationToken);
        using var stop = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => new RecallRecipe().Run(Options(halves, false), _ => { }, progress =>
        {
            if (progress.Step == 3)
            {
                stop.Cancel();
            }
        }, stop.Token));
        Assert.Contains("--resume", Assert.Throws<ArgumentException>(() => new RecallRecipe().Run(Options(halves, false), _ => { }, _ => { }, TestContext.Current.CancellationToken)).Message, StringComparison.Ordinal);

        var resumed = new RecallRecipe().Run(Options(halves, true), _ => { }, _ => { }, TestContext.Current.CancellationToken);

        Assert.Equal(expected.Measures, resumed.Measures);
        Assert.Equal(File.ReadAllBytes(Path.Combine(whole, "model.safetensors")), File.ReadAllBytes(Path.Combine(halves, "model.safetensors")));
    }

    [Fact]
    public void What_cannot_be_is_refused_in_a_sentence()
    {
        void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        Refused("fewer pairs than keys", () => new RecallTask(64, 40, 64).Validate());
        Refused("no attention mechanism 'spiral'", () => _ = new RecallModel(new(), "spiral", 1));
        Refused("is linear or exp", () => _ = new RecallModel(new(), "dma:form=cubic", 1));
        Refused("no option 'v'", () => _ = new RecallModel(new(), "dma:v=3", 1));
        Refused("has its own tokens", () => new RecallRecipe().Run(new RecipeOptions { Output = _folder, TextFile = "a" }, _ => { }, _ => { }, default));
    }
}
