using System.Text.Json;
using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Verification;

/// <summary>One golden case: inputs, parameters, outputs and gradients that the authors' own code or an independent formulation produced.</summary>
/// <remarks>Tensors: <c>in.*</c> inputs, <c>param.*</c> parameters, <c>out.*</c> outputs, <c>gradout.X</c> the gradient that arrives at output X, <c>grad.in.*</c> and
/// <c>grad.param.*</c> the gradients that leave.</remarks>
public sealed class GoldenCase : IDisposable
{
    private readonly SafetensorsReader _reader;
    private readonly JsonElement _configuration;

    private GoldenCase(SafetensorsReader reader, string operation)
    {
        _reader = reader;
        Operation = operation;
        using var document = JsonDocument.Parse(reader.Metadata.GetValueOrDefault("config", "{}"));
        _configuration = document.RootElement.Clone();
        AbsoluteTolerance = Tolerance("atol");
        RelativeTolerance = Tolerance("rtol");
    }

    /// <summary>The file.</summary>
    public string Path => _reader.Path;

    /// <summary>The operation that the case is about, <c>paper/Name</c>.</summary>
    public string Operation { get; }

    /// <summary>Absolute part of the tolerance.</summary>
    public double AbsoluteTolerance { get; }

    /// <summary>Relative part of the tolerance.</summary>
    public double RelativeTolerance { get; }

    /// <summary>Names of all tensors of the case.</summary>
    public IEnumerable<string> Names => _reader.Entries.Keys;

    /// <summary>Opens a file.</summary>
    /// <returns>The case; null where the file is not one (its header names no operation).</returns>
    /// <exception cref="InvalidDataException">The file is broken, or its configuration or tolerance cannot be read.</exception>
    public static GoldenCase? Open(string path)
    {
        var reader = new SafetensorsReader(path);
        try
        {
            if (reader.Metadata.TryGetValue("op", out var operation))
            {
                return new GoldenCase(reader, operation);
            }

            reader.Dispose();
            return null;
        }
        catch (JsonException error)
        {
            reader.Dispose();
            throw new InvalidDataException($"The config of {path} is not valid JSON ({error.Message.Split(". ")[0].TrimEnd('.')}).", error);
        }
        catch
        {
            reader.Dispose();
            throw;
        }
    }

    /// <summary>Whether the case has a tensor.</summary>
    public bool Has(string name) => _reader.Entries.ContainsKey(name);

    /// <summary>A tensor of the case, as it is stored.</summary>
    /// <exception cref="InvalidDataException">The case lacks it.</exception>
    public Tensor Read(string name) => Has(name) ? _reader.Read(name) : throw new InvalidDataException($"The case lacks the tensor '{name}'.");

    /// <summary>Whether the configuration has a member that is not null.</summary>
    public bool HasOption(string key) => _configuration.ValueKind == JsonValueKind.Object && _configuration.TryGetProperty(key, out var found) && found.ValueKind != JsonValueKind.Null;

    /// <summary>Whether the configuration has a member that is a number.</summary>
    public bool IsNumber(string key) => HasOption(key) && _configuration.GetProperty(key).ValueKind == JsonValueKind.Number;

    /// <summary>A whole number of the configuration.</summary>
    public int Integer(string key, int? absent = null) => absent is { } value && !HasOption(key) ? value : checked((int)Whole(key, Member(key, JsonValueKind.Number)));

    /// <summary>A number of the configuration.</summary>
    public double Number(string key, double? absent = null) => absent is { } value && !HasOption(key) ? value : Member(key, JsonValueKind.Number).GetDouble();

    /// <summary>A flag of the configuration.</summary>
    public bool Flag(string key, bool? absent = null) => absent is { } value && !HasOption(key) ? value
        : Member(key, JsonValueKind.True, JsonValueKind.False).GetBoolean();

