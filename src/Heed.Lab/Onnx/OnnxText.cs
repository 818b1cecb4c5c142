using System.Text;
using System.Text.Json;
using Heed.Models.Tokenizers;
using Heed.Onnx;
using Microsoft.ML.Tokenizers;

namespace Heed.Lab.Onnx;

/// <summary>Turns text into the token ids that a model takes, by the tokenizer that lies beside it: <c>tokenizer.json</c> (byte-pair encoding or WordPiece) or <c>vocab.txt</c> (WordPiece).</summary>
public static class OnnxText
{
    /// <summary>The tokens of a text.</summary>
    /// <param name="folder">The model's folder.</param>
    /// <param name="text">The text.</param>
    /// <returns>Ids, and what each stands for.</returns>
    /// <exception cref="FileNotFoundException">No tokenizer lies in the folder.</exception>
    /// <exception cref="InvalidDataException">The tokenizer is of another kind.</exception>
    public static IReadOnlyList<(long Id, string Text)> Encode(string folder, string text)
    {
        var (json, words) = (Path.Combine(folder, "tokenizer.json"), Path.Combine(folder, "vocab.txt"));
        if (File.Exists(json))
        {
            var bytes = File.ReadAllBytes(json);
            if (WordPieces(bytes, json) is { } pieces)
            {
                return WordPiece(pieces.Words, pieces.LowerCase, text);
            }

            var tokenizer = TokenizerJson.Read(bytes, json);
            return [.. tokenizer.Encode(text).Select(token => ((long)token.Id, token.Length > 0 ? text.Substring(token.Start, token.Length) : tokenizer.TokenText(token.Id)))];
        }

        return File.Exists(words) ? WordPiece(File.ReadAllLines(words), lowerCase: !File.ReadLines(words).Any(word => word.Length > 0 && char.IsUpper(word[0])), text)
            : throw new FileNotFoundException($"Text cannot be given to this model: neither tokenizer.json nor vocab.txt lies in {folder}. Put the model's tokenizer there, or give token ids with --tensor FILE.");
    }

    /// <summary>What the inputs of a model of text take for some token ids.</summary>
    /// <param name="input">The input.</param>
    /// <param name="ids">The ids.</param>
    /// <returns>The tensor; null where the input is none that models of text usually have.</returns>
    public static OnnxTensor? InputOf(OnnxPort input, IReadOnlyList<long> ids)
    {
        ArgumentNullException.ThrowIfNull(input);
        ArgumentNullException.ThrowIfNull(ids);
        var count = ids.Count;
        long[] Filled(Func<int, long> value) => [.. Enumerable.Range(0, count).Select(value)];
        long[]? values = input.Name.Split('.', '/', ':')[0].ToLowerInvariant() switch
        {
            "attention_mask" or "input_mask" or "mask" or "padding_mask" => Filled(_ => 1),
            "token_type_ids" or "segment_ids" => Filled(_ => 0),
            "position_ids" => Filled(i => i),
            _ => input.Type is OnnxElementType.Int64 or OnnxElementType.Int32 && input.Shape is null or [_, _] ? [.. ids] : null,
        };
        return values is null ? null : OnnxTensor.Of(values, 1, count);
    }

    private static List<(long Id, string Text)> WordPiece(string[] words, bool lowerCase, string text)
    {
        using var stream = new MemoryStream(Encoding.UTF8.GetBytes(string.Join('\n', words)));
        var tokenizer = BertTokenizer.Create(stream, new BertOptions { LowerCaseBeforeTokenization = lowerCase });
        return [.. tokenizer.EncodeToIds(text).Select(id => ((long)id, words[id]))];
    }

    /// <summary>The words of a WordPiece tokenizer by id; null where the file is of another kind.</summary>
    private static (string[] Words, bool LowerCase)? WordPieces(byte[] json, string path)
    {
        try
        {
            using var document = JsonDocument.Parse(json);
            var root = document.RootElement;
            if (!root.TryGetProperty("model", out var model) || !model.TryGetProperty("type", out var type) || type.GetString() is not "WordPiece")
            {
                return null;
            }

            var lower = !root.TryGetProperty("normalizer", out var normalizer) || normalizer.ValueKind != JsonValueKind.Object || !normalizer.TryGetProperty("lowercase", out var flag) || flag.ValueKind != JsonValueKind.False;
            var vocabulary = model.GetProperty("vocab").EnumerateObject().ToDictionary(entry => entry.Value.GetInt32(), entry => entry.Name);
            return ([.. Enumerable.Range(0, vocabulary.Keys.Max() + 1).Select(id => vocabulary.GetValueOrDefault(id, $"[unused-{id}]"))], lower);
        }
        catch (Exception error) when (error is JsonException or KeyNotFoundException or InvalidOperationException or FormatException)
        {
            throw new InvalidDataException($"The tokenizer {path} cannot be read: {error.Message.Split(". ")[0].TrimEnd('.')}.", error);
        }
    }
}
