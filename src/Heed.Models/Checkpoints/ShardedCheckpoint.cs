using System.Text.Json;
using static TorchSharp.torch;

namespace Heed.Models.Checkpoints;

/// <summary>The tensors of a model folder: one <c>model.safetensors</c>, or <c>model.safetensors.index.json</c> and its shards, as one.</summary>
public sealed class ShardedCheckpoint : IDisposable
{
    /// <summary>Name of the file where there is one.</summary>
    public const string SingleFile = "model.safetensors";

    /// <summary>Name of the index where there are several.</summary>
    public const string IndexFile = "model.safetensors.index.json";

    private readonly List<SafetensorsReader> _shards = [];
    private readonly Dictionary<string, SafetensorsReader> _owner = new(StringComparer.Ordinal);

    /// <summary>Opens the checkpoint of a folder and checks all headers.</summary>
    /// <param name="folder">The model folder.</param>
    /// <param name="stem">What the files are called before <c>.safetensors</c>: diffusion models have <c>diffusion_pytorch_model</c>.</param>
    /// <exception cref="FileNotFoundException">The folder has neither file.</exception>
    /// <exception cref="InvalidDataException">A file is broken, a shard is missing or outside the folder, or the index and a shard disagree.</exception>
    public ShardedCheckpoint(string folder, string stem = "model")
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        try
        {
            var single = Path.Combine(folder, SingleFile.Replace("model", stem, StringComparison.Ordinal));
            var index = Path.Combine(folder, IndexFile.Replace("model", stem, StringComparison.Ordinal));
            if (File.Exists(single))
            {
                Add(new SafetensorsReader(single));
            }
            else if (File.Exists(index))
            {
                OpenShards(folder, index);
            }
            else
            {
                throw new FileNotFoundException($"The folder {folder} has neither {Path.GetFileName(single)} nor {Path.GetFileName(index)}.");
            }
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>The names of all tensors.</summary>
    public IReadOnlyCollection<string> Names => _owner.Keys;

    /// <summary>The header's entry of a tensor.</summary>
    /// <exception cref="KeyNotFoundException">There is no such tensor.</exception>
    public SafetensorsEntry Entry(string name) => Owner(name).Entries[name];

    /// <summary>Whether there is a tensor of that name.</summary>
    public bool Contains(string name) => _owner.ContainsKey(name);

    /// <inheritdoc cref="SafetensorsReader.Read"/>
    public Tensor Read(string name) => Owner(name).Read(name);

    /// <inheritdoc cref="SafetensorsReader.ReadInto"/>
    public void ReadInto(string name, Tensor target) => Owner(name).ReadInto(name, target);

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var shard in _shards)
        {
            shard.Dispose();
        }
    }

    private static Dictionary<string, string> ReadIndex(string index)
    {
        try
        {
            using var document = JsonDocument.Parse(File.ReadAllBytes(index));
            if (document.RootElement.ValueKind != JsonValueKind.Object || !document.RootElement.TryGetProperty("weight_map", out var map)
                || map.ValueKind != JsonValueKind.Object || map.EnumerateObject().Any(entry => entry.Value.ValueKind != JsonValueKind.String))
            {
                throw new InvalidDataException($"{index} has no weight_map from tensor names to file names.");
            }

            var result = new Dictionary<string, string>(StringComparer.Ordinal);
            foreach (var entry in map.EnumerateObject())
            {
                if (!result.TryAdd(entry.Name, entry.Value.GetString()!))
                {
                    throw new InvalidDataException($"{index} places the tensor '{entry.Name}' twice.");
                }
            }

            return result;
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"{index} is not valid JSON ({error.Message.Split(". ")[0].TrimEnd('.')}).", error);
        }
    }

    private void OpenShards(string folder, string index)
    {
        var map = ReadIndex(index);
        foreach (var file in map.Values.Distinct(StringComparer.Ordinal))
        {
            // A shard lies in the folder itself: anything else is an index that reads files it has no business with.
            if (file.Length == 0 || file is "." or ".." || file.IndexOfAny(['/', '\\', '\0', ':']) >= 0)
            {
                throw new InvalidDataException($"{index} names the shard '{file}', which is not a plain file name.");
            }

            var path = Path.Combine(folder, file);
            if (!File.Exists(path))
            {
                throw new InvalidDataException($"{index} names the shard {file}, which is not in the folder.");
            }

            Add(new SafetensorsReader(path), map);
        }

        if (map.Keys.FirstOrDefault(name => !_owner.ContainsKey(name)) is { } missing)
        {
            throw new InvalidDataException($"{index} places the tensor '{missing}' in {map[missing]}, which does not have it.");
        }
    }

    private void Add(SafetensorsReader shard, Dictionary<string, string>? map = null)
    {
        _shards.Add(shard);
        foreach (var name in shard.Entries.Keys)
        {
            if (map is not null && (!map.TryGetValue(name, out var file) || file != Path.GetFileName(shard.Path)))
            {
                continue;
            }

            _owner.Add(name, shard);
        }
    }

    private SafetensorsReader Owner(string name) => _owner.TryGetValue(name, out var shard)
        ? shard
        : throw new KeyNotFoundException($"The checkpoint has no tensor named '{name}'.");
}
