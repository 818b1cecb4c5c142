using System.Globalization;
using System.Text;
using Microsoft.ML.Tokenizers;

namespace Heed.Models.Tokenizers;

/// <summary>A byte-pair tokenizer as a <c>tokenizer.json</c> describes it: normalisation, splitting, merging (by Microsoft.ML.Tokenizers), and the way back.</summary>
/// <remarks>The library's own options cannot say all that such files say (byte fallback, <c>ignore_merges</c>, splits in sequence, offsets of parts of characters), so everything
/// around the merging happens here, and the library merges one piece at a time.</remarks>
internal sealed class BytePairTokenizer : TextTokenizer
{
    private readonly BytePairDefinition _definition;
    private readonly BpeTokenizer _merger;
    private readonly Dictionary<int, string> _texts;
    private readonly Dictionary<int, AddedToken> _addedById;
    private readonly AddedToken[] _added;
    private readonly HashSet<int> _characters;
    private readonly int[]? _byteTokens;

    /// <exception cref="InvalidDataException">The vocabulary and the merges contradict each other.</exception>
    public BytePairTokenizer(BytePairDefinition definition)
    {
        _definition = definition;
        _texts = new Dictionary<int, string>(definition.Vocabulary.Count);
        foreach (var (text, id) in definition.Vocabulary)
        {
            if (!_texts.TryAdd(id, text))
            {
                throw new InvalidDataException($"{definition.File} gives the id {id} to two tokens, '{_texts[id]}' and '{text}'.");
            }
        }

        _addedById = [];
        foreach (var token in definition.Added)
        {
            if (!_addedById.TryAdd(token.Id, token))
            {
                throw new InvalidDataException($"{definition.File} adds two tokens with the id {token.Id}.");
            }
        }

        if (_texts.Keys.Concat(_addedById.Keys).FirstOrDefault(id => id < 0) is < 0 and var negative)
        {
            throw new InvalidDataException($"{definition.File} gives a token the id {negative}; ids start at 0.");
        }

        // Longest first, so that the longest of several that start at one place wins.
        _added = [.. definition.Added.Where(token => token.Content.Length > 0).OrderByDescending(token => token.Content.Length)];
        VocabularySize = Math.Max(_texts.Keys.DefaultIfEmpty(-1).Max(), _addedById.Keys.DefaultIfEmpty(-1).Max()) + 1;
        _characters = [.. definition.Vocabulary.Keys
            .Where(token => token.Length > 0 && Rune.TryGetRuneAt(token, 0, out var rune) && rune.Utf16SequenceLength == token.Length).Select(token => Rune.GetRuneAt(token, 0).Value)];
        UnknownTokenId = definition.UnknownToken is { } unknown ? Id(unknown) : null;
        if (definition.ByteFallback)
        {
            _byteTokens = [.. Enumerable.Range(0, 256).Select(value =>
                definition.Vocabulary.TryGetValue(ByteName(value), out var id) ? id : throw new InvalidDataException($"{definition.File} asks for byte fallback but has no token {ByteName(value)}."))];
        }

        try
        {
            _merger = BpeTokenizer.Create(new BpeOptions(definition.Vocabulary) { Merges = definition.Merges });
        }
        catch (Exception error) when (error is InvalidOperationException or ArgumentException)
        {
            throw new InvalidDataException($"{definition.File} has a vocabulary and merges that do not fit: {error.Message}", error);
        }
    }

    /// <inheritdoc/>
    public override int VocabularySize { get; }

    internal override byte[]? Source => _definition.Source;

    /// <inheritdoc/>
    public override string TokenText(int id)
    {
        if (_addedById.TryGetValue(id, out var added))
        {
            return added.Content;
        }

        if (!_definition.ByteLevel)
        {
            return Known(id).Replace(_definition.SpaceSymbol ?? " ", " ", StringComparison.Ordinal);
        }

        var bytes = Bytes(Known(id));
        var text = Encoding.UTF8.GetString(bytes);
        return text.Contains('\uFFFD', StringComparison.Ordinal) ? string.Concat(bytes.Select(value => ByteName(value))) : text;
    }

    /// <inheritdoc/>
    public override string Decode(IEnumerable<int> ids, bool skipSpecial = true)
    {
        ArgumentNullException.ThrowIfNull(ids);
        var result = new StringBuilder();
        var pending = new List<byte>();
        void Flush()
        {
            result.Append(Encoding.UTF8.GetString(pending.ToArray()));
            pending.Clear();
        }

        foreach (var id in ids)
        {
            if (_addedById.TryGetValue(id, out var added))
            {
                if (!added.Special || !skipSpecial)
                {
                    Flush();
                    result.Append(added.Content);
                }

                continue;
            }

            var token = Known(id);
            if (_definition.ByteLevel)
            {
                pending.AddRange(Bytes(token));
            }
            else if (_byteTokens is not null && ByteOfName(token) is { } value)
            {
                pending.Add(value);
            }
            else
            {
                Flush();
                result.Append(token.Replace(_definition.SpaceSymbol ?? " ", " ", StringComparison.Ordinal));
            }
        }

        Flush();
        if (_definition.StripsLeadingSpace && result.Length > 0 && result[0] == ' ')
        {
            result.Remove(0, 1);
        }

        return result.ToString();
    }

