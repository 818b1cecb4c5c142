using System.Globalization;
using System.Text.RegularExpressions;

namespace Heed.Models.Tokenizers;

/// <summary>
/// Matches the regular expressions of tokenizer files, which mean code points, with .NET's, which mean UTF-16 units: characters beyond the basic plane are matched as one
/// stand-in character of the same general category.
/// </summary>
internal sealed class CodePointRegex
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);
    private readonly Regex _regex;

    /// <exception cref="ArgumentException">The pattern is none that .NET understands.</exception>
    public CodePointRegex(string pattern) => _regex = new Regex(pattern, RegexOptions.CultureInvariant, Patience);

    /// <summary>The matches as ranges of the text, and the ranges between them, in order; together they cover the text.</summary>
    public IEnumerable<(int Start, int Length, bool IsMatch)> Split(string text)
    {
        var (shadow, index) = Shadow(text);
        var at = 0;
        for (var match = _regex.Match(shadow); match.Success; match = match.NextMatch())
        {
            if (match.Length == 0)
            {
                continue;
            }

            var (start, end) = (index[match.Index], index[match.Index + match.Length]);
            if (start > at)
            {
                yield return (at, start - at, false);
            }

            yield return (start, end - start, true);
            at = end;
        }

        if (at < text.Length)
        {
            yield return (at, text.Length - at, false);
        }
    }

    private static (string Shadow, int[] Index) Shadow(string text)
    {
        var shadow = new char[text.Length];
        var index = new int[text.Length + 1];
        var count = 0;
        for (var i = 0; i < text.Length; i++)
        {
            index[count] = i;
            if (char.IsHighSurrogate(text[i]) && i + 1 < text.Length && char.IsLowSurrogate(text[i + 1]))
            {
                shadow[count++] = StandIn(CharUnicodeInfo.GetUnicodeCategory(char.ConvertToUtf32(text[i], text[i + 1])));
                i++;
            }
            else
            {
                shadow[count++] = text[i];
            }
        }

        index[count] = text.Length;
        return (new string(shadow, 0, count), index);
    }

    // Characters of rare scripts, so that no pattern names them in a range of its own.
    private static char StandIn(UnicodeCategory category) => category switch
    {
        UnicodeCategory.UppercaseLetter => '\uA640',
        UnicodeCategory.LowercaseLetter => '\uA641',
        UnicodeCategory.ModifierLetter => '\uA015',
        UnicodeCategory.OtherLetter => '\uA000',
        UnicodeCategory.DecimalDigitNumber => '\uA620',
        UnicodeCategory.LetterNumber => '\uA6E6',
        UnicodeCategory.OtherNumber => '\uA830',
        UnicodeCategory.NonSpacingMark => '\uA66F',
        UnicodeCategory.SpacingCombiningMark => '\uA823',
        UnicodeCategory.OtherPunctuation or UnicodeCategory.DashPunctuation => '\uA60D',
        UnicodeCategory.PrivateUse or UnicodeCategory.OtherNotAssigned => '\uE000',
        _ => '\uA490',
    };
}
