using System.Text.Json;
using System.Text.RegularExpressions;

namespace Heed.Models.Tokenizers;

/// <summary>Reads the <c>tokenizer.json</c> files of Hugging Face checkpoints: byte-level byte-pair encoding (GPT-2, Llama 3, Qwen) and byte-pair encoding over characters
/// with byte fallback (Llama 2, Mistral).</summary>
public static class TokenizerJson
{
    private const string Gpt2Pattern = @"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    /// <summary>Reads a file.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">It is no tokenizer, or of a kind that is not supported; the message says which part.</exception>
    public static TextTokenizer Load(string path)
    {
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"The tokenizer {path} does not exist.", path);
        }

        return Read(File.ReadAllBytes(path), path);
    }

    /// <summary>Reads a tokenizer from the bytes of its file.</summary>
    /// <param name="json">The file's bytes.</param>
    /// <param name="name">What to call the file in messages.</param>
    /// <exception cref="InvalidDataException">As for <see cref="Load"/>.</exception>
    public static TextTokenizer Read(byte[] json, string name = "tokenizer.json")
    {
        ArgumentNullException.ThrowIfNull(json);
        try
        {
            using var document = JsonDocument.Parse(json);
            return Read(document.RootElement, json, name);
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"{name} is not valid JSON ({error.Message.Split(". ")[0].TrimEnd('.')}).", error);
        }
        catch (Exception error) when (error is KeyNotFoundException or InvalidOperationException or FormatException or ArgumentException)
        {
            throw new InvalidDataException($"{name} does not have the shape of a tokenizer file: {error.Message}", error);
        }
    }

    private static BytePairTokenizer Read(JsonElement root, byte[] json, string name)
    {
        var model = root.GetProperty("model");
        var type = Text(model, "type") ?? "BPE";
        if (type != "BPE")
        {
            throw new InvalidDataException($"{name} holds a tokenizer of type {type}; only byte-pair encoding (BPE) is supported.");
        }

        foreach (var unsupported in new[] { "continuing_subword_prefix", "end_of_word_suffix" })
        {
            if (Text(model, unsupported) is { Length: > 0 })
            {
                throw new InvalidDataException($"{name} uses {unsupported}, which is not supported.");
            }
        }

        var pipeline = new Pipeline(name);
        pipeline.AddNormalizer(Member(root, "normalizer"));
        pipeline.AddSplit(Member(root, "pre_tokenizer"));
        var byteFallback = Flag(model, "byte_fallback");
        var definition = new BytePairDefinition
        {
            File = name,
            Source = json,
            Vocabulary = model.GetProperty("vocab").EnumerateObject().ToDictionary(entry => entry.Name, entry => entry.Value.GetInt32(), StringComparer.Ordinal),
            Merges = [.. model.GetProperty("merges").EnumerateArray().Select(merge => Merge(merge, name))],
            Added = Member(root, "added_tokens") is { } added ? [.. added.EnumerateArray().Select(Added)] : [],
            Normalizers = pipeline.Normalizers,
            Splits = pipeline.Splits,
            ByteLevel = pipeline.ByteLevel,
            ByteFallback = byteFallback,
            IgnoreMerges = Flag(model, "ignore_merges"),
            UnknownToken = Text(model, "unk_token"),
            FuseUnknown = Flag(model, "fuse_unk"),
            SpaceSymbol = pipeline.SpaceSymbol,
            PrefixSpace = pipeline.PrefixSpace,
            StripsLeadingSpace = pipeline.StripsLeadingSpace,
        };
        var (begin, end) = Template(Member(root, "post_processor"), definition);
        return new BytePairTokenizer(definition) { BeginTokenId = begin, EndTokenIds = end };
    }

    private static string Merge(JsonElement merge, string name)
    {
        if (merge.ValueKind == JsonValueKind.String)
        {
            return merge.GetString()!;
        }

        var parts = merge.EnumerateArray().Select(part => part.GetString()!).ToArray();
        return parts.Length == 2 && !parts.Any(part => part.Contains(' ', StringComparison.Ordinal))
            ? $"{parts[0]} {parts[1]}"
            : throw new InvalidDataException($"{name} has the merge {merge.GetRawText()}, which is no pair of tokens without spaces.");
    }

    private static AddedToken Added(JsonElement token) => new(
        token.GetProperty("id").GetInt32(), token.GetProperty("content").GetString()!, Flag(token, "special"), Flag(token, "single_word"), Flag(token, "lstrip"), Flag(token, "rstrip"));

    /// <summary>The tokens that the post-processor puts before and after a text.</summary>
    private static (int? Begin, int[] End) Template(JsonElement? processor, BytePairDefinition definition)
    {
        if (processor is not { } found)
        {
            return (null, []);
        }

        switch (Text(found, "type"))
        {
            case "Sequence":
                return found.GetProperty("processors").EnumerateArray().Select(inner => Template(inner, definition)).FirstOrDefault(result => result.Begin is not null || result.End.Length > 0, (null, []));
            case "TemplateProcessing":
                int? begin = null;
                var end = new List<int>();
                var seen = false;
                foreach (var part in found.GetProperty("single").EnumerateArray())
                {
                    if (!part.TryGetProperty("SpecialToken", out var special))
                    {
                        seen = true;
                        continue;
                    }

                    var token = special.GetProperty("id").GetString()!;
                    var id = definition.Added.FirstOrDefault(added => added.Content == token)?.Id
                        ?? (definition.Vocabulary.TryGetValue(token, out var known) ? known : throw new InvalidDataException($"{definition.File} begins or ends texts with '{token}', which is no token."));
                    if (seen)
                    {
                        end.Add(id);
                    }
                    else
                    {
                        begin = begin is null ? id : throw new InvalidDataException($"{definition.File} begins texts with more than one token, which is not supported.");
                    }
                }

                return (begin, [.. end]);
            default:
                return (null, []);
        }
    }

    private static JsonElement? Member(JsonElement element, string name) => element.TryGetProperty(name, out var found) && found.ValueKind != JsonValueKind.Null ? found : null;

    private static string? Text(JsonElement element, string name) => Member(element, name)?.GetString();

    private static bool Flag(JsonElement element, string name, bool absent = false) => Member(element, name)?.GetBoolean() ?? absent;

    /// <summary>Normalisation and splitting, gathered from the nested objects of the file.</summary>
    private sealed class Pipeline(string name)
    {
        public List<Func<AlignedText, AlignedText>> Normalizers { get; } = [];

        public List<Func<AlignedText, IEnumerable<AlignedText>>> Splits { get; } = [];

        public bool ByteLevel { get; private set; }

        public string? SpaceSymbol { get; private set; }

        public PrefixSpace PrefixSpace { get; private set; }

        /// <summary>Whether decoding takes away the space that encoding put before the text.</summary>
        public bool StripsLeadingSpace { get; private set; }

        public void AddNormalizer(JsonElement? element)
        {
            if (element is not { } normalizer)
            {
                return;
            }

            switch (Text(normalizer, "type"))
            {
                case "Sequence":
                    foreach (var inner in normalizer.GetProperty("normalizers").EnumerateArray())
                    {
                        AddNormalizer(inner);
                    }

                    break;
                case "NFC":
                    Normalizers.Add(text => text.Map(CanonicalForms.Compose));
                    break;
                case "NFD":
                    Normalizers.Add(text => text.Map(CanonicalForms.Decompose));
                    break;
                case "Lowercase":
                    Normalizers.Add(text => text.Map(part => part.ToLowerInvariant()));
                    break;
                case "Prepend":
                    var prefix = normalizer.GetProperty("prepend").GetString()!;
                    Normalizers.Add(text => text.Text.Length == 0 ? text : text.Prepend(prefix));
                    StripsLeadingSpace = true;
                    break;
                case "Replace" when normalizer.GetProperty("pattern").TryGetProperty("String", out var what):
                    var (from, to) = (what.GetString()!, normalizer.GetProperty("content").GetString()!);
                    if (from == " ")
                    {
                        SpaceSymbol = to;
                    }

                    Normalizers.Add(text => text.Replace(from, to));
                    break;
                case var type:
                    throw new InvalidDataException($"{name} normalises text by {type}, which is not supported.");
            }
        }

        public void AddSplit(JsonElement? element)
        {
            if (element is not { } split)
            {
                return;
            }

            switch (Text(split, "type"))
            {
                case "Sequence":
                    foreach (var inner in split.GetProperty("pretokenizers").EnumerateArray())
                    {
                        AddSplit(inner);
                    }

                    break;
                case "ByteLevel":
                    ByteLevel = true;
                    if (Flag(split, "add_prefix_space", absent: true))
                    {
                        PrefixSpace = Splits.Count == 0 ? PrefixSpace.Always
                            : throw new InvalidDataException($"{name} puts a space before every piece of a text that is split already, which is not supported.");
                    }

                    if (Flag(split, "use_regex", absent: true))
                    {
                        AddPattern(Gpt2Pattern);
                    }

                    break;
                case "Split":
                    AddSplitByPattern(split);
                    break;
                case "Digits":
                    AddPattern(Flag(split, "individual_digits") ? @"\p{N}" : @"\p{N}+");
                    break;
                case "Metaspace":
                    AddMetaspace(split);
                    break;
                case var type:
                    throw new InvalidDataException($"{name} splits text by {type}, which is not supported.");
            }
        }

        private void AddSplitByPattern(JsonElement split)
        {
            var pattern = split.GetProperty("pattern");
            var behavior = Text(split, "behavior");
            var inverted = Flag(split, "invert");
            Func<bool, bool> keeps = behavior switch
            {
                "Isolated" => _ => true,
                "Removed" => isMatch => isMatch == inverted,
                _ => throw new InvalidDataException($"{name} splits text with the behavior {behavior}, which is not supported."),
            };
            AddPattern(pattern.TryGetProperty("Regex", out var regex) ? regex.GetString()! : Regex.Escape(pattern.GetProperty("String").GetString()!), keeps);
        }

        private void AddMetaspace(JsonElement split)
        {
            var symbol = Text(split, "replacement") ?? "\u2581";
            SpaceSymbol = symbol;
            StripsLeadingSpace = true;
            PrefixSpace = Text(split, "prepend_scheme") switch
            {
                "never" => PrefixSpace.Never,
                "first" => PrefixSpace.First,
                "always" => PrefixSpace.Always,
                _ => Flag(split, "add_prefix_space", absent: true) ? PrefixSpace.Always : PrefixSpace.Never,
            };
            Normalizers.Add(text => text.Replace(" ", symbol));
            if (Flag(split, "split", absent: true))
            {
                // Every piece starts with the symbol, as words start with their space.
                AddPattern($"{Regex.Escape(symbol)}[^{Regex.Escape(symbol)}]*");
            }
        }

        private void AddPattern(string pattern, Func<bool, bool>? keeps = null)
        {
            CodePointRegex regex;
            try
            {
                regex = new CodePointRegex(pattern);
            }
            catch (ArgumentException error)
            {
                throw new InvalidDataException($"{name} splits text by the pattern '{pattern}', which cannot be understood: {error.Message}", error);
            }

            Splits.Add(text => regex.Split(text.Text).Where(part => keeps is null || keeps(part.IsMatch)).Select(part => text.Slice(part.Start, part.Length)));
        }
    }
}
