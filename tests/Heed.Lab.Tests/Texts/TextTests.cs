using Heed.Lab.Corpora;
using Heed.Lab.Texts;
using Heed.Lab.Training;
using Heed.Models.Checkpoints;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Texts;

public sealed class TextTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-text-").FullName;

    public static TheoryData<string> Models => [.. TextModel.All.Select(model => model.Name)];

    private static TextCorpus Corpus { get; } = new("counting", [.. Enumerable.Range(0, 40).Select(part => new TextDocument($"part {part}", string.Join(' ', Enumerable.Range(part, 30)) + "\n"))]);

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void A_window_begins_with_its_token_and_every_target_is_the_next_byte()
    {
        using var scope = NewDisposeScope();
        var data = new TextData(Corpus);
        var batches = data.Batches(3, 20, seed: 2);
        foreach (var (input, target) in new[] { batches(0), batches(4), data.HeldOut(1, 3, 20) })
        {
            Assert.Equal([3, 20], input.shape);
            Assert.True(input.select(1, 0).eq(TextData.Begin).all().item<bool>());
            Assert.True(input.narrow(1, 1, 19).eq(target.narrow(1, 0, 19)).all().item<bool>());
        }

        Assert.True(batches(4).Input.eq(data.Batches(3, 20, seed: 2)(4).Input).all().item<bool>());
        Assert.False(batches(4).Input.eq(batches(5).Input).all().item<bool>());
        Assert.Equal(Corpus.TrainingText.Length, data.TrainingBytes);
        Assert.Throws<ArgumentException>(() => data.Batches(1, 4000, 1));
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void No_model_sees_what_follows_and_every_one_learns(string name)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var model = TextModel.Make(name, TextData.Vocabulary, 24);
        model.eval();
        using (no_grad())
        {
            var text = randint(0, 256, [2, 24], dtype: int64);
            var other = text.clone();
            other.narrow(1, 15, 9).copy_(randint(0, 256, [2, 9], dtype: int64));
            var (before, after) = (model.forward(text), model.forward(other));

            Assert.Equal([2, 24, TextData.Vocabulary], before.shape);
            Assert.True((before - after).narrow(1, 0, 15).abs().max().item<float>() < 1e-5);
            Assert.True((before - after).narrow(1, 15, 9).abs().max().item<float>() > 1e-4);
        }

        var data = new TextData(Corpus);
        var first = TextTraining.Test(model, data, 24, 4, TestContext.Current.CancellationToken);
        var trained = TextTraining.Train(model, data, new() { Steps = 12, Batch = 4, Length = 24, LearningRate = 1e-2 }, cancellation: TestContext.Current.CancellationToken);
        Assert.True(trained.HeldOut.Loss < first.Loss - 0.5, $"{trained.HeldOut.Loss} after {first.Loss}");
        Assert.Contains("no option 'nonsense'", Assert.Throws<ArgumentException>(() => TextModel.Make($"{name}:nonsense=1", 257, 24)).Message);
    }

    [Fact]
    public void Options_change_the_model()
    {
        using var scope = NewDisposeScope();
        string Names(string text)
        {
            using var model = TextModel.Make(text, 257, 16);
            return string.Join(' ', model.named_parameters().Select(entry => $"{entry.name}[{string.Join(',', entry.parameter.shape)}]"));
        }

        Assert.DoesNotContain("positions", Names("mha:positions=rotary"));
        Assert.DoesNotContain("positions", Names("mha:positions=none"));
        Assert.Contains("blocks.1.attn.gate.weight[8,16]", Names("gated:position=G2,granularity=headwise,width=16,heads=8,depth=2"));
        Assert.Contains("blocks.0.attn.gate.logits[4,16]", Names("gated:source=constant"));
        Assert.Contains("attn.w_qk", Names("reduced:qk=collapsed,vo=none"));
        Assert.DoesNotContain("mlp", Names("reduced"));
        Assert.Contains("mlp", Names("reduced:mlp=on"));
        Assert.Contains("HeadShared", Assert.Throws<ArgumentException>(() => TextModel.Make("gated:shared=on,granularity=headwise", 257, 16)).Message);
        Assert.Contains("there are: mha, ", Assert.Throws<ArgumentException>(() => TextModel.Make("nothing", 257, 16)).Message);
        using var short_ = TextModel.Make("mha", 257, 16);
        Assert.Contains("int64 [batch, 1 to 16]", Assert.Throws<ArgumentException>(() => short_.forward(zeros(1, 17, dtype: int64))).Message);
        Assert.Contains("that length", Assert.Throws<ArgumentException>(() => TextTraining.Loop(short_, new TextData(Corpus), new() { Steps = 1, Length = 17 })).Message);
    }

    [Fact]
    public void Probes_see_the_attention_of_these_models()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TextModel.Make("gated:depth=2", 257, 16);
        using var maps = new AttentionMapProbe();
        var gates = new GateProbe();
        using var installed = model.Hooks.Install(maps);
        using var observed = model.Hooks.Install(gates);
        model.forward(randint(0, 256, [2, 16], dtype: int64)).Dispose();

        Assert.Equal(["blocks.0.attn", "blocks.1.attn"], maps.Sites.Select(site => site.Name));
        Assert.All(maps.Sites, site => Assert.InRange(AttentionSinks.FirstTokenShare(maps[site], 1).item<float>(), 0, 1));
        Assert.All(gates.Sites, site => Assert.InRange(gates[site].MeanScore, 0.3, 0.7));
        Assert.Equal(2, gates.Sites.Count);
    }

    [Fact]
    public void A_run_leaves_its_model_and_goes_on_after_a_stop()
    {
        var text = Path.Combine(_folder, "text.txt");
        File.WriteAllText(text, string.Concat(Enumerable.Range(0, 30_000).Select(number => $"{number % 97}{(number % 20 == 0 ? (char)10 : (char)32)}")));
        var recipe = TrainingRecipe.Find("text");
        var options = new RecipeOptions { Output = Path.Combine(_folder, "out"), Steps = 6, TextFile = text, Model = "mha:width=16,depth=1,hidden=16", Threads = 1 };
        using var stop = new CancellationTokenSource();
        Assert.Throws<OperationCanceledException>(() => recipe.Run(options, _ => { }, progress =>
        {
            if (progress.Step == 3)
            {
                stop.Cancel();
            }
        }, stop.Token));

        var steps = new List<long>();
        var result = recipe.Run(options with { Resume = true }, _ => { }, progress => steps.Add(progress.Step), TestContext.Current.CancellationToken);

        Assert.Equal([4, 5, 6], steps);
        Assert.Contains(result.Measures, measure => measure.Name == "held-out bits per byte");
        Assert.All(result.Files, file => Assert.True(File.Exists(file)));
        using var weights = new SafetensorsReader(result.Files[0]);
        Assert.Contains("blocks.0.attn.qkv.weight", weights.Entries.Keys);
        Assert.Contains("--attention", Assert.Throws<ArgumentException>(() => recipe.Run(options with { Attention = "dense" }, _ => { }, _ => { }, CancellationToken.None)).Message);
    }
}
