using System.Text;
using System.Text.Json;
using static TorchSharp.torch;

namespace Heed.Models.Checkpoints;

/// <summary>The safetensors layout: eight bytes of header length (little endian), a JSON header, then the tensors' bytes without gaps.</summary>
internal static class SafetensorsFormat
{
    public const int PrefixBytes = 8;
    public const long MaximumHeaderBytes = 100_000_000;
    public const string MetadataName = "__metadata__";

    private static readonly (string Name, ScalarType Type, int Bytes)[] Types =
    [
        ("F64", ScalarType.Float64, 8), ("F32", ScalarType.Float32, 4), ("F16", ScalarType.Float16, 2), ("BF16", ScalarType.BFloat16, 2),
        ("I64", ScalarType.Int64, 8), ("I32", ScalarType.Int32, 4), ("I16", ScalarType.Int16, 2), ("I8", ScalarType.Int8, 1),
        ("U8", ScalarType.Byte, 1), ("BOOL", ScalarType.Bool, 1),
    ];

    public static string NameOf(ScalarType type) => Types.FirstOrDefault(entry => entry.Type == type).Name
        ?? throw new ArgumentException($"A safetensors file cannot hold tensors of type {type}; convert to one of {string.Join(", ", Types.Select(entry => entry.Type))}.");

    public static int BytesOf(ScalarType type) => Types.First(entry => entry.Type == type).Bytes;

    /// <summary>Reads a header and checks every claim it makes against the file's length, before anything is allocated for a tensor.</summary>
    /// <exception cref="InvalidDataException">The header is broken; the message names the file and what is wrong.</exception>
    public static (Dictionary<string, SafetensorsEntry> Entries, Dictionary<string, string> Metadata) ReadHeader(string file, ReadOnlySpan<byte> header, long fileLength)
    {
        var entries = new Dictionary<string, SafetensorsEntry>(StringComparer.Ordinal);
        var metadata = new Dictionary<string, string>(StringComparer.Ordinal);
        var dataStart = PrefixBytes + header.Length;
        try
        {
            var reader = new Utf8JsonReader(header, new JsonReaderOptions { MaxDepth = 8 });
            Require(reader.Read() && reader.TokenType == JsonTokenType.StartObject, file, "its header is not a JSON object");
            while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
            {
                var name = reader.GetString()!;
                reader.Read();
                if (name == MetadataName)
                {
                    ReadMetadata(file, ref reader, metadata);
                    continue;
                }

                var entry = ReadEntry(file, name, ref reader, dataStart, fileLength);
                Require(entries.TryAdd(name, entry), file, $"its header describes the tensor '{name}' twice");
            }

            Require(reader.TokenType == JsonTokenType.EndObject, file, "its header is not a JSON object");
            while (reader.Read())
            {
            }
        }
        catch (Exception error) when (error is JsonException or DecoderFallbackException or InvalidOperationException)
        {
            throw new InvalidDataException($"{file} is not a valid safetensors file: its header is not valid JSON ({FirstSentence(error.Message)}).", error);
        }

        CheckLayout(file, entries.Values, dataStart, fileLength);
        return (entries, metadata);
    }

    private static void ReadMetadata(string file, ref Utf8JsonReader reader, Dictionary<string, string> metadata)
    {
        Require(reader.TokenType == JsonTokenType.StartObject, file, "its metadata is not a JSON object");
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            var key = reader.GetString()!;
            reader.Read();
            Require(reader.TokenType == JsonTokenType.String, file, $"its metadata entry '{key}' is not a string");
            Require(metadata.TryAdd(key, reader.GetString()!), file, $"its metadata has the entry '{key}' twice");
        }
    }

    private static SafetensorsEntry ReadEntry(string file, string name, ref Utf8JsonReader reader, long dataStart, long fileLength)
    {
        Require(reader.TokenType == JsonTokenType.StartObject, file, $"the header's entry for '{name}' is not a JSON object");
        string? type = null;
        List<long>? shape = null;
        List<long>? offsets = null;
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            var key = reader.GetString()!;
            reader.Read();
            switch (key)
            {
                case "dtype" when type is null && reader.TokenType == JsonTokenType.String:
                    type = reader.GetString();
                    break;
                case "shape" when shape is null && reader.TokenType == JsonTokenType.StartArray:
                    shape = ReadNumbers(file, name, key, ref reader);
                    break;
                case "data_offsets" when offsets is null && reader.TokenType == JsonTokenType.StartArray:
                    offsets = ReadNumbers(file, name, key, ref reader);
                    break;
                default:
                    throw Broken(file, $"the header's entry for '{name}' has an unexpected, repeated or malformed member '{key}'");
            }
        }

        Require(type is not null && shape is not null && offsets is { Count: 2 }, file, $"the header's entry for '{name}' lacks dtype, shape or two data_offsets");
        var known = Array.Find(Types, entry => entry.Name == type);
        Require(known.Name is not null, file, $"the tensor '{name}' has the unknown type {type} (known: {string.Join(", ", Types.Select(entry => entry.Name))})");
        var (begin, end) = (offsets![0], offsets[1]);
        Require(begin <= end && end <= fileLength - dataStart, file, $"the tensor '{name}' claims bytes {begin} to {end} of {fileLength - dataStart} (a truncated file?)");
        Require(
            TryCount(shape!, known.Bytes, out var bytes) && bytes == end - begin, file,
            $"the tensor '{name}' of shape [{string.Join(", ", shape!)}] and type {type} does not fit its {end - begin} bytes");
        return new SafetensorsEntry(name, known.Type, shape!, dataStart + begin, end - begin);
    }

    private static List<long> ReadNumbers(string file, string name, string key, ref Utf8JsonReader reader)
    {
        var numbers = new List<long>();
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            Require(
                reader.TokenType == JsonTokenType.Number && reader.TryGetInt64(out var number) && number >= 0 && numbers.Count < 64, file,
                $"the {key} of '{name}' is not a short list of whole numbers from 0");
            numbers.Add(reader.GetInt64());
        }

        return numbers;
    }

    private static bool TryCount(List<long> shape, int elementBytes, out long bytes)
    {
        // A zero anywhere makes the product zero whatever the other sizes are, so it must not hide an overflow of them.
        bytes = elementBytes;
        foreach (var size in shape)
        {
            var product = (Int128)bytes * size;
            if (product > long.MaxValue)
            {
                return false;
            }

            bytes = (long)product;
        }

        return true;
    }

    private static void CheckLayout(string file, IEnumerable<SafetensorsEntry> entries, long dataStart, long fileLength)
    {
        var end = dataStart;
        var previous = "";
        foreach (var entry in entries.OrderBy(entry => entry.Offset).ThenBy(entry => entry.ByteLength))
        {
            Require(entry.Offset >= end, file, $"the tensors '{previous}' and '{entry.Name}' overlap");
            Require(entry.Offset == end, file, $"there is a gap of {entry.Offset - end} bytes before the tensor '{entry.Name}'");
            end = entry.Offset + entry.ByteLength;
            previous = entry.Name;
        }

        Require(end == fileLength, file, $"{fileLength - end} bytes after the last tensor belong to none");
    }

    private static void Require(bool condition, string file, string what)
    {
        if (!condition)
        {
            throw Broken(file, what);
        }
    }

    private static InvalidDataException Broken(string file, string what) => new($"{file} is not a valid safetensors file: {what}.");

    private static string FirstSentence(string message) => message.Split(". ")[0].TrimEnd('.');
}
