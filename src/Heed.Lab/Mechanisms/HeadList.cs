using System.Text.Json;

namespace Heed.Lab.Mechanisms;

/// <summary>Lists of heads on disk, as <c>heed search</c> writes them: JSON with <c>"heads": [[layer, head], ...]</c>, whatever stands beside it.</summary>
public static class HeadList
{
    /// <summary>How the names of such files end, by which an option tells a file from a list.</summary>
    public const string Extension = ".json";

    /// <summary>Reads a list.</summary>
    /// <param name="path">The file.</param>
    /// <returns>Layer and head of each, in the order of the file, none twice.</returns>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">It is no such list, or it is empty.</exception>
    public static IReadOnlyList<(int Layer, int Head)> Read(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"There is no file {path} with a list of heads: heed search writes one.", path);
        }

        (int Layer, int Head)[] heads;
        try
        {
            using var json = JsonDocument.Parse(File.ReadAllBytes(path));
            heads = [.. json.RootElement.GetProperty("heads").EnumerateArray().Select(pair => pair.GetArrayLength() == 2 ? (pair[0].GetInt32(), pair[1].GetInt32()) : throw new FormatException()).Distinct()];
        }
        catch (Exception error) when (error is JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            throw new InvalidDataException($"{path} is no list of heads: JSON with \"heads\": [[layer, head], ...] was expected.", error);
        }

        return heads.Length > 0 ? heads : throw new InvalidDataException($"{path} lists no head: the search kept none.");
    }
}
