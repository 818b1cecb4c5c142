using Heed.Lab.Backcopy;
using Heed.Lab.Training;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Backcopy;

public sealed class BackcopyTrainingTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-backcopy-").FullName;

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("softmax:width=16,length=12,batch=4")]
    [InlineData("relu:layers=2,width=16,length=12,batch=4,optimizer=sgd,noattention=1")]
    public void A_stopped_run_goes_on_to_the_same_end_with_figures_of_what_was_watched(string model)
    {
        RecipeOptions Options(string name, bool resume) => new() { Output = Path.Combine(_folder, name), Steps = 8, Seed = 5, Model = model, Resume = resume };
        var expected = new BackcopyRecipe().Run(Options("whole", false), _ => { }, _ => { }, Token);
        using var stop = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => new BackcopyRecipe().Run(Options("halves", false), _ => { }, progress =>
        {
            if (progress.Step == 3)
            {
                stop.Cancel();
            }
        }, stop.Token));

        var resumed = new BackcopyRecipe().Run(Options("halves", true), _ => { }, _ => { }, Token);

        Assert.Equal(expected.Measures, resumed.Measures);
        Assert.Equal(File.ReadAllBytes(Path.Combine(_folder, "whole", "model.safetensors")), File.ReadAllBytes(Path.Combine(_folder, "halves", "model.safetensors")));
        Assert.All(["sink-attention.png", "value-norm.png", "residual-norm.png"], file => Assert.Contains(resumed.Files, written => Path.GetFileName(written) == file && File.Exists(written)));
        Assert.Contains(resumed.Measures, measure => measure.Name == "sink attention, layer 0");
        using var weights = new SafetensorsReader(Path.Combine(_folder, "whole", "model.safetensors"));
        Assert.Equal(model, weights.Metadata["model"]);
        Assert.Contains("layers.0.attention.wq.weight", weights.Entries.Keys);
    }

    [Fact]
    public void A_perfect_prediction_has_no_excess_and_the_unknowing_one_the_divergence()
    {
        using var scope = NewDisposeScope();
        var language = new BigramBackcopy(BigramTable.Shakespeare);
        var tokens = language.Sample(5, 30, seed: 1);
        var (oracle, triggers) = (language.Oracle(tokens), language.TriggerMask(tokens));

        // Logits of minus infinity are what nothing can learn; 0 log 0 counts nothing.
        var (copy, bigram) = BackcopyRisk.Excess(oracle.log(), oracle, triggers);
        Assert.Equal(0, copy, 12);
        Assert.Equal(0, bigram, 12);
        var (flatCopy, flatBigram) = BackcopyRisk.Of(zeros_like(oracle), oracle, triggers);
        Assert.Equal(Math.Log(67), flatCopy.item<double>(), 12);
        Assert.Equal(Math.Log(67), flatBigram.item<double>(), 12);
    }

    [Fact]
    public void Measures_are_those_of_the_formulas()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var settings = BackcopySettings.Parse("softmax:layers=2,heads=2,width=12,length=10", BigramTable.Shakespeare);
        using var model = settings.Create(seed: 3);
        var measures = settings.Measure(model, texts: 7);

        using var probe = new BackcopyProbe(model);
        var tokens = settings.HeldOut(7);
        model.forward(tokens);
        var others = settings.Language.TriggerMask(tokens).logical_not();
        foreach (var (layer, measured) in probe.Layers.Zip(measures.Layers))
        {
            var parked = Enumerable.Range(0, 2).Select(head => layer.Weights!.select(1, head).select(-1, 0).masked_select(others).mean().item<float>()).ToArray();
            Assert.Equal(parked.Max(), measured.SinkAttention, 5);
            var own = others.to(float32).sum().item<float>();
            Assert.Equal(((parked.Max() * own) - 7) / (own - 7), measured.SinkAttentionOfOthers, 5);
            Assert.Equal(layer.Residual.select(1, 0).square().sum(-1).sqrt().mean().item<float>(), measured.SinkResidual, 4);
            var gap = layer.SinkLogitGap();
            var scores = layer.Scores![3, 1, 6];
            Assert.Equal((scores[0] - ((scores[1] + scores[2] + scores[3] + scores[4] + scores[5]) / 5)).item<float>(), gap[3, 1, 6].item<float>(), 5);
            Assert.Equal(0, gap.narrow(-1, 0, 2).abs().max().item<float>());
        }

        Assert.Equal(2, probe.Layers.Count);
        Assert.Equal((model.get_parameter("tok_embeddings.weight")![65] + model.get_parameter("pos_embeddings.weight")![0]).norm().item<float>(), measures.EmbeddedSink, 4);
    }

    [Fact]
    public void A_language_without_triggers_can_be_trained_on()
    {
        using var scope = NewDisposeScope();
        var settings = BackcopySettings.Parse("softmax:rule=none,width=8,length=6,batch=2", BigramTable.Shakespeare);
        using var model = settings.Create(1);
        using var loop = settings.Loop(model, 1, 2, 1);
        loop.Run(null, Token);
        Assert.All(loop.History.Validations, point => Assert.All(point.Observed!.Values, value => Assert.True(double.IsFinite(value))));
    }

    [Theory]
    [InlineData("sigmoid", "there are: softmax, relu")]
    [InlineData("softmax:depth=3", "no option 'depth'")]
    [InlineData("softmax:optimizer=lion", "adamw or sgd")]
    [InlineData("softmax:noffn=0.1", "0/2")]
    [InlineData("softmax:noffn=1", "layer 1")]
    [InlineData("softmax:triggers=65", "can be triggers")]
    public void Settings_that_cannot_be_are_told_in_a_sentence(string model, string sentence) => Assert.Contains(
        sentence, Assert.Throws<ArgumentException>(() => BackcopySettings.Parse(model, BigramTable.Shakespeare).Create(1)).Message, StringComparison.Ordinal);
}