    /// <inheritdoc/>
    protected override void Encode(string text, ICollection<TextToken> tokens)
    {
        var at = 0;
        // Where each added token occurs next: a text of many such tokens is searched once for each of them, not once for each occurrence.
        var next = new int[_added.Length];
        Array.Fill(next, -1);
        while (at < text.Length)
        {
            var (found, start, end) = NextAdded(text, at, next);
            if (start > at)
            {
                EncodeSection(text, at, start - at, tokens);
            }

            if (found is not null)
            {
                tokens.Add(new TextToken(found.Id, start, end - start));
            }

            at = end;
        }
    }

    private static string ByteName(int value) => $"<0x{value:X2}>";

    private static byte? ByteOfName(string token) =>
        token.Length == 6 && token.StartsWith("<0x", StringComparison.Ordinal) && token[5] == '>'
        && byte.TryParse(token.AsSpan(3, 2), NumberStyles.HexNumber, CultureInfo.InvariantCulture, out var value) ? value : null;

    /// <summary>The next added token at or after a place, and the range it takes; without one, the end of the text.</summary>
    private (AddedToken? Token, int Start, int End) NextAdded(string text, int from, int[] next)
    {
        AddedToken? best = null;
        var at = text.Length;
        for (var i = 0; i < _added.Length; i++)
        {
            if (next[i] < from)
            {
                next[i] = Find(text, _added[i], from);
            }

            if (next[i] < at)
            {
                (best, at) = (_added[i], next[i]);
            }
        }

        if (best is null)
        {
            return (null, text.Length, text.Length);
        }

        var (start, end) = (at, at + best.Content.Length);
        while (best.StripLeft && start > from && char.IsWhiteSpace(text[start - 1]))
        {
            start--;
        }

        while (best.StripRight && end < text.Length && char.IsWhiteSpace(text[end]))
        {
            end++;
        }

        return (best, start, end);
    }

    /// <summary>The first occurrence of an added token; the text's length where there is none.</summary>
    private static int Find(string text, AddedToken token, int from)
    {
        for (var index = from; (index = text.IndexOf(token.Content, index, StringComparison.Ordinal)) >= 0; index++)
        {
            if (!token.SingleWord || (IsBoundary(text, index - 1) && IsBoundary(text, index + token.Content.Length)))
            {
                return index;
            }
        }

        return text.Length;
    }

    private static bool IsBoundary(string text, int index) => index < 0 || index >= text.Length || !(char.IsLetterOrDigit(text[index]) || text[index] == '_');

    private void EncodeSection(string text, int start, int length, ICollection<TextToken> tokens)
    {
        var section = AlignedText.Of(text, start, length);
        foreach (var step in _definition.Normalizers)
        {
            section = step(section);
        }

        if (_definition.PrefixSpace == PrefixSpace.Always || (_definition.PrefixSpace == PrefixSpace.First && start == 0))
        {
            var prefix = _definition.SpaceSymbol ?? " ";
            section = section.Text.StartsWith(prefix, StringComparison.Ordinal) ? section : section.Prepend(prefix);
        }

        foreach (var piece in _definition.Splits.Aggregate<Func<AlignedText, IEnumerable<AlignedText>>, IEnumerable<AlignedText>>([section], (pieces, split) => pieces.SelectMany(split)))
        {
            if (_definition.ByteLevel)
            {
                EncodeBytes(piece, tokens);
            }
            else
            {
                EncodeCharacters(piece, tokens);
            }
        }
    }

    private void EncodeBytes(AlignedText piece, ICollection<TextToken> tokens)
    {
        var symbols = new StringBuilder(piece.Text.Length + 8);
        var characters = new List<(int First, int End)>();
        Span<byte> utf8 = stackalloc byte[4];
        for (var i = 0; i < piece.Text.Length;)
        {
            Rune.DecodeFromUtf16(piece.Text.AsSpan(i), out var rune, out var consumed);
            var count = rune.EncodeToUtf8(utf8);
            for (var j = 0; j < count; j++)
            {
                symbols.Append(ByteSymbols.Symbols[utf8[j]]);
                characters.Add((i, i + consumed));
            }

            i += consumed;
        }

        Merge(symbols.ToString(), (from, to) => (piece.Start(characters[from].First), piece.End(characters[to - 1].End - 1)), tokens);
    }

