using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>A module whose working can be shown over the picture: its gates, modulators, agents, scan responses or kernels. It hands them to the recorder that a viewer installed and computes nothing extra where there is none.</summary>
public interface IMapSource
{
    /// <summary>Who is told; null: nobody. Set by <see cref="MapRecorder.Install"/>.</summary>
    MapRecorder? Recorder { get; set; }
}

/// <summary>Maps over the picture that a module handed over in one forward pass.</summary>
/// <param name="Site">The module's name in the model, for example <c>layers.0.blocks.1.modulation</c>.</param>
/// <param name="Name">What the maps show, in a word or two: <c>gate</c>, <c>modulator</c>, <c>agent</c>, <c>attention</c> ...</param>
/// <param name="Labels">A label of every map.</param>
/// <param name="Values">float32 <c>[B, maps, H, W]</c> on the CPU, without gradient; any range.</param>
public sealed record RecordedMaps(string Site, string Name, IReadOnlyList<string> Labels, Tensor Values);

/// <summary>Collects the maps of every <see cref="IMapSource"/> within a model while it is installed.</summary>
public sealed class MapRecorder : IDisposable
{
    private readonly Dictionary<IMapSource, string> _sites = new(ReferenceEqualityComparer.Instance);
    private readonly List<RecordedMaps> _maps = [];

    private MapRecorder()
    {
    }

    /// <summary>What was recorded, in the order of the forward pass.</summary>
    public IReadOnlyList<RecordedMaps> Maps => _maps;

    /// <summary>Starts to record a model; dispose the recorder to stop and to free the maps.</summary>
    /// <param name="model">The model.</param>
    /// <exception cref="InvalidOperationException">Another recorder is installed there.</exception>
    public static MapRecorder Install(nn.Module model)
    {
        ArgumentNullException.ThrowIfNull(model);
        var recorder = new MapRecorder();
        // The enumeration leaves the model itself out.
        foreach (var (name, module) in model.named_modules().Prepend(("", model)))
        {
            if (module is IMapSource source)
            {
                if (source.Recorder is not null)
                {
                    recorder.Dispose();
                    throw new InvalidOperationException($"The module '{name}' is already being recorded: dispose the other recorder first.");
                }

                source.Recorder = recorder;
                recorder._sites[source] = name;
            }
        }

        return recorder;
    }

    /// <summary>Takes maps from a module.</summary>
    /// <param name="source">The module.</param>
    /// <param name="name">What the maps show.</param>
    /// <param name="maps"><c>[B, maps, H, W]</c>, any floating-point type; copied.</param>
    /// <param name="labels">A label of every map; null: their numbers.</param>
    /// <exception cref="ArgumentException">The maps have another shape, or there are not as many labels as maps.</exception>
    public void Record(IMapSource source, string name, Tensor maps, IReadOnlyList<string>? labels = null)
    {
        ArgumentNullException.ThrowIfNull(source);
        ArgumentNullException.ThrowIfNull(maps);
        if (maps.dim() != 4 || (labels is not null && labels.Count != maps.shape[1]))
        {
            throw new ArgumentException($"Maps must be [batch, maps, height, width] with a label each, not [{string.Join(", ", maps.shape)}] with {labels?.Count ?? 0} labels.", nameof(maps));
        }

        using var quiet = no_grad();
        var values = maps.detach().to(float32, CPU, copy: true).DetachFromDisposeScope();
        _maps.Add(new(_sites.GetValueOrDefault(source, ""), name, labels ?? [.. Enumerable.Range(0, (int)maps.shape[1]).Select(index => $"{name} {index}")], values));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var source in _sites.Keys)
        {
            source.Recorder = null;
        }

        _sites.Clear();
        foreach (var map in _maps)
        {
            map.Values.Dispose();
        }

        _maps.Clear();
    }
}
