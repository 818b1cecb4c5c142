namespace Heed.Models.Tokenizers;

/// <summary>One token of a text.</summary>
/// <param name="Id">The token's id.</param>
/// <param name="Start">Where the token starts in the text, in UTF-16 characters.</param>
/// <param name="Length">How many characters it covers. A token that holds only part of a character's bytes covers the whole character; a token that the text does not
/// contain (a begin token) covers none.</param>
public readonly record struct TextToken(int Id, int Start, int Length);

/// <summary>Turns text into token ids and back.</summary>
public abstract class TextTokenizer
{
    /// <summary>Number of token ids, added tokens included: every id is below it.</summary>
    public abstract int VocabularySize { get; }

    /// <summary>Id of the token that begins a text; null: none.</summary>
    public int? BeginTokenId { get; init; }

    /// <summary>Id of the token that stands for text which has no token of its own; null: none, then every text has tokens or is refused.</summary>
    public int? UnknownTokenId { get; init; }

    /// <summary>Ids of the tokens that end a text.</summary>
    public IReadOnlyList<int> EndTokenIds { get; init; } = [];

    /// <summary>The tokens of a text with the characters they cover.</summary>
    /// <param name="text">The text.</param>
    /// <param name="addBegin">Whether the begin token comes first, where there is one.</param>
    public IReadOnlyList<TextToken> Encode(string text, bool addBegin = true)
    {
        ArgumentNullException.ThrowIfNull(text);
        var tokens = new List<TextToken>();
        if (addBegin && BeginTokenId is { } begin)
        {
            tokens.Add(new TextToken(begin, 0, 0));
        }

        Encode(text, tokens);
        return tokens;
    }

    /// <summary>The ids of a text.</summary>
    /// <param name="text">The text.</param>
    /// <param name="addBegin">Whether the begin token comes first, where there is one.</param>
    public long[] EncodeIds(string text, bool addBegin = true) => [.. Encode(text, addBegin).Select(token => (long)token.Id)];

    /// <summary>The text of token ids. Bytes that are not UTF-8 become the replacement character.</summary>
    /// <param name="ids">Token ids.</param>
    /// <param name="skipSpecial">Whether tokens that stand for no text (begin, end and the like) are left out.</param>
    /// <exception cref="ArgumentException">An id is not in the vocabulary.</exception>
    public abstract string Decode(IEnumerable<int> ids, bool skipSpecial = true);

    /// <summary>What a token looks like, for people: its text, or for a part of a character its bytes as <c>&lt;0xE2&gt;</c>.</summary>
    /// <exception cref="ArgumentException">The id is not in the vocabulary.</exception>
    public abstract string TokenText(int id);

    /// <summary>The file that this tokenizer was read from, for saving it beside a model; null where there is none.</summary>
    internal virtual byte[]? Source => null;

    /// <summary>Appends the tokens of a text.</summary>
    protected abstract void Encode(string text, ICollection<TextToken> tokens);
}
