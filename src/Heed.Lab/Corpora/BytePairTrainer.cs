using System.Text;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;

namespace Heed.Lab.Corpora;

/// <summary>
/// Learns a byte-level byte-pair vocabulary (Sennrich et al., arXiv 1508.07909, over bytes as in GPT-2): starting from the 256 bytes, the most frequent pair of neighbours
/// within a word becomes a token, again and again. Deterministic: ties go to the pair with the smaller tokens.
/// </summary>
public static class BytePairTrainer
{
    /// <summary>Begins every sequence; token 0.</summary>
    public const string BeginToken = "<|begin|>";

    /// <summary>What counts as a word, a merge never crosses it: letters, digits or signs with the space before them, and runs of white space.</summary>
    public const string WordPattern = @"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    private const int FirstMerge = 1 + 256;

    /// <summary>Learns a vocabulary and writes it as a Hugging Face <c>tokenizer.json</c>.</summary>
    /// <param name="text">The text to learn from.</param>
    /// <param name="vocabularySize">Number of tokens wanted, with the begin token and the 256 bytes; a text with too few pairs gives fewer.</param>
    /// <exception cref="ArgumentException">The vocabulary has no room for the bytes and the begin token.</exception>
    public static JsonObject Train(string text, int vocabularySize)
    {
        if (vocabularySize < FirstMerge)
        {
            throw new ArgumentException($"A byte-level vocabulary holds 256 bytes and the begin token: {vocabularySize} is less than {FirstMerge}.", nameof(vocabularySize));
        }

        return ToTokenizerJson(Merges(text, vocabularySize - FirstMerge));
    }

    /// <summary>The merges in the order in which they were learned, as pairs of token ids; merge i makes token 257 + i.</summary>
    internal static List<(int Left, int Right)> Merges(string text, int count)
    {
        var words = new List<(int[] Tokens, long Count)>();
        foreach (var (word, frequency) in CountWords(text))
        {
            words.Add((Encoding.UTF8.GetBytes(word).Select(value => 1 + value).ToArray(), frequency));
        }

        var pairCounts = new Dictionary<(int, int), long>();
        var wordsOfPair = new Dictionary<(int, int), HashSet<int>>();
        for (var word = 0; word < words.Count; word++)
        {
            Count(word, +1);
        }

        var merges = new List<(int, int)>(count);
        while (merges.Count < count)
        {
            ((int, int) pair, long best) = ((0, 0), 1);
            foreach (var (candidate, frequency) in pairCounts)
            {
                if (frequency > best || (frequency == best && best > 1 && candidate.CompareTo(pair) < 0))
                {
                    (pair, best) = (candidate, frequency);
                }
            }

            if (best < 2)
            {
                break;
            }

            var made = FirstMerge + merges.Count;
            merges.Add(pair);
            foreach (var word in wordsOfPair[pair].ToArray())
            {
                Count(word, -1);
                words[word] = (Merge(words[word].Tokens, pair, made), words[word].Count);
                Count(word, +1);
            }
        }

        return merges;

        void Count(int word, int sign)
        {
            var (tokens, frequency) = words[word];
            for (var i = 0; i + 1 < tokens.Length; i++)
            {
                var pair = (tokens[i], tokens[i + 1]);
                var total = pairCounts.GetValueOrDefault(pair) + (sign * frequency);
                if (total == 0)
                {
                    pairCounts.Remove(pair);
                    wordsOfPair.Remove(pair);
                    continue;
                }

                pairCounts[pair] = total;
                if (!wordsOfPair.TryGetValue(pair, out var holders))
                {
                    wordsOfPair[pair] = holders = [];
                }

                if (sign > 0)
                {
                    holders.Add(word);
                }
                else
                {
                    holders.Remove(word);
                }
            }
        }
    }

    private static SortedDictionary<string, long> CountWords(string text)
    {
        var counts = new SortedDictionary<string, long>(StringComparer.Ordinal);
        foreach (var match in Regex.EnumerateMatches(text, WordPattern, RegexOptions.Compiled))
        {
            var word = text.Substring(match.Index, match.Length);
            counts[word] = counts.GetValueOrDefault(word) + 1;
        }

        return counts;
    }

