using System.Diagnostics;
using Heed.Lab.Images;
using Heed.Lab.Mechanisms;
using Heed.Models.Images;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>Looks into a vision model while it reads a picture.</summary>
public static class ImageInspector
{
    // A byte each: as large as a page may be.
    private const long MostWeights = 12L << 20;

    // Of the features, along which the receptive field is the mean.
    private const int Directions = 4;

    // More of one kind at one place are hard to tell apart.
    private const int MostMapsOfASite = 64;

    /// <summary>Looks at a picture: probabilities, receptive field, every map that a mixer hands over, attention.</summary>
    /// <param name="model">The model; it is left in evaluation mode.</param>
    /// <param name="card">What it is.</param>
    /// <param name="picture">The picture, as the card's task says.</param>
    /// <param name="others">Pictures over which the receptive field is averaged; null: this one only.</param>
    /// <param name="edit">An edit and its name: the picture is looked at with and without it; null: none.</param>
    /// <param name="cancellation">Stops between the passes.</param>
    /// <exception cref="ArgumentException">The picture is not of the task's size, or the model lacks what the edit names.</exception>
    public static ImageInspection Run(
        ImageClassifier model, ImageModelCard card, InspectedPicture picture, ImageData? others = null, (string Name, Func<EditTarget, IDisposable> Apply)? edit = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(card);
        ArgumentNullException.ThrowIfNull(picture);
        var task = card.Task;
        if (picture.Pixels.Length != task.Channels * task.Size * task.Size)
        {
            throw new ArgumentException($"The picture has {picture.Pixels.Length:N0} values, and the model reads {task.Channels} x {task.Size} x {task.Size}.", nameof(picture));
        }

        var places = new Places();
        ImageInspection trained;
        using (model.Hooks.Install(places))
        using (model.Hooks.Install(places.Streams))
        {
            trained = Look(model, card, picture, others, cancellation);
        }

        if (edit is not { } change)
        {
            return trained;
        }

        if (places.Heads.Count == 0)
        {
            throw new ArgumentException($"{card.Model} has no attention and no blocks that show their hidden states, so there is nothing in it for '{change.Name}' to change: leave the edit out, or take a transformer.");
        }

        using var applied = change.Apply(new(model.Hooks, places.Heads.Count, places.Heads.Max()) { HeadsOfLayers = places.Heads, Materialize = true });
        var edited = Look(model, card, picture, others, cancellation);
        ModelEdit.RequireFinite(edited.Probabilities);
        return edited with { Edit = change.Name, Before = trained };
    }

    private static ImageInspection Look(ImageClassifier model, ImageModelCard card, InspectedPicture picture, ImageData? others, CancellationToken cancellation)
    {
        using var scope = NewDisposeScope();
        var clock = Stopwatch.StartNew();
        model.eval();
        var task = card.Task;
        var image = card.Scale.Apply(tensor(picture.Pixels).view(1, task.Channels, task.Size, task.Size));
        var notices = new List<string>();
        var (probabilities, maps, heads) = Look(model, image, notices);
        cancellation.ThrowIfCancellationRequested();
        var field = FieldOf(model, others is null ? image : others.Range(0, others.Count).Images);
        return new(
            card.Model, card.Parameters, double.IsFinite(card.Accuracy) ? card.Accuracy : null, task, card.ClassNames, picture, probabilities, field, maps, heads, notices, clock.Elapsed.TotalSeconds);
    }

    /// <summary>The effective receptive field of a model (arXiv 1701.04128): how much each pixel moves the centre of its features, mean over a few fixed random directions of the channels.</summary>
    /// <param name="model">The model, in evaluation mode.</param>
    /// <param name="images"><c>[B, C, side, side]</c>, normalised; the field is their mean.</param>
    public static ReceptiveField FieldOf(ImageClassifier model, Tensor images)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(images);
        using var scope = NewDisposeScope();
        using var enabled = enable_grad();
        var input = images.detach().clone().requires_grad_(true);
        var features = model.Features(input);
        var centre = features[.., .., features.shape[2] / 2, features.shape[3] / 2];
        using var generator = new Generator(1);
        using TorchSharp.Scalar half = 0.5;
        var values = new float[images.shape[2] * images.shape[3]];
        for (var direction = 0; direction < Directions; direction++)
        {
            // The plain sum of channels says nothing behind a layer norm: it is the same for every picture.
            var signs = rand([centre.shape[1]], dtype: float32, generator: generator).sub(half).sign().to(centre.dtype);
            var gradient = autograd.grad([centre.matmul(signs).sum()], [input], retain_graph: true)[0].abs().mean([0L, 1L]).to(float32).cpu().contiguous();
            values = [.. values.Zip(gradient.data<float>().ToArray(), (sum, value) => sum + (value / Directions))];
        }

