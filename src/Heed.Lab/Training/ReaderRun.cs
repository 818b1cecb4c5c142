namespace Heed.Lab.Training;

/// <summary>A run of <see cref="ReaderRecipe"/> in numbers, as <c>training.json</c> keeps them.</summary>
internal sealed record ReaderRun
{
    /// <summary>The command that gives this run again.</summary>
    public required string Command { get; init; }

    public required int Seed { get; init; }

    /// <summary>The mechanism that it was trained with in place of its own attention; null: none.</summary>
    public string? Attention { get; init; }

    public required long Steps { get; init; }

    public required int TokensPerStep { get; init; }

    /// <summary>Tokens trained on, repetitions counted.</summary>
    public required long Tokens { get; init; }

    /// <summary>Time spent on steps and validations.</summary>
    public required double Minutes { get; init; }

    public required int Threads { get; init; }

    public required long Parameters { get; init; }

    public required string Text { get; init; }

    public required string TextSha256 { get; init; }

    public required int TrainingTexts { get; init; }

    public required long TrainingBytes { get; init; }

    /// <summary>Tokens of the training texts, once.</summary>
    public required long TrainingTokens { get; init; }

    public required int HeldOutTexts { get; init; }

    public required long HeldOutBytes { get; init; }

    /// <summary>The held-out text that is shipped as page.txt.</summary>
    public required string Page { get; init; }

    public required string WeightType { get; init; }

    public required double HeldOutBitsPerByteBeforeRounding { get; init; }

    /// <summary>On all held-out texts, by the weights as they are shipped.</summary>
    public required double HeldOutBitsPerByte { get; init; }

    public required IReadOnlyList<string> Windows { get; init; }

    public required TrainingPlan Plan { get; init; }

    /// <summary>Bits per byte on some of the held-out texts, by step.</summary>
    public required IReadOnlyList<ValidationPoint> Validations { get; init; }

    /// <summary>Steps averaged into points: training loss in nats per token.</summary>
    public required IReadOnlyList<TrainingPoint> Training { get; init; }
}
