using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Heed.Lab.Drawing;
using Heed.Lab.Training;
using Heed.Models;
using Heed.Models.BrainEncoders;
using static TorchSharp.torch;

namespace Heed.Lab.Brains;

/// <summary>Trains a brain encoder (arXiv 2505.17329) or one of its baselines on a <see cref="SyntheticBrain"/> and draws where its queries look.</summary>
public sealed class BrainRecipe : TrainingRecipe
{
    private static readonly JsonSerializerOptions s_format = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <inheritdoc/>
    public override string Name => "brain";

    /// <inheritdoc/>
    public override string Summary => "A model that predicts responses of brain areas from feature maps of scenes, with the maps of its queries; --model transformer, spatial, linear or ridge.";

    /// <inheritdoc/>
    public override string ItemName => "scenes";

    /// <inheritdoc/>
    public override string ValidationUnit => "mean correlation";

    /// <inheritdoc/>
    public override IReadOnlyList<RecipeModel> Models => BrainSetting.Models;

    /// <inheritdoc/>
    public override RecipeResult Run(RecipeOptions options, Action<string> notice, Action<TrainingProgress> progress, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(notice);
        // The scenes live as long as the run.
        using var scope = NewDisposeScope();
        return options.Model is { } choice && BrainSetting.Parse(choice).Architecture == BrainArchitecture.Ridge ? Fit(options, choice, notice) : new Trained().Run(options, notice, progress, cancellation);
    }

    /// <summary>Where the queries of a model look in a few scenes; null where it has no maps.</summary>
    internal static byte[]? Maps(BrainModel model, SyntheticBrain brain, BrainScenes scenes, string title, int count = 5)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var prediction = model.Forward(scenes.Features.narrow(0, 0, count), withAttention: true);
        if (prediction.Attention.Count == 0)
        {
            return null;
        }

        var map = prediction.Attention[^1].to(float64).contiguous();
        var (queries, patches) = ((int)map.shape[1], (int)map.shape[2]);
        double[] weights = [.. map.data<double>()];
        long[] places = [.. scenes.Places.narrow(0, 0, count).contiguous().data<long>()];
        var rows = Enumerable.Range(0, count).Select(scene =>
        {
            var marks = new string?[patches];
            for (var area = 0; area < SyntheticBrain.Areas; area++)
            {
                marks[places[(scene * SyntheticBrain.Areas) + area]] = $"{(char)('A' + area)}";
            }

            return new QueryMapRow(
                marks, [.. Enumerable.Range(0, queries).Select(query => (IReadOnlyList<double>)new ArraySegment<double>(weights, ((scene * queries) + query) * patches, patches))],
                [.. Enumerable.Range(0, SyntheticBrain.Areas).Select(area => (int)places[(scene * SyntheticBrain.Areas) + area]), .. brain.LocationPatches.Select(patch => (int)patch)]);
        });
        return QueryMapPicture.Png(title, SyntheticBrain.Side, [.. Enumerable.Range(0, SyntheticBrain.Areas).Select(area => $"content {(char)('A' + area)}"), .. Enumerable.Range(1, SyntheticBrain.Areas).Select(area => $"location {area}")], [.. rows]);
    }

    private RecipeResult Fit(RecipeOptions options, string choice, Action<string> notice)
    {
        if (options.Resume || options.Steps is not null || options.Minutes is not null)
        {
            throw new ArgumentException("Ridge is fitted at once, in closed form: leave --resume, --steps and --minutes out.");
        }

        if (options.Attention is not null || options.TextFile is not null || options.DataFolder is not null)
        {
            throw new ArgumentException($"The recipe {Name} draws its own scenes and takes --model: leave --attention, --text and --data out.");
        }

        if (options.Threads > 0)
        {
            set_num_threads(options.Threads);
        }

        notice($"Fitting {choice} to {BrainSetting.TrainingScenes:N0} scenes.");
        var clock = Stopwatch.StartNew();
        var (_, training, test) = BrainSetting.Parse(choice).Data(options.Seed);
        var (result, left, right) = BrainSetting.Ridge(training, test);
        Directory.CreateDirectory(options.Output);
        var file = Path.Combine(options.Output, "training.json");
        AtomicFile.WriteText(file, JsonSerializer.Serialize(
            new Dictionary<string, object>
            {
                ["recipe"] = Name, ["model"] = choice, ["seed"] = options.Seed, ["seconds"] = Math.Round(clock.Elapsed.TotalSeconds, 1), ["penalties"] = new[] { left, right },
                ["measures"] = Named(result).ToDictionary(measure => measure.Name, measure => measure.Value),
            }, s_format) + "\n");
        return new([file], [.. Named(result).Select(measure => (measure.Name, measure.Value.ToString("0.###", CultureInfo.InvariantCulture))), ("model", choice)]);
    }

    private static IReadOnlyList<(string Name, double Value)> Named(BrainResult result) => [.. new (string Name, double? Value)[]
    {
        ("correlation, content areas", result.Content), ("correlation, location areas", result.Location), ("share of peaks on the category's object", result.OnObject), ("share of peaks on the area's patch", result.OnPatch),
        ("entropy of content maps, nats", result.ContentEntropy), ("entropy of location maps, nats", result.LocationEntropy),
    }.Where(measure => measure.Value is not null).Select(measure => (measure.Name, measure.Value!.Value))];

    /// <summary>What is trained step by step.</summary>
    private sealed class Trained : TaskRecipe<BrainModel>
    {
        private (SyntheticBrain Brain, BrainScenes Training, BrainScenes Test)? _data;

        public override string Name => "brain";

        public override string Summary => "";

        public override string ItemName => "scenes";

        public override IReadOnlyList<RecipeModel> Models => BrainSetting.Models;

        protected override string DefaultChoice => "transformer";

        protected override long DefaultSteps => 1000;

        protected override string Measure => "held-out mean correlation";

        protected override int DefaultThreads => 1;

        protected override BrainModel Create(string choice, int seed) => BrainSetting.Parse(choice).Make(seed);

        protected override void Prepare(RecipeOptions options, Action<string> notice)
        {
            var (brain, training, test) = BrainSetting.Parse(options.Model ?? DefaultChoice).Data(options.Seed);
            _data = (brain, training, test);
        }

        protected override TrainingLoop LoopOf(BrainModel model, string choice, int seed, long steps, string? checkpoint) =>
            BrainSetting.Parse(choice).Loop(model, _data!.Value.Training, _data.Value.Test, steps, seed, checkpoint);

        protected override IReadOnlyList<(string Name, double Value)> Measures(BrainModel model, TrainingHistory history) => Named(BrainSetting.Test(model, _data!.Value.Brain, _data.Value.Test));

        protected override IReadOnlyList<string> WriteMore(BrainModel model, string choice, RecipeOptions options, IReadOnlyList<(string Name, double Value)> measures)
        {
            if (Maps(model, _data!.Value.Brain, _data.Value.Test, $"Where the queries of {choice} look (letters: objects; rings: what decides the area's response)") is not { } png)
            {
                return [];
            }

            var file = Path.Combine(options.Output, "maps.png");
            AtomicFile.Write(file, stream => stream.Write(png));
            return [file];
        }
    }
}
