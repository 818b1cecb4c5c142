using Heed.Lab.Training;
using Heed.Models.Decoders;
using TorchSharp;
using TorchSharp.Modules;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Training;

public sealed class TrainingLoopTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-training-").FullName;

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    private string Checkpoint => Path.Combine(_folder, "run", "checkpoint.bin");

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Warm_up_rises_to_the_peak_and_the_cosine_falls_to_its_share()
    {
        var plan = new TrainingPlan { Steps = 101, WarmupSteps = 20, LearningRate = 0.01, FinalShare = 0.1 };

        Assert.Equal(0.0005, plan.LearningRateAt(0), 12);
        Assert.Equal(0.01, plan.LearningRateAt(19), 12);
        Assert.Equal(0.01, plan.LearningRateAt(20), 12);
        Assert.Equal(0.0055, plan.LearningRateAt(60), 12);
        Assert.Equal(0.001, plan.LearningRateAt(100), 12);
        Assert.All(Enumerable.Range(20, 80), step => Assert.True(plan.LearningRateAt(step) > plan.LearningRateAt(step + 1)));
    }

    [Fact]
    public void Training_learns_a_linear_map()
    {
        using var problem = new Problem();
        using var loop = problem.Loop(new TrainingPlan { Steps = 300, WarmupSteps = 10, LearningRate = 0.05, WeightDecay = 0, ValidateEvery = 100 });
        var seen = new List<TrainingProgress>();

        loop.Run(seen.Add, Token);

        Assert.True(loop.History.Points[^1].Loss < 0.01 * loop.History.Points[0].Loss);
        Assert.Equal([100, 200, 300], loop.History.Validations.Select(validation => validation.Step));
        Assert.Equal(300, seen.Count);
        Assert.Equal(300 * 16, loop.History.Items);
        Assert.Equal(TimeSpan.Zero, seen[^1].Remaining);
    }

    [Theory]
    [InlineData(1, TrainingOptimizer.AdamW)]
    [InlineData(17, TrainingOptimizer.AdamW)]
    [InlineData(17, TrainingOptimizer.Sgd)]
    public void A_stopped_run_ends_with_the_bits_of_an_unbroken_one(int stopAfter, TrainingOptimizer optimizer)
    {
        var plan = new TrainingPlan { Optimizer = optimizer, Steps = 40, WarmupSteps = 5, LearningRate = 0.02, ValidateEvery = 10 };
        using var unbroken = new Problem();
        using (var loop = unbroken.Loop(plan))
        {
            loop.Run(cancellation: Token);
        }

        using (var first = new Problem())
        using (var loop = first.Loop(plan, Checkpoint))
        using (var cancellation = new CancellationTokenSource())
        {
            Assert.False(loop.TryResume());
            Assert.Throws<OperationCanceledException>(() => loop.Run(progress => CancelAt(progress, cancellation), cancellation.Token));
        }

        using var second = new Problem();
        using var resumed = second.Loop(plan, Checkpoint);
        Assert.True(resumed.TryResume());
        Assert.Equal(stopAfter, resumed.Step);
        resumed.Run(cancellation: Token);

        Assert.Equal(unbroken.Weights(), second.Weights());
        Assert.Equal(40, resumed.History.Points.Count);
        Assert.Equal([10, 20, 30, 40], resumed.History.Validations.Select(validation => validation.Step));

        void CancelAt(TrainingProgress progress, CancellationTokenSource cancellation)
        {
            if (progress.Step == stopAfter)
            {
                cancellation.Cancel();
            }
        }
    }

    [Fact]
    public void Checkpoints_of_other_runs_and_damaged_ones_are_refused()
    {
        var plan = new TrainingPlan { Steps = 3 };
        using var problem = new Problem();
        using (var loop = problem.Loop(plan, Checkpoint))
        {
            loop.Run(cancellation: Token);
        }

        using (var other = problem.Loop(plan, Checkpoint, "seed=2"))
        {
            Assert.Contains("seed=1 there, seed=2 now", Assert.Throws<ArgumentException>(() => other.TryResume()).Message, StringComparison.Ordinal);
        }

        var whole = File.ReadAllBytes(Checkpoint);
        foreach (var length in new[] { 0, 5, 40, whole.Length / 2, whole.Length - 1 })
        {
            File.WriteAllBytes(Checkpoint, whole[..length]);
            using var loop = problem.Loop(plan, Checkpoint);
            Assert.Contains("not a whole training checkpoint", Assert.Throws<InvalidDataException>(() => loop.TryResume()).Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void A_loss_that_is_not_a_number_stops_the_run()
    {
        using var problem = new Problem();
        using var loop = new TrainingLoop(problem.Model, new TrainingPlan { Steps = 5 }, "seed=1") { Loss = step => problem.LossOf(step) * (step == 2 ? double.NaN : 1) };

        Assert.Contains("step 3", Assert.Throws<InvalidOperationException>(() => loop.Run(cancellation: Token)).Message, StringComparison.Ordinal);
        Assert.Equal(2, loop.Step);
    }

    [Fact]
    public void Plans_that_cannot_train_are_refused()
    {
        using var problem = new Problem();
        Assert.Throws<ArgumentException>(() => problem.Loop(new TrainingPlan { Steps = 0 }));
        Assert.Throws<ArgumentException>(() => problem.Loop(new TrainingPlan { Steps = 1, LearningRate = double.NaN }));
        Assert.Throws<ArgumentException>(() => problem.Loop(new TrainingPlan { Steps = 1, ClipNorm = 0 }));
    }

    [Fact]
    public void A_thousand_steps_of_a_decoder_leave_no_tensor_behind()
    {
        using var model = new Decoder(new DecoderConfiguration { VocabularySize = 20, HiddenSize = 8, IntermediateSize = 8, Layers = 1, Heads = 2, KeyValueHeads = 1 });
        using var ids = randint(0, 20, [2, 12], dtype: int64);
        using var loop = new TrainingLoop(model, new TrainingPlan { Steps = 1_000, ValidateEvery = 250 }, "seed=1")
        {
            Loss = _ => nn.functional.cross_entropy(model.forward(ids).view(24, 20), ids.view(24)), Validation = () => model.forward(ids).mean().item<float>(),
        };
        var counts = new Dictionary<long, long>();

        loop.Run(progress => counts[progress.Step] = DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount, Token);

        Assert.Equal(counts[10], counts[1_000]);
        Assert.True(loop.History.Points[^1].Loss < loop.History.Points[0].Loss);
    }

    private sealed class Problem : IDisposable
    {
        private readonly Tensor _truth;

        public Problem()
        {
            using var generator = new Generator(5);
            _truth = randn(6, 4, generator: generator);
            Model = nn.Linear(6, 4);
            using (no_grad())
            {
                Model.weight.copy_(randn(4, 6, generator: generator));
                Model.bias!.zero_();
            }
        }

        public Linear Model { get; }

        public TrainingLoop Loop(TrainingPlan plan, string? checkpoint = null, string identity = "seed=1") => new(Model, plan, identity, checkpoint)
        {
            Loss = LossOf, Items = _ => 16, Validation = () => LossOf(-1).item<float>(),
        };

        public Tensor LossOf(long step)
        {
            using var generator = new Generator((ulong)(100 + step));
            var x = randn(16, 6, generator: generator);
            return (Model.forward(x) - x.matmul(_truth)).square().mean();
        }

        public float[] Weights() => [.. Model.weight.data<float>(), .. Model.bias!.data<float>()];

        public void Dispose()
        {
            Model.Dispose();
            _truth.Dispose();
        }
    }
}
