using Heed.Lab.Training;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Images;

/// <summary>How a vision model is trained: AdamW with a warm-up and a cosine decay.</summary>
public sealed record ImageTrainingOptions : ModelTrainingOptions
{
    /// <summary>The defaults: learning rate 2e-3 down to 0.01 of it, squared gradients averaged with 0.99.</summary>
    public ImageTrainingOptions() => (LearningRate, FinalShare, Beta2) = (2e-3, 0.01, 0.99);

    /// <summary>Pictures of a step.</summary>
    public int Batch { get; init; } = 64;

    /// <summary>Label smoothing of the loss.</summary>
    public double LabelSmoothing { get; init; }

    /// <summary>Held-out pictures of a validation between steps: the first so many. The last word comes from all of them.</summary>
    public int Watched { get; init; } = 1000;
}

/// <summary>What a trained vision model does on held-out pictures, and how it came there.</summary>
/// <param name="Accuracy">Share of all held-out pictures whose class is found, 0 to 1.</param>
/// <param name="Loss">Mean cross-entropy on them, nats.</param>
/// <param name="Points">Every step.</param>
/// <param name="Validations">Accuracy between steps.</param>
/// <param name="Seconds">Time spent training and validating.</param>
public sealed record ImageTrainingResult(double Accuracy, double Loss, IReadOnlyList<TrainingPoint> Points, IReadOnlyList<ValidationPoint> Validations, double Seconds);

/// <summary>Trains vision models on pictures: for the recipe, the comparison and the reproductions alike.</summary>
public static class ImageTraining
{
    private const int PicturesAtOnce = 250;

    /// <summary>Trains a model to the end of the plan; it is left in evaluation mode.</summary>
    /// <param name="model">The model, with fresh weights (<c>manual_seed</c> before it is made decides them).</param>
    /// <param name="train">The pictures to train on.</param>
    /// <param name="test">The held-out pictures.</param>
    /// <param name="options">How.</param>
    /// <param name="progress">Told after every step; null: nobody.</param>
    /// <param name="cancellation">Stops after the current step.</param>
    /// <exception cref="ArgumentException">The pictures do not suit the model.</exception>
    /// <exception cref="OperationCanceledException">The run was cancelled.</exception>
    public static ImageTrainingResult Train(
        ImageClassifier model, ImageData train, ImageData test, ImageTrainingOptions options, Action<TrainingProgress>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(options);
        using var scope = NewDisposeScope();
        return options.OnItsThreads<ImageTrainingResult>(() =>
        {
            using var loop = Loop(model, train, test, options);
            loop.Run(progress, cancellation);
            var (accuracy, loss) = Test(model, test, cancellation: cancellation);
            return new(accuracy, loss, loop.History.Points, loop.History.Validations, loop.History.Seconds);
        });
    }

    /// <summary>What trains a model, for callers that resume.</summary>
    /// <param name="model">The model.</param>
    /// <param name="train">The pictures to train on.</param>
    /// <param name="test">The held-out pictures; validations tell the share of the first <see cref="ImageTrainingOptions.Watched"/> whose class is found.</param>
    /// <param name="options">How; the number of threads is the caller's to set.</param>
    /// <param name="identity">Settings beyond the options that decide the result, a line <c>name=value</c> each.</param>
    /// <param name="checkpoint">Where checkpoints go; null: none.</param>
    /// <exception cref="ArgumentException">The pictures do not suit the model.</exception>
    public static TrainingLoop Loop(ImageClassifier model, ImageData train, ImageData test, ImageTrainingOptions options, string identity = "", string? checkpoint = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(train);
        ArgumentNullException.ThrowIfNull(test);
        ArgumentNullException.ThrowIfNull(options);
        foreach (var data in new[] { train, test })
        {
            if (data.Task.Channels != model.Channels || data.Task.Classes > model.Classes)
            {
                throw new ArgumentException($"The model tells {model.Classes} classes of pictures with {model.Channels} channels apart, the data have {data.Task.Classes} and {data.Task.Channels}.", nameof(model));
            }
        }

        var batches = train.Batches(options.Batch, options.Seed);
        var size = Math.Min(options.Batch, train.Count);
        var watched = test.Take(Math.Min(options.Watched, test.Count));
        return new TrainingLoop(model, options.Plan, string.Join('\n', identity, $"seed={options.Seed}", TrainingCheckpoint.StepsLine(options.Steps), $"options={options}"), checkpoint)
        {
            Loss = step =>
            {
                options.SeedStep(step);
                var (images, labels) = batches(step);
                var loss = model.Loss(images, labels, options.LabelSmoothing);
                return model.ExtraLoss() is { } extra ? loss + extra : loss;
            },
            Items = _ => size,
            Validation = () => Test(model, watched).Accuracy,
        };
    }

    /// <summary>How well a model does on pictures, in evaluation mode. Leaves the mode as it was.</summary>
    /// <param name="model">The model.</param>
    /// <param name="data">The pictures.</param>
    /// <param name="count">How many of them, from the first on; null: all.</param>
    /// <param name="cancellation">Stops between batches.</param>
    /// <returns>Share of pictures whose class is found, and the mean cross-entropy in nats.</returns>
    public static (double Accuracy, double Loss) Test(ImageClassifier model, ImageData data, int? count = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(data);
        var (training, all) = (model.training, Math.Min(count ?? data.Count, data.Count));
        model.eval();
        try
        {
            using var quiet = no_grad();
            long right = 0;
            double nats = 0;
            for (var first = 0; first < all; first += PicturesAtOnce)
            {
                cancellation.ThrowIfCancellationRequested();
                using var scope = NewDisposeScope();
                var (images, labels) = data.Range(first, Math.Min(PicturesAtOnce, all - first));
                var logits = model.forward(images);
                right += logits.argmax(1).eq(labels).sum().item<long>();
                nats += nn.functional.cross_entropy(logits, labels, reduction: nn.Reduction.Sum).item<float>();
            }

            return (right / (double)all, nats / all);
        }
        finally
        {
            model.train(training);
        }
    }
}
