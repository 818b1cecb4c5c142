using System.Text.Json.Serialization;

namespace Heed.Lab.Training;

/// <summary>One optimizer step.</summary>
/// <param name="Step">The step, counted from 1.</param>
/// <param name="Loss">Training loss of its batch before the step.</param>
/// <param name="LearningRate">Learning rate.</param>
/// <param name="GradientNorm">Norm of all gradients before clipping.</param>
public sealed record TrainingPoint(long Step, double Loss, double LearningRate, double GradientNorm);

/// <summary>One validation.</summary>
/// <param name="Step">Number of steps done before it.</param>
/// <param name="Value">What was measured, for example bits per byte.</param>
public sealed record ValidationPoint(long Step, double Value)
{
    /// <summary>What else was noted, by name; null: nothing.</summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public IReadOnlyDictionary<string, double>? Observed { get; init; }
}

/// <summary>What happened in a run so far, over all its interruptions.</summary>
public sealed class TrainingHistory
{
    /// <summary>Every step.</summary>
    public List<TrainingPoint> Points { get; init; } = [];

    /// <summary>Every validation.</summary>
    public List<ValidationPoint> Validations { get; init; } = [];

    /// <summary>Items (tokens, images ...) trained on.</summary>
    public long Items { get; set; }

    /// <summary>Time spent training and validating, in seconds.</summary>
    public double Seconds { get; set; }

    /// <summary>The steps averaged into at most <paramref name="count"/> points of equal numbers of steps, each placed at its last step.</summary>
    public IReadOnlyList<TrainingPoint> Averaged(int count)
    {
        var size = Math.Max(1, (Points.Count + count - 1) / count);
        return Points.Chunk(size).Select(chunk => new TrainingPoint(
            chunk[^1].Step, chunk.Average(point => point.Loss), chunk.Average(point => point.LearningRate), chunk.Average(point => point.GradientNorm))).ToList();
    }
}

/// <summary>Where a run stands, for a progress display.</summary>
/// <param name="Step">Steps done.</param>
/// <param name="Steps">Steps in all.</param>
/// <param name="Loss">Training loss, smoothed over the last steps.</param>
/// <param name="Validation">The last validation; null before the first.</param>
/// <param name="ItemsPerSecond">Items (tokens, images ...) per second over the last steps.</param>
/// <param name="Elapsed">Time spent, over all interruptions.</param>
/// <param name="Remaining">Time left at the present speed.</param>
public sealed record TrainingProgress(long Step, long Steps, double Loss, double? Validation, double ItemsPerSecond, TimeSpan Elapsed, TimeSpan Remaining);
