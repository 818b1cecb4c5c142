using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization;
using Heed.Models;

namespace Heed.Lab.Search;

/// <summary>Measurements kept on disk as soon as they are known, in a file of their own for everything that decides them (model, data, edit): a search that was stopped goes on where it was, and one that was done costs nothing again.</summary>
public sealed class MetricCache
{
    private static readonly JsonSerializerOptions s_format = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, NumberHandling = JsonNumberHandling.AllowNamedFloatingPointLiterals, WriteIndented = true };
    private readonly Contents _contents;

    /// <summary>Opens the cache of an identity.</summary>
    /// <param name="folder">Folder of all caches; made with the first measurement.</param>
    /// <param name="identity">Everything that decides the measurements, by name.</param>
    /// <exception cref="InvalidDataException">The cache's file is damaged.</exception>
    public MetricCache(string folder, IEnumerable<(string Name, string Value)> identity)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        ArgumentNullException.ThrowIfNull(identity);
        var lines = identity.ToDictionary(line => line.Name, line => line.Value, StringComparer.Ordinal);
        // Lengths before texts, so that no two identities have the same lines.
        var text = string.Concat(lines.OrderBy(line => line.Key, StringComparer.Ordinal).Select(line => $"{line.Key.Length}:{line.Key}={line.Value.Length}:{line.Value}\n"));
        Path = System.IO.Path.Combine(folder, Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(text)))[..24] + ".json");
        _contents = new(lines, []);
        if (!File.Exists(Path))
        {
            return;
        }

        try
        {
            _contents = JsonSerializer.Deserialize<Contents>(File.ReadAllText(Path), s_format) is { Values: not null } found ? found : throw new JsonException();
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"'{Path}' is not what an earlier search left: delete it to measure afresh.", error);
        }
    }

    /// <summary>The file.</summary>
    public string Path { get; }

    /// <summary>Number of measurements.</summary>
    public int Count => _contents.Values.Count;

    /// <summary>A measurement: the kept one, or a new one, which is kept.</summary>
    /// <param name="name">Its name within the identity.</param>
    /// <param name="measure">Measures it.</param>
    /// <param name="isKept">Whether it was kept before.</param>
    public double Get(string name, Func<double> measure, out bool isKept)
    {
        ArgumentNullException.ThrowIfNull(measure);
        if (isKept = _contents.Values.TryGetValue(name, out var known))
        {
            return known;
        }

        var value = measure();
        _contents.Values[name] = value;
        AtomicFile.WriteText(Path, JsonSerializer.Serialize(_contents, s_format));
        return value;
    }

    private sealed record Contents(Dictionary<string, string> Identity, Dictionary<string, double> Values);
}
