namespace Heed.Lab.Training;

/// <summary>What turns gradients into steps.</summary>
public enum TrainingOptimizer
{
    /// <summary>Adam with decoupled weight decay.</summary>
    AdamW,

    /// <summary>Stochastic gradient descent with momentum <see cref="TrainingPlan.Beta1"/>; weight decay is part of the gradient.</summary>
    Sgd,
}

/// <summary>How long and how fast to train: AdamW (or SGD) with a linear warm-up and a cosine decay, gradients clipped by their norm.</summary>
public sealed record TrainingPlan
{
    /// <summary>What turns gradients into steps.</summary>
    public TrainingOptimizer Optimizer { get; init; }

    /// <summary>Number of optimizer steps.</summary>
    public required long Steps { get; init; }

    /// <summary>Steps over which the learning rate rises linearly from zero.</summary>
    public long WarmupSteps { get; init; }

    /// <summary>The largest learning rate.</summary>
    public double LearningRate { get; init; } = 1e-3;

    /// <summary>The learning rate of the last step, as a share of the largest.</summary>
    public double FinalShare { get; init; } = 0.05;

    /// <summary>Weight decay of matrices; vectors (norms, biases) are not decayed.</summary>
    public double WeightDecay { get; init; } = 0.1;

    /// <summary>Decay of the running mean of the gradients; the momentum of SGD.</summary>
    public double Beta1 { get; init; } = 0.9;

    /// <summary>Decay of the running mean of the squared gradients.</summary>
    public double Beta2 { get; init; } = 0.95;

    /// <summary>Largest norm of all gradients together; longer ones are scaled down.</summary>
    public double ClipNorm { get; init; } = 1;

    /// <summary>Steps between two validations; there is always one after the last step.</summary>
    public long ValidateEvery { get; init; } = 250;

    /// <summary>The learning rate of a step, counted from 0.</summary>
    public double LearningRateAt(long step)
    {
        if (step < WarmupSteps)
        {
            return LearningRate * (step + 1) / WarmupSteps;
        }

        var progress = (step - WarmupSteps) / (double)Math.Max(1, Steps - 1 - WarmupSteps);
        return LearningRate * (FinalShare + ((1 - FinalShare) * 0.5 * (1 + Math.Cos(Math.PI * Math.Min(1, progress)))));
    }

    /// <summary>Refuses values that cannot train.</summary>
    /// <exception cref="ArgumentException">A value is out of its range.</exception>
    public void Validate()
    {
        if (Steps < 1 || WarmupSteps < 0 || ValidateEvery < 1)
        {
            throw new ArgumentException($"A training plan needs at least 1 step, a warm-up of 0 or more and a validation every 1 or more steps, not {Steps}, {WarmupSteps} and {ValidateEvery}.");
        }

        if (!(LearningRate > 0) || !(ClipNorm > 0) || !(WeightDecay >= 0))
        {
            throw new ArgumentException($"The learning rate and the clipping norm must be positive and the weight decay not negative, not {LearningRate}, {ClipNorm} and {WeightDecay}.");
        }
    }
}
