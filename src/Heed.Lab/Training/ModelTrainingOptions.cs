using static TorchSharp.torch;

namespace Heed.Lab.Training;

/// <summary>What the trainings of small models have in common: AdamW with a warm-up and a cosine decay, a seed, and a number of threads.</summary>
public abstract record ModelTrainingOptions
{
    /// <summary>Number of steps.</summary>
    public required long Steps { get; init; }

    /// <summary>The largest learning rate.</summary>
    public double LearningRate { get; init; }

    /// <summary>The learning rate of the last step, as a share of the largest; 1: no decay.</summary>
    public double FinalShare { get; init; }

    /// <summary>Steps over which the learning rate rises; null: a twentieth of the steps, at most 50.</summary>
    public long? WarmupSteps { get; init; }

    /// <summary>Weight decay of matrices; 0 makes AdamW Adam.</summary>
    public double WeightDecay { get; init; } = 0.05;

    /// <summary>Decay of the running mean of the squared gradients.</summary>
    public double Beta2 { get; init; }

    /// <summary>Largest norm of all gradients together.</summary>
    public double ClipNorm { get; init; } = 1;

    /// <summary>Decides the order of the data and seeds libtorch's generator at every step (dropout, drop path). The weights are the caller's.</summary>
    public int Seed { get; init; } = 1;

    /// <summary>Steps between two validations; null: ten validations in all.</summary>
    public long? ValidateEvery { get; init; }

    /// <summary>Threads of libtorch while training; null: as they are set.</summary>
    public int? Threads { get; init; } = 1;

    internal TrainingPlan Plan => new()
    {
        Steps = Steps, WarmupSteps = WarmupSteps ?? Math.Min(50, Steps / 20), LearningRate = LearningRate, FinalShare = FinalShare, WeightDecay = WeightDecay, Beta2 = Beta2, ClipNorm = ClipNorm,
        ValidateEvery = ValidateEvery ?? Math.Max(1, Steps / 10),
    };

    /// <summary>Seeds libtorch's generator for a step: what is random within it must not depend on whether the run was stopped before it.</summary>
    internal void SeedStep(long step) => manual_seed((Seed * 1_000_003L) + step);

    /// <summary>Runs with the wanted number of threads, and sets it back.</summary>
    internal TResult OnItsThreads<TResult>(Func<TResult> run)
    {
        var threads = get_num_threads();
        try
        {
            if (Threads is { } wanted)
            {
                set_num_threads(wanted);
            }

            return run();
        }
        finally
        {
            set_num_threads(threads);
        }
    }
}
