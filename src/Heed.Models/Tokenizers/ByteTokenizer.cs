using System.Text;
using System.Text.Json;

namespace Heed.Models.Tokenizers;

/// <summary>Every byte of the UTF-8 text is a token: ids 0 to 255 are the bytes, 256 (optionally) begins a text.</summary>
/// <remarks>Saved beside a model as a <c>tokenizer.json</c> without merges, which any reader of such files understands.</remarks>
public sealed class ByteTokenizer : TextTokenizer
{
    private const string BeginText = "<|begin|>";
    private readonly TextTokenizer _inner;

    /// <summary>Makes the tokenizer.</summary>
    /// <param name="hasBegin">Whether the token 256 begins a text.</param>
    public ByteTokenizer(bool hasBegin = true)
    {
        _inner = TokenizerJson.Read(Describe(hasBegin), "the byte tokenizer");
        BeginTokenId = _inner.BeginTokenId;
    }

    /// <inheritdoc/>
    public override int VocabularySize => _inner.VocabularySize;

    internal override byte[]? Source => _inner.Source;

    /// <inheritdoc/>
    public override string Decode(IEnumerable<int> ids, bool skipSpecial = true) => _inner.Decode(ids, skipSpecial);

    /// <inheritdoc/>
    public override string TokenText(int id) => _inner.TokenText(id);

    /// <inheritdoc/>
    protected override void Encode(string text, ICollection<TextToken> tokens)
    {
        Span<byte> utf8 = stackalloc byte[4];
        for (var i = 0; i < text.Length;)
        {
            Rune.DecodeFromUtf16(text.AsSpan(i), out var rune, out var consumed);
            var count = rune.EncodeToUtf8(utf8);
            for (var j = 0; j < count; j++)
            {
                tokens.Add(new TextToken(utf8[j], i, consumed));
            }

            i += consumed;
        }
    }

    private static byte[] Describe(bool hasBegin) => JsonSerializer.SerializeToUtf8Bytes(new Dictionary<string, object?>
    {
        ["version"] = "1.0",
        ["added_tokens"] = hasBegin
            ? new object[] { new { id = 256, content = BeginText, single_word = false, lstrip = false, rstrip = false, normalized = false, special = true } } : [],
        ["normalizer"] = null,
        ["pre_tokenizer"] = new { type = "ByteLevel", add_prefix_space = false, trim_offsets = true, use_regex = false },
        ["post_processor"] = hasBegin
            ? new Dictionary<string, object>
            {
                ["type"] = "TemplateProcessing",
                ["single"] = new object[] { new { SpecialToken = new { id = BeginText, type_id = 0 } }, new { Sequence = new { id = "A", type_id = 0 } } },
                ["pair"] = new object[]
                {
                    new { SpecialToken = new { id = BeginText, type_id = 0 } }, new { Sequence = new { id = "A", type_id = 0 } }, new { Sequence = new { id = "B", type_id = 1 } },
                },
                ["special_tokens"] = new Dictionary<string, object> { [BeginText] = new { id = BeginText, ids = new[] { 256 }, tokens = new[] { BeginText } } },
            }
            : null,
        ["decoder"] = new { type = "ByteLevel", add_prefix_space = true, trim_offsets = true, use_regex = true },
        ["model"] = new
        {
            type = "BPE", dropout = (double?)null, fuse_unk = false, byte_fallback = false,
            vocab = Enumerable.Range(0, 256).ToDictionary(value => ByteSymbols.Symbols[value].ToString(), value => value), merges = Array.Empty<string>(),
        },
    });
}