    private void EncodeCharacters(AlignedText piece, ICollection<TextToken> tokens)
    {
        var known = 0;
        var at = 0;
        void FlushKnown()
        {
            if (at > known)
            {
                var first = known;
                Merge(piece.Text[first..at], (from, to) => (piece.Start(first + from), piece.End(first + to - 1)), tokens);
            }
        }

        while (at < piece.Text.Length)
        {
            Rune.DecodeFromUtf16(piece.Text.AsSpan(at), out var rune, out var consumed);
            if (_characters.Contains(rune.Value))
            {
                at += consumed;
                continue;
            }

            // No merge contains a character that is no token, so the text may be cut here without changing any merge.
            FlushKnown();
            AddUnknown(rune, piece.Start(at), piece.End(at + consumed - 1), tokens);
            at += consumed;
            known = at;
        }

        FlushKnown();
    }

    private void AddUnknown(Rune rune, int start, int end, ICollection<TextToken> tokens)
    {
        if (_byteTokens is not null)
        {
            Span<byte> utf8 = stackalloc byte[4];
            var count = rune.EncodeToUtf8(utf8);
            for (var i = 0; i < count; i++)
            {
                tokens.Add(new TextToken(_byteTokens[utf8[i]], start, end - start));
            }

            return;
        }

        var unknown = UnknownTokenId ?? throw new ArgumentException($"The tokenizer has no token for the character '{rune}' (U+{rune.Value:X4}) and none for unknown ones.");
        if (_definition.FuseUnknown && tokens is List<TextToken> list && list.Count > 0 && list[^1].Id == unknown && list[^1].Start + list[^1].Length == start)
        {
            list[^1] = new TextToken(unknown, list[^1].Start, end - list[^1].Start);
            return;
        }

        tokens.Add(new TextToken(unknown, start, end - start));
    }

    private void Merge(string piece, Func<int, int, (int Start, int End)> place, ICollection<TextToken> tokens)
    {
        if (_definition.IgnoreMerges && _definition.Vocabulary.TryGetValue(piece, out var whole))
        {
            var (start, end) = place(0, piece.Length);
            tokens.Add(new TextToken(whole, start, end - start));
            return;
        }

        var covered = 0;
        foreach (var token in _merger.EncodeToTokens(piece, out _, considerPreTokenization: false, considerNormalization: false))
        {
            var (from, to) = (token.Offset.Start.Value, token.Offset.End.Value);
            if (from != covered)
            {
                break;
            }

            var (start, end) = place(from, to);
            tokens.Add(new TextToken(token.Id, start, end - start));
            covered = to;
        }

        if (covered != piece.Length)
        {
            throw new ArgumentException($"The tokenizer's vocabulary has no token for '{piece[covered]}' in '{piece}'.");
        }
    }

    private int Id(string token) => _definition.Vocabulary.TryGetValue(token, out var id) ? id
        : _definition.Added.FirstOrDefault(added => added.Content == token)?.Id
        ?? throw new InvalidDataException($"{_definition.File} names the unknown token '{token}', which is not in its vocabulary.");

    private string Known(int id) => _texts.TryGetValue(id, out var text) ? text : throw new ArgumentException($"The token id {id} is not in the tokenizer's vocabulary.", nameof(id));

    private static byte[] Bytes(string token)
    {
        var bytes = new List<byte>(token.Length);
        foreach (var symbol in token)
        {
            if (ByteSymbols.ByteOf(symbol) is >= 0 and var value)
            {
                bytes.Add((byte)value);
            }
            else
            {
                bytes.AddRange(Encoding.UTF8.GetBytes([symbol]));
            }
        }

        return [.. bytes];
    }
}

/// <summary>When a space is put before a text.</summary>
internal enum PrefixSpace
{
    Never,
    First,
    Always,
}

/// <summary>A token that is found in the text before anything else.</summary>
internal sealed record AddedToken(int Id, string Content, bool Special, bool SingleWord, bool StripLeft, bool StripRight);

/// <summary>What a <c>tokenizer.json</c> says.</summary>
internal sealed record BytePairDefinition
{
    public required string File { get; init; }

    public required byte[] Source { get; init; }

    public required Dictionary<string, int> Vocabulary { get; init; }

    public required IReadOnlyList<string> Merges { get; init; }

    public required IReadOnlyList<AddedToken> Added { get; init; }

    public IReadOnlyList<Func<AlignedText, AlignedText>> Normalizers { get; init; } = [];

    public IReadOnlyList<Func<AlignedText, IEnumerable<AlignedText>>> Splits { get; init; } = [];

    /// <summary>Whether tokens are made of byte symbols rather than characters.</summary>
    public bool ByteLevel { get; init; }

    public bool ByteFallback { get; init; }

    public bool IgnoreMerges { get; init; }

    public string? UnknownToken { get; init; }

    public bool FuseUnknown { get; init; }

    /// <summary>What stands for a space within tokens; null: a space.</summary>
    public string? SpaceSymbol { get; init; }

    public PrefixSpace PrefixSpace { get; init; }

    /// <summary>Whether decoding takes away the space that encoding put before the text.</summary>
    public bool StripsLeadingSpace { get; init; }
}
