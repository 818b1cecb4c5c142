using System.Text.Json;
using Heed.Models.Tokenizers;
using Xunit;

namespace Heed.Models.Tests.Tokenizers;

public class TokenizerJsonTests
{
    private static string DataFolder { get; } = Path.Combine(AppContext.BaseDirectory, "Tokenizers", "Data");

    public static TheoryData<string, string, int[], string> Expected()
    {
        var data = new TheoryData<string, string, int[], string>();
        using var document = JsonDocument.Parse(File.ReadAllText(Path.Combine(DataFolder, "expected.json")));
        foreach (var tokenizer in document.RootElement.EnumerateObject())
        {
            foreach (var item in tokenizer.Value.EnumerateArray())
            {
                data.Add(tokenizer.Name, item.GetProperty("text").GetString()!, item.GetProperty("ids").Deserialize<int[]>()!, item.GetProperty("decoded").GetString()!);
            }
        }

        return data;
    }

    [Theory]
    [MemberData(nameof(Expected))]
    public void IdsAndTextAreThoseOfThePeerLibrary(string name, string text, int[] ids, string decoded)
    {
        var tokenizer = TokenizerJson.Load(Path.Combine(DataFolder, name + ".json"));

        Assert.Equal(ids, tokenizer.Encode(text).Select(token => token.Id));
        Assert.Equal(decoded, tokenizer.Decode(ids));
    }

    public static TheoryData<string, string> Texts() =>
        [.. from name in new[] { "llama3", "qwen", "gpt2", "llama2", "mistral" } from text in new[] { "Don't  stop", "x😀é 東\n", " a", "the <|endoftext|> earth</s>", "\uD800!" } select (name, text)];

    [Theory]
    [MemberData(nameof(Texts))]
    public void TokensCoverTheTextInOrder(string name, string text)
    {
        var tokenizer = TokenizerJson.Load(Path.Combine(DataFolder, name + ".json"));

        var tokens = tokenizer.Encode(text, addBegin: false);

        var covered = 0;
        foreach (var token in tokens)
        {
            Assert.InRange(token.Start, 0, covered);
            covered = Math.Max(covered, token.Start + token.Length);
            // Whole characters only: never half of a surrogate pair.
            Assert.False(token.Length > 0 && token.Start > 0 && char.IsSurrogatePair(text, token.Start - 1), text);
        }

        Assert.Equal(text.Length, covered);
    }

    [Fact]
    public void OffsetsNameTheCharactersOfATokenAndItsTextIsReadable()
    {
        var tokenizer = TokenizerJson.Load(Path.Combine(DataFolder, "llama3.json"));

        var tokens = tokenizer.Encode(" the 東");

        Assert.Equal((tokenizer.BeginTokenId!.Value, 0, 0), (tokens[0].Id, tokens[0].Start, tokens[0].Length));
        Assert.Equal("<|begin_of_text|>", tokenizer.TokenText(tokens[0].Id));
        Assert.Equal(" the", tokenizer.TokenText(tokens[1].Id));
        Assert.Equal((0, 4), (tokens[1].Start, tokens[1].Length));
        Assert.Equal((5, 1), (tokens[^1].Start, tokens[^1].Length));
        Assert.Equal("<0xB1>", tokenizer.TokenText(tokens[^1].Id));
        Assert.Equal(tokens.Max(token => token.Id) + 2, tokenizer.VocabularySize);
        Assert.Contains("99999", Assert.Throws<ArgumentException>(() => tokenizer.Decode([99999])).Message);
    }

    [Fact]
    public void TheByteTokenizerIsItsOwnFile()
    {
        var tokenizer = new ByteTokenizer();
        var read = TokenizerJson.Read(tokenizer.Source!);

        foreach (var text in new[] { "", "plain", "é😀\0\n  x", "\uDC00" })
        {
            Assert.Equal(System.Text.Encoding.UTF8.GetBytes(text).Select(value => (int)value), tokenizer.Encode(text, addBegin: false).Select(token => token.Id));
            Assert.Equal(tokenizer.Encode(text), read.Encode(text));
        }

        Assert.Equal((257, 256), (tokenizer.VocabularySize, tokenizer.BeginTokenId));
        Assert.Equal((256, null), (new ByteTokenizer(hasBegin: false).VocabularySize, new ByteTokenizer(hasBegin: false).BeginTokenId));
        Assert.Equal("é", tokenizer.Decode([256, 0xC3, 0xA9]));
    }

    [Theory]
    [InlineData("{", "not valid JSON")]
    [InlineData("[]", "shape of a tokenizer file")]
    [InlineData("{}", "shape of a tokenizer file")]
    [InlineData("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "type Unigram")]
    [InlineData("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "do not fit")]
    [InlineData("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "no pair of tokens")]
    [InlineData("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "id 0 to two tokens")]
    [InlineData("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", "shape of a tokenizer file")]
    [InlineData("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-4},\"merges\":[]}}", "the id -4")]
    [InlineData("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"byte_fallback\":true}}", "no token <0x00>")]
    [InlineData("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"?\"}}", "unknown token '?'")]
    [InlineData("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", "end_of_word_suffix")]
    [InlineData("{\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}", "by UnicodeScripts")]
    [InlineData("{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}", "cannot be understood")]
    [InlineData("{\"normalizer\":{\"type\":\"Nmt\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}", "by Nmt")]
    [InlineData("{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}}]},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}", "'<s>', which is no token")]
    public void FilesThatCannotBeRepresentedAreRefusedWithASentence(string json, string expected)
    {
        var error = Assert.Throws<InvalidDataException>(() => TokenizerJson.Read(System.Text.Encoding.UTF8.GetBytes(json)));

        Assert.Contains(expected, error.Message);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact]
    public void ACharacterWithoutATokenIsRefusedWithASentence()
    {
        var tokenizer = TokenizerJson.Read("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}"u8.ToArray());

        Assert.Equal([0, 0], tokenizer.EncodeIds("aa"));
        Assert.Contains("U+0062", Assert.Throws<ArgumentException>(() => tokenizer.Encode("ab")).Message);
    }
}
