using System.Globalization;

namespace Heed.Lab;

/// <summary>A mask or a mechanism as named on the command line: <c>name:option=value,option=value</c>. Whoever builds it reads every option that it has, so that a misspelt one is an error.</summary>
public sealed class Specification
{
    private readonly Dictionary<string, string> _options;
    private readonly HashSet<string> _read = [];

    private Specification(string name, Dictionary<string, string> options)
    {
        Name = name;
        _options = options;
    }

    /// <summary>The name, or the path of a file.</summary>
    public string Name { get; }

    /// <summary>Reads a specification.</summary>
    /// <exception cref="ArgumentException">It is not of the form <c>name:option=value,option=value</c>.</exception>
    public static Specification Parse(string text)
    {
        // The colon of a Windows drive is no separator.
        var colon = text.IndexOf(':', text.Length > 1 && text[1] == ':' ? 2 : 0);
        var options = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (var part in colon < 0 ? [] : text[(colon + 1)..].Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries))
        {
            var equals = part.IndexOf('=');
            if (equals < 1 || equals == part.Length - 1)
            {
                throw new ArgumentException($"'{part}' in '{text}' is not an option: write name:option=value,option=value, for example window:w=128.");
            }

            options[part[..equals].Trim()] = part[(equals + 1)..].Trim();
        }

        return new Specification((colon < 0 ? text : text[..colon]).Trim(), options);
    }

    /// <summary>A whole number of at least <paramref name="minimum"/>.</summary>
    /// <exception cref="ArgumentException">The value is no such number.</exception>
    public int Integer(string option, int fallback, int minimum)
    {
        var text = Text(option);
        return text is null ? fallback
            : int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var value) && value >= minimum ? value
            : throw new ArgumentException($"{option} of '{Name}' is a whole number of at least {minimum}, not '{text}'.");
    }

    /// <summary>Whole numbers of at least <paramref name="minimum"/> (or -1 where <paramref name="allowsWhole"/>), written with an x between them: <c>16x24</c>.</summary>
    /// <exception cref="ArgumentException">The value is no such list.</exception>
    public long[]? Lengths(string option, int minimum, bool allowsWhole = false)
    {
        if (Text(option) is not { } text)
        {
            return null;
        }

        var parts = text.Split('x').Select(part => long.TryParse(part, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var value) ? value : long.MinValue).ToArray();
        return parts.All(value => value >= minimum || (allowsWhole && value == -1)) ? parts
            : throw new ArgumentException($"{option} of '{Name}' is one whole number of at least {minimum}{(allowsWhole ? " (or -1)" : "")}, or several with an x between them such as 16x24, not '{text}'.");
    }

    /// <summary>A number.</summary>
    /// <exception cref="ArgumentException">The value is no number.</exception>
    public double Number(string option, double fallback)
    {
        var text = Text(option);
        return text is null ? fallback
            : double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out var value) ? value
            : throw new ArgumentException($"{option} of '{Name}' is a number, not '{text}'.");
    }

    /// <summary>One of some words.</summary>
    /// <exception cref="ArgumentException">The value is none of them.</exception>
    public T Choice<T>(string option, T fallback, params ReadOnlySpan<(string Word, T Value)> choices)
    {
        if (Text(option) is not { } text)
        {
            return fallback;
        }

        foreach (var (word, value) in choices)
        {
            if (word == text)
            {
                return value;
            }
        }

        var words = new List<string>();
        foreach (var (word, _) in choices)
        {
            words.Add(word);
        }

        throw new ArgumentException($"{option} of '{Name}' is {string.Join(", ", words[..^1])} or {words[^1]}, not '{text}'.");
    }

    /// <summary>A text; null where it is not given.</summary>
    public string? Text(string option)
    {
        _read.Add(option);
        return _options.GetValueOrDefault(option);
    }

    /// <summary>Refuses options that nobody asked for.</summary>
    /// <exception cref="ArgumentException">There is one; the message lists those that exist.</exception>
    public void RefuseUnread()
    {
        if (_options.Keys.FirstOrDefault(option => !_read.Contains(option)) is { } unknown)
        {
            throw new ArgumentException($"'{Name}' has no option '{unknown}'; it has: {string.Join(", ", _read.Order(StringComparer.Ordinal))}.");
        }
    }
}
