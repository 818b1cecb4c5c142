using static TorchSharp.torch;

namespace Heed.Models.Checkpoints;

/// <summary>Fills models from checkpoints in the names of their authors.</summary>
internal static class NamedTensors
{
    // What models wrapped for several devices put before every name.
    private const string WrapperPrefix = "module.";

    // PyTorch counts batches for averaging that no model here uses; old checkpoints do not have it.
    private const string BatchCounter = ".num_batches_tracked";

    private const int NamesTold = 3;

    /// <summary>Fills a model: all of it, or where anything does not fit, nothing.</summary>
    /// <param name="model">The model.</param>
    /// <param name="nameOf">What the model calls a tensor of the checkpoint; null: it does not need it.</param>
    /// <param name="path">A file that PyTorch wrote, or a safetensors file.</param>
    /// <param name="key">For a file that PyTorch wrote: under which key the tensors lie; null: see <see cref="TorchCheckpointReader"/>.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">The file is broken, or tensors are missing, superfluous or of another shape.</exception>
    public static void Load(nn.Module model, Func<string, string?> nameOf, string path, string? key)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (File.Exists(path) && (TorchCheckpointReader.IsArchive(path) || TorchCheckpointReader.IsOldFormat(path)))
        {
            using var reader = new TorchCheckpointReader(path, key);
            Load(model, nameOf, path, reader.Entries.ToDictionary(entry => entry.Key, entry => entry.Value.Shape), reader.Read);
        }
        else
        {
            using var reader = new SafetensorsReader(path);
            Load(model, nameOf, path, reader.Entries.ToDictionary(entry => entry.Key, entry => entry.Value.Shape), reader.Read);
        }
    }

    private static void Load(nn.Module model, Func<string, string?> nameOf, string path, Dictionary<string, IReadOnlyList<long>> stored, Func<string, Tensor> read)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var prefix = stored.Count > 0 && stored.Keys.All(name => name.StartsWith(WrapperPrefix, StringComparison.Ordinal)) ? WrapperPrefix.Length : 0;
        var targets = model.state_dict();
        var sources = new Dictionary<string, string>(StringComparer.Ordinal);
        var (superfluous, misshapen) = (new List<string>(), new List<string>());
        foreach (var (name, shape) in stored)
        {
            if (nameOf(name[prefix..]) is not { } wanted)
            {
                continue;
            }

            if (!targets.TryGetValue(wanted, out var target) || !sources.TryAdd(wanted, name))
            {
                superfluous.Add(name);
            }
            else if (!shape.SequenceEqual(target.shape))
            {
                misshapen.Add($"{name} [{string.Join(", ", shape)}] where the model has [{string.Join(", ", target.shape)}]");
            }
        }

        var missing = targets.Keys.Where(name => !sources.ContainsKey(name) && !name.EndsWith(BatchCounter, StringComparison.Ordinal)).ToList();
        string[] mistakes = [.. new[] { Told("lacks", missing), Told("has in excess", superfluous), Told("has in another shape", misshapen) }.OfType<string>()];
        if (mistakes.Length > 0)
        {
            throw new InvalidDataException($"{path} does not fit the model {model.GetName()}: it {string.Join("; it ", mistakes)}.");
        }

        // Everything is read before anything is written.
        var values = sources.Select(source => (Target: targets[source.Key], Value: read(source.Value))).ToList();
        foreach (var (target, value) in values)
        {
            target.copy_(value);
        }
    }

    private static string? Told(string how, List<string> names) => names.Count == 0 ? null
        : $"{how} {names.Count:N0} tensor{(names.Count == 1 ? "" : "s")} ({string.Join(", ", names.Take(NamesTold))}{(names.Count > NamesTold ? " ..." : "")})";
}
