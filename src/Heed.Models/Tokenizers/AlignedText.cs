using System.Globalization;
using System.Text;

namespace Heed.Models.Tokenizers;

/// <summary>A text on its way through normalisation, every character of which knows the characters of the original that it stands for.</summary>
internal readonly struct AlignedText
{
    private readonly int[] _starts;
    private readonly int[] _ends;

    private AlignedText(string text, int[] starts, int[] ends)
    {
        Text = text;
        _starts = starts;
        _ends = ends;
    }

    public string Text { get; }

    public int Start(int index) => _starts[index];

    public int End(int index) => _ends[index];

    /// <summary>A piece of an original text, not changed yet.</summary>
    public static AlignedText Of(string original, int start, int length)
    {
        var (starts, ends) = (new int[length], new int[length]);
        for (var i = 0; i < length; i++)
        {
            (starts[i], ends[i]) = (start + i, start + i + 1);
        }

        return new AlignedText(original.Substring(start, length), starts, ends);
    }

    public AlignedText Slice(int start, int length) =>
        new(Text.Substring(start, length), _starts.AsSpan(start, length).ToArray(), _ends.AsSpan(start, length).ToArray());

    public AlignedText Prepend(string prefix)
    {
        var at = _starts.Length == 0 ? 0 : _starts[0];
        var fill = Enumerable.Repeat(at, prefix.Length).ToArray();
        return new AlignedText(prefix + Text, [.. fill, .. _starts], [.. fill, .. _ends]);
    }

    /// <summary>Every occurrence of one text replaced by another.</summary>
    public AlignedText Replace(string what, string by)
    {
        if (what.Length == 0 || !Text.Contains(what, StringComparison.Ordinal))
        {
            return this;
        }

        var builder = new Builder(Text.Length);
        for (var i = 0; i < Text.Length;)
        {
            if (string.CompareOrdinal(Text, i, what, 0, what.Length) == 0)
            {
                builder.Add(by, _starts[i], _ends[i + what.Length - 1]);
                i += what.Length;
            }
            else
            {
                builder.Add(Text.AsSpan(i, 1), _starts[i], _ends[i]);
                i++;
            }
        }

        return builder.Result();
    }

    /// <summary>The text changed one user-perceived character at a time; what changes stands for all characters it came from.</summary>
    public AlignedText Map(Func<string, string> change)
    {
        var builder = new Builder(Text.Length);
        var elements = StringInfo.ParseCombiningCharacters(Text);
        for (var i = 0; i < elements.Length; i++)
        {
            var end = i + 1 < elements.Length ? elements[i + 1] : Text.Length;
            var element = Text[elements[i]..end];
            var changed = change(element);
            if (changed == element)
            {
                for (var j = elements[i]; j < end; j++)
                {
                    builder.Add(Text.AsSpan(j, 1), _starts[j], _ends[j]);
                }
            }
            else
            {
                builder.Add(changed, _starts[elements[i]], _ends[end - 1]);
            }
        }

        return builder.Result();
    }

    private sealed class Builder(int capacity)
    {
        private readonly StringBuilder _text = new(capacity);
        private readonly List<int> _starts = new(capacity);
        private readonly List<int> _ends = new(capacity);

        public void Add(ReadOnlySpan<char> text, int start, int end)
        {
            _text.Append(text);
            for (var i = 0; i < text.Length; i++)
            {
                _starts.Add(start);
                _ends.Add(end);
            }
        }

        public AlignedText Result() => new(_text.ToString(), [.. _starts], [.. _ends]);
    }
}