        var largest = Math.Max(values.Max(), float.Epsilon);
        var side = (int)images.shape[3];
        return new(side, [.. values.Select(value => value / largest)], HalfSide(values, side, CentreOf(side, features.shape[2])), (int)images.shape[0]);
    }

    // The centre cell of the features lies over these pixels.
    private static double CentreOf(int side, long cells) => ((cells / 2) + 0.5) * side / cells;

    private static int HalfSide(float[] values, int side, double centre)
    {
        double all = values.Sum(value => (double)value), within = 0;
        for (var size = 1; size < 2 * side; size++)
        {
            within = 0;
            for (var row = 0; row < side; row++)
            {
                for (var column = 0; column < side; column++)
                {
                    within += Math.Max(Math.Abs(row + 0.5 - centre), Math.Abs(column + 0.5 - centre)) <= size / 2.0 ? values[(row * side) + column] : 0;
                }
            }

            if (within >= all / 2)
            {
                return Math.Min(size, side);
            }
        }

        return side;
    }

    private static (double[] Probabilities, List<InspectedMap> Maps, List<InspectedImageHead> Heads) Look(ImageClassifier model, Tensor image, List<string> notices)
    {
        using var quiet = no_grad();
        using var recorder = MapRecorder.Install(model);
        using var probe = new AttentionMapProbe(budget: 4 * MostWeights);
        using var hooks = model.Hooks.Install(probe);
        var norms = new NormMaps();
        using var watched = model.Hooks.Install(norms);
        var probabilities = model.forward(image).to(float64).softmax(1)[0].data<double>().ToArray();
        var maps = new List<InspectedMap>();
        foreach (var recorded in recorder.Maps)
        {
            var (count, height, width) = ((int)Math.Min(recorded.Values.shape[1], MostMapsOfASite), (int)recorded.Values.shape[2], (int)recorded.Values.shape[3]);
            var values = recorded.Values[0].contiguous().data<float>().ToArray();
            maps.AddRange(Enumerable.Range(0, count).Select(index => new InspectedMap(recorded.Site, recorded.Name, recorded.Labels[index], height, width, values.AsSpan(index * height * width, height * width).ToArray())));
            if (count < recorded.Values.shape[1])
            {
                notices.Add($"{recorded.Site} hands over {recorded.Values.shape[1]} maps ({recorded.Name}); the first {count} are shown.");
            }
        }

        maps.AddRange(norms.Maps);
        var heads = new List<InspectedImageHead>();
        long weights = 0;
        foreach (var site in probe.Sites)
        {
            var map = probe[site];
            var name = site.Name ?? "attention";
            var side = SideOf(map.shape[3]);
            var extra = map.shape[3] - ((long)side * side);
            if (map.shape[0] != 1 || map.shape[2] != map.shape[3] || side < 2)
            {
                notices.Add($"{name} attends in {map.shape[0]} groups of {map.shape[2]} queries and {map.shape[3]} keys, which is no map over the picture: its weights are not drawn.");
                continue;
            }

            // A class token stands first.
            var grid = map.narrow(2, extra, map.shape[2] - extra).narrow(3, extra, map.shape[3] - extra).to(float32).contiguous();
            if ((weights += grid.numel()) > MostWeights)
            {
                notices.Add($"{name} and what follows would make the page too large: their weights are not drawn.");
                break;
            }

            heads.AddRange(Enumerable.Range(0, (int)grid.shape[1]).Select(head =>
            {
                var values = grid[0, head].contiguous().data<float>().ToArray();
                return new InspectedImageHead(name, head, side, values, MeanDistance(values, side));
            }));
        }

        notices.AddRange(probe.LeftOut.Select(site => $"{site.Name ?? "attention"} has too many positions: its weights are not drawn."));
        return (probabilities, maps, heads);
    }

    /// <summary>What an edit can name in a model: its layers, and the heads of each.</summary>
    private sealed class Places : AttentionHook
    {
        public Places() => Streams = new Blocks(this);

        public List<int> Heads { get; } = [];

        public StreamHook Streams { get; }

        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Map;

        public override void OnMap(AttentionCall call) => Note(call.Site.Layer, (int)call.Query.shape[1]);

        private void Note(int layer, int heads)
        {
            while (Heads.Count <= layer)
            {
                Heads.Add(0);
            }

            Heads[layer] = Math.Max(Heads[layer], heads);
        }

        private sealed class Blocks(Places places) : StreamHook
        {
            public override bool ActsAt(StreamSite site)
            {
                places.Note(site.Layer, 0);
                return false;
            }

            public override Tensor OnStates(StreamSite site, Tensor states) => states;
        }
    }

    /// <summary>Norms of the residual stream over the picture, in which outlier tokens stand out (arXiv 2309.16588).</summary>
    private sealed class NormMaps : StreamHook
    {
        public List<InspectedMap> Maps { get; } = [];

        public override bool ActsAt(StreamSite site) => site.Point == StreamPoint.BlockOutput;

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            using var scope = NewDisposeScope();
            var side = SideOf(states.shape[1]);
            if (side >= 2)
            {
                // A class token stands first, and is no place of the picture.
                var extra = states.shape[1] - ((long)side * side);
                var sinks = SinkMask.FromNorm(states.narrow(0, 0, 1).narrow(1, extra, states.shape[1] - extra));
                var outliers = sinks.IsSink.sum().item<long>();
                Maps.Add(new(site.Name, "norm over the median", outliers == 0 ? "no outlier" : $"{outliers} outlier{(outliers == 1 ? "" : "s")}", side, side, sinks.Score.to(float32).contiguous().data<float>().ToArray()));
            }

            return states;
        }
    }

    private static int SideOf(long keys)
    {
        var side = (int)Math.Sqrt(keys);
        // One more than a square is a class token and a square.
        return (long)side * side == keys || ((long)side * side) + 1 == keys ? side : 0;
    }

    private static double MeanDistance(float[] weights, int side)
    {
        var count = side * side;
        double distance = 0, mass = 0;
        for (var query = 0; query < count; query++)
        {
            for (var key = 0; key < count; key++)
            {
                double weight = weights[(query * count) + key];
                distance += weight * double.Hypot((query / side) - (key / side), (query % side) - (key % side));
                mass += weight;
            }
        }

        return mass > 0 ? distance / mass : 0;
    }
}