    /// <summary>Whole numbers of the configuration; a single number counts as a list of one, and so does <paramref name="absent"/> where there is none.</summary>
    public long[] Integers(string key, long? absent = null) => absent is { } value && !HasOption(key) ? [value]
        : Member(key, JsonValueKind.Array, JsonValueKind.Number) is var member && member.ValueKind == JsonValueKind.Number ? [Whole(key, member)]
        : [.. member.EnumerateArray().Select(element => Whole(key, element))];

    /// <summary>Flags of the configuration; a single flag counts as a list of one, and so does <paramref name="absent"/> where there is none.</summary>
    public bool[] Flags(string key, bool? absent = null) => absent is { } value && !HasOption(key) ? [value]
        : Member(key, JsonValueKind.Array, JsonValueKind.True, JsonValueKind.False) is var member && member.ValueKind != JsonValueKind.Array ? [member.GetBoolean()]
        : [.. member.EnumerateArray().Select(element => element.GetBoolean())];

    /// <summary>A text of the configuration.</summary>
    public string Text(string key, string? absent = null) => absent is not null && !HasOption(key) ? absent : Member(key, JsonValueKind.String).GetString()!;

    /// <summary>Texts of the configuration.</summary>
    public string[] Texts(string key) => [.. Member(key, JsonValueKind.Array).EnumerateArray().Select(element =>
        element.ValueKind == JsonValueKind.String ? element.GetString()! : throw new InvalidDataException($"The case's {key} holds {element}; texts were expected."))];

    /// <summary>Numbers of the configuration; a single number counts as a list of one.</summary>
    public double[] Numbers(string key) => Member(key, JsonValueKind.Array, JsonValueKind.Number) is var member && member.ValueKind == JsonValueKind.Number
        ? [member.GetDouble()]
        : [.. member.EnumerateArray().Select(element => element.GetDouble())];

    /// <summary>Numbers of the configuration, any of which may be null.</summary>
    public double?[] NumbersOrNull(string key) =>
        [.. Member(key, JsonValueKind.Array).EnumerateArray().Select(element => element.ValueKind == JsonValueKind.Null ? (double?)null : element.GetDouble())];

    /// <summary>Rows of numbers of the configuration.</summary>
    public double[][] NumberRows(string key) =>
        [.. Member(key, JsonValueKind.Array).EnumerateArray().Select(row => row.EnumerateArray().Select(element => element.GetDouble()).ToArray())];

    /// <summary>A member of an enumeration by the case's word for it.</summary>
    public T Choice<T>(string key, string absent, params (string Word, T Value)[] choices)
    {
        var word = Text(key, absent);
        var index = Array.FindIndex(choices, choice => choice.Word == word);
        return index >= 0 ? choices[index].Value
            : throw new InvalidDataException($"The case's {key} is '{word}'; known are {string.Join(", ", choices.Select(choice => choice.Word))}.");
    }

    /// <inheritdoc/>
    public void Dispose() => _reader.Dispose();

    private JsonElement Member(string key, params JsonValueKind[] kinds) =>
        HasOption(key) && _configuration.GetProperty(key) is var member && kinds.Contains(member.ValueKind) ? member
        : throw new InvalidDataException($"The case's config has no {key} of the kind {kinds[0]}.");

    /// <summary>A whole number; some languages write it with a fraction of zero.</summary>
    private static long Whole(string key, JsonElement number) =>
        number.ValueKind == JsonValueKind.Number && number.GetDouble() is var value && value == Math.Floor(value) && Math.Abs(value) < 1L << 53 ? (long)value
        : throw new InvalidDataException($"The case's {key} is {number}; whole numbers were expected.");

    private double Tolerance(string key) =>
        _reader.Metadata.TryGetValue(key, out var text) && double.TryParse(text, out var value) && value >= 0 && double.IsFinite(value) ? value
        : throw new InvalidDataException($"{Path} names no {key} that is a number from 0.");
}
