using System.Text;
using System.Text.Json;
using Heed.Models.Tokenizers;
using Heed.Models.VisionLanguage;

namespace Heed.Lab.Scenes;

/// <summary>The words in which scenes are talked about, a token each, and the sentences made of them.</summary>
public static class SceneWords
{
    /// <summary>Begins a text.</summary>
    public const int Begin = 1;

    /// <summary>Ends a text.</summary>
    public const int End = 2;

    /// <summary>Stands for the picture.</summary>
    public const int Image = 3;

    /// <summary>Asks for a caption.</summary>
    public const string CaptionPrompt = "what is here ?";

    private const string Unknown = "<unk>", Space = "\u2581";

    private static readonly string[] s_special = [Unknown, "<s>", "</s>", PretrainedVisionLanguageModel.ImageMark];
    private static readonly string[] s_words =
    [
        "what", "is", "here", "?", "colour", "of", ",", ".", .. Enum.GetNames<SceneColour>().Select(name => name.ToLowerInvariant()), .. Enum.GetNames<SceneShape>().Select(name => name.ToLowerInvariant()),
    ];

    // Byte-pair encoding is defined over characters, so that each needs a token of its own; no text of the scenes has them.
    private static readonly string[] s_characters = [.. string.Concat(s_words.Prepend(Space)).Distinct().Order().Select(letter => letter.ToString())];

    /// <summary>Number of tokens.</summary>
    public static int Count => s_special.Length + s_words.Length + s_characters.Length;

    /// <summary>Asks for the colour of a shape.</summary>
    public static string ColourPrompt(SceneShape shape) => $"colour of {shape} ?".ToLowerInvariant();

    /// <summary>The caption of things.</summary>
    public static string Caption(IEnumerable<SceneThing> things) => $"{string.Join(" , ", things)} .";

    /// <summary>The token of a word.</summary>
    /// <exception cref="ArgumentException">There is no such word.</exception>
    public static int IdOf(string word)
    {
        var index = Array.IndexOf(s_words, word);
        return index >= 0 ? s_special.Length + index : throw new ArgumentException($"'{word}' is no word of the scenes; they are: {string.Join(' ', s_words)}.", nameof(word));
    }

    /// <summary>The tokens of a sentence whose words stand apart.</summary>
    public static long[] Ids(string sentence)
    {
        ArgumentNullException.ThrowIfNull(sentence);
        return [.. sentence.Split(' ').Select(word => (long)IdOf(word))];
    }

    /// <summary>The token of a colour.</summary>
    public static int IdOf(SceneColour colour) => IdOf(colour.ToString().ToLowerInvariant());

    /// <summary>The token of a shape.</summary>
    public static int IdOf(SceneShape shape) => IdOf(shape.ToString().ToLowerInvariant());

    /// <summary>The things that a caption names: a colour before a shape. Whatever else stands in it is passed over.</summary>
    /// <param name="ids">The caption's tokens.</param>
    public static IReadOnlyList<SceneThing> Named(IReadOnlyList<int> ids)
    {
        ArgumentNullException.ThrowIfNull(ids);
        var (colour, shape) = (IdOf(SceneColour.Red), IdOf(SceneShape.Square));
        var (colours, shapes) = (Enum.GetValues<SceneColour>().Length, Enum.GetValues<SceneShape>().Length);
        return [.. ids.Zip(ids.Skip(1)).Where(pair => pair.First >= colour && pair.First < colour + colours && pair.Second >= shape && pair.Second < shape + shapes)
            .Select(pair => new SceneThing((SceneColour)(pair.First - colour), (SceneShape)(pair.Second - shape)))];
    }

    /// <summary>The tokenizer, as a file that <see cref="TokenizerJson"/> and the tokenizers library read.</summary>
    public static TextTokenizer Tokenizer() => TokenizerJson.Read(Encoding.UTF8.GetBytes(JsonSerializer.Serialize(
        new
        {
            version = "1.0",
            added_tokens = s_special.Select((content, id) => new { id, content, single_word = false, lstrip = false, rstrip = false, normalized = false, special = true }),
            pre_tokenizer = new { type = "Metaspace", replacement = Space, prepend_scheme = "always", split = true },
            post_processor = new
            {
                type = "TemplateProcessing",
                single = new object[] { new { SpecialToken = new { id = s_special[Begin], type_id = 0 } }, new { Sequence = new { id = "A", type_id = 0 } } },
                pair = Array.Empty<object>(),
                special_tokens = new Dictionary<string, object> { [s_special[Begin]] = new { id = s_special[Begin], ids = new[] { Begin }, tokens = new[] { s_special[Begin] } } },
            },
            decoder = new { type = "Metaspace", replacement = Space, prepend_scheme = "always", split = true },
            model = new
            {
                type = "BPE", unk_token = Unknown, fuse_unk = true, byte_fallback = false, ignore_merges = true,
                vocab = s_special.Concat(s_words.Select(word => Space + word)).Concat(s_characters).Select((token, id) => (token, id)).ToDictionary(entry => entry.token, entry => entry.id),
                merges = Array.Empty<string>(),
            },
        })), "the scenes' tokenizer");
}
