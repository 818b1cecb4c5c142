using Heed.Lab.Training;
using Heed.Models.Texts;
using static TorchSharp.torch;

namespace Heed.Lab.Texts;

/// <summary>How a small language model is trained: AdamW with a warm-up and a cosine decay.</summary>
public sealed record TextTrainingOptions : ModelTrainingOptions
{
    /// <summary>The defaults: learning rate 3e-3 down to 0.05 of it, squared gradients averaged with 0.98.</summary>
    public TextTrainingOptions() => (LearningRate, FinalShare, Beta2) = (3e-3, 0.05, 0.98);

    /// <summary>Windows of a step.</summary>
    public int Batch { get; init; } = 16;

    /// <summary>Bytes of a window.</summary>
    public int Length { get; init; } = 128;

    /// <summary>Held-out windows of a validation between steps. The last word comes from all of them.</summary>
    public int Watched { get; init; } = 64;
}

/// <summary>How well a language model predicts held-out bytes.</summary>
/// <param name="Loss">Mean cross-entropy, nats a byte.</param>
/// <param name="Accuracy">Share of bytes that were thought the likeliest, 0 to 1.</param>
public readonly record struct TextMeasures(double Loss, double Accuracy)
{
    /// <summary>The loss in bits a byte.</summary>
    public double BitsPerByte => Loss / Math.Log(2);
}

/// <summary>What a trained language model does on held-out text, and how it came there.</summary>
/// <param name="HeldOut">On all held-out text.</param>
/// <param name="Points">Every step.</param>
/// <param name="Validations">Bits per byte between steps.</param>
/// <param name="Seconds">Time spent training and validating.</param>
public sealed record TextTrainingResult(TextMeasures HeldOut, IReadOnlyList<TrainingPoint> Points, IReadOnlyList<ValidationPoint> Validations, double Seconds);

/// <summary>Trains small language models on bytes: for the recipe and the reproductions alike.</summary>
public static class TextTraining
{
    private const int WindowsAtOnce = 32;

    /// <summary>Trains a model to the end of the plan; it is left in evaluation mode.</summary>
    /// <param name="model">The model, with fresh weights (<c>manual_seed</c> before it is made decides them), for <see cref="TextData.Vocabulary"/> tokens.</param>
    /// <param name="data">The text.</param>
    /// <param name="options">How.</param>
    /// <param name="progress">Told after every step; null: nobody.</param>
    /// <param name="cancellation">Stops after the current step.</param>
    /// <exception cref="ArgumentException">The text does not suit the model.</exception>
    /// <exception cref="OperationCanceledException">The run was cancelled.</exception>
    /// <exception cref="InvalidOperationException">The loss stopped being a number.</exception>
    public static TextTrainingResult Train(LanguageModel model, TextData data, TextTrainingOptions options, Action<TrainingProgress>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(options);
        using var scope = NewDisposeScope();
        return options.OnItsThreads<TextTrainingResult>(() =>
        {
            using var loop = Loop(model, data, options);
            loop.Run(progress, cancellation);
            return new(Test(model, data, options.Length, cancellation: cancellation), loop.History.Points, loop.History.Validations, loop.History.Seconds);
        });
    }

    /// <summary>What trains a model, for callers that resume.</summary>
    /// <param name="model">The model.</param>
    /// <param name="data">The text.</param>
    /// <param name="options">How; the number of threads is the caller's to set.</param>
    /// <param name="identity">Settings beyond the options that decide the result, a line <c>name=value</c> each.</param>
    /// <param name="checkpoint">Where checkpoints go; null: none.</param>
    /// <exception cref="ArgumentException">The text does not suit the model.</exception>
    public static TrainingLoop Loop(LanguageModel model, TextData data, TextTrainingOptions options, string identity = "", string? checkpoint = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(data);
        ArgumentNullException.ThrowIfNull(options);
        if (model.Vocabulary < TextData.Vocabulary || model.Length < options.Length)
        {
            throw new ArgumentException($"Windows of {options.Length} bytes need a model of {TextData.Vocabulary} tokens and that length; this one has {model.Vocabulary} and {model.Length}.", nameof(model));
        }

        if (data.HeldOutWindows(options.Length) < 1)
        {
            throw new ArgumentException($"The held-out text has {data.HeldOutBytes:N0} bytes, less than one window of {options.Length}: give a longer text.", nameof(data));
        }

        var batches = data.Batches(options.Batch, options.Length, options.Seed);
        return new TrainingLoop(model, options.Plan, string.Join('\n', identity, $"seed={options.Seed}", $"text={data.Corpus.Sha256[..12]}", TrainingCheckpoint.StepsLine(options.Steps), $"options={options}"), checkpoint)
        {
            Loss = step =>
            {
                options.SeedStep(step);
                var (input, target) = batches(step);
                var loss = nn.functional.cross_entropy(model.forward(input).view(-1, model.Vocabulary), target.view(-1));
                return model.ExtraLoss() is { } extra ? loss + extra : loss;
            },
            Items = _ => (long)options.Batch * options.Length,
            Validation = () => Test(model, data, options.Length, options.Watched).BitsPerByte,
        };
    }

    /// <summary>How well a model predicts held-out text, in evaluation mode. Leaves the mode as it was.</summary>
    /// <param name="model">The model.</param>
    /// <param name="data">The text.</param>
    /// <param name="length">Bytes of a window, each read on its own.</param>
    /// <param name="windows">How many windows, spread over the text; null: all.</param>
    /// <param name="cancellation">Stops between batches.</param>
    public static TextMeasures Test(LanguageModel model, TextData data, int length, int? windows = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(data);
        var all = data.HeldOutWindows(length);
        var count = Math.Min(windows ?? all, all);
        var (mode, nats, right) = (model.training, 0.0, 0L);
        using var quiet = no_grad();
        model.eval();
        try
        {
            for (var first = 0; first < count; first += WindowsAtOnce)
            {
                cancellation.ThrowIfCancellationRequested();
                using var scope = NewDisposeScope();
                var taken = Math.Min(WindowsAtOnce, count - first);
                var parts = Enumerable.Range(first, taken).Select(index => data.HeldOut((int)((long)index * all / count), 1, length)).ToList();
                var (input, target) = (cat([.. parts.Select(part => part.Input)]), cat([.. parts.Select(part => part.Target)]).view(-1));
                var logits = model.forward(input).view(-1, model.Vocabulary);
                nats += nn.functional.cross_entropy(logits, target, reduction: nn.Reduction.Sum).to(float64).item<double>();
                right += logits.argmax(1).eq(target).sum().item<long>();
            }
        }
        finally
        {
            model.train(mode);
        }

        return new(nats / ((double)count * length), right / ((double)count * length));
    }
}