    private static int[] Merge(int[] tokens, (int Left, int Right) pair, int made)
    {
        var merged = new List<int>(tokens.Length);
        for (var i = 0; i < tokens.Length; i++)
        {
            if (i + 1 < tokens.Length && (tokens[i], tokens[i + 1]) == pair)
            {
                merged.Add(made);
                i++;
            }
            else
            {
                merged.Add(tokens[i]);
            }
        }

        return [.. merged];
    }

    private static JsonObject ToTokenizerJson(List<(int Left, int Right)> merges)
    {
        var spelled = new List<string> { BeginToken };
        spelled.AddRange(Enumerable.Range(0, 256).Select(value => SpelledByte(value).ToString()));
        var mergeList = new JsonArray();
        foreach (var (left, right) in merges)
        {
            spelled.Add(spelled[left] + spelled[right]);
            mergeList.Add($"{spelled[left]} {spelled[right]}");
        }

        var vocabulary = new JsonObject();
        for (var id = 0; id < spelled.Count; id++)
        {
            vocabulary[spelled[id]] = id;
        }

        return new JsonObject
        {
            ["version"] = "1.0",
            ["truncation"] = null,
            ["padding"] = null,
            ["added_tokens"] = new JsonArray(new JsonObject
            {
                ["id"] = 0, ["content"] = BeginToken, ["single_word"] = false, ["lstrip"] = false, ["rstrip"] = false, ["normalized"] = false, ["special"] = true,
            }),
            ["normalizer"] = null,
            ["pre_tokenizer"] = new JsonObject
            {
                ["type"] = "Sequence",
                ["pretokenizers"] = new JsonArray(
                    new JsonObject { ["type"] = "Split", ["pattern"] = new JsonObject { ["Regex"] = WordPattern }, ["behavior"] = "Isolated", ["invert"] = false },
                    new JsonObject { ["type"] = "ByteLevel", ["add_prefix_space"] = false, ["trim_offsets"] = true, ["use_regex"] = false }),
            },
            ["post_processor"] = new JsonObject
            {
                ["type"] = "TemplateProcessing",
                ["single"] = new JsonArray(Special(), Sequence("A", 0)),
                ["pair"] = new JsonArray(Special(), Sequence("A", 0), Sequence("B", 1)),
                ["special_tokens"] = new JsonObject
                {
                    [BeginToken] = new JsonObject { ["id"] = BeginToken, ["ids"] = new JsonArray(0), ["tokens"] = new JsonArray(BeginToken) },
                },
            },
            ["decoder"] = new JsonObject { ["type"] = "ByteLevel", ["add_prefix_space"] = true, ["trim_offsets"] = true, ["use_regex"] = true },
            ["model"] = new JsonObject
            {
                ["type"] = "BPE", ["dropout"] = null, ["unk_token"] = null, ["continuing_subword_prefix"] = null, ["end_of_word_suffix"] = null,
                ["fuse_unk"] = false, ["byte_fallback"] = false, ["vocab"] = vocabulary, ["merges"] = mergeList,
            },
        };

        static JsonObject Special() => new() { ["SpecialToken"] = new JsonObject { ["id"] = BeginToken, ["type_id"] = 0 } };
        static JsonObject Sequence(string id, int type) => new() { ["Sequence"] = new JsonObject { ["id"] = id, ["type_id"] = type } };
    }

    // The file spells every byte as one visible character: printable Latin-1 stands for itself, the rest moves up from U+0100, in order.
    private static char SpelledByte(int value)
    {
        if (IsVisible(value))
        {
            return (char)value;
        }

        var invisibleBefore = Enumerable.Range(0, value).Count(other => !IsVisible(other));
        return (char)(256 + invisibleBefore);

        static bool IsVisible(int value) => value is (>= '!' and <= '~') or (>= 0xA1 and <= 0xAC) or (>= 0xAE and <= 0xFF);
    }
}
