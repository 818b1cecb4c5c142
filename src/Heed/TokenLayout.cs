namespace Heed;

/// <summary>What a token stands for.</summary>
public enum TokenKind
{
    /// <summary>A piece of text.</summary>
    Text,

    /// <summary>A patch of a picture.</summary>
    Image,

    /// <summary>A piece of sound.</summary>
    Audio,

    /// <summary>A patch of a frame of a video.</summary>
    Video,
}

/// <summary>Neighbouring tokens of one kind.</summary>
/// <param name="Kind">What they stand for.</param>
/// <param name="Start">The first, from 0.</param>
/// <param name="Length">How many.</param>
/// <param name="Rows">Rows of the grid that patches come from; 0: there is none.</param>
/// <param name="Columns">Its columns; 0: there is none.</param>
public readonly record struct TokenSpan(TokenKind Kind, long Start, long Length, int Rows = 0, int Columns = 0)
{
    /// <summary>The token after the last.</summary>
    public long End => Start + Length;
}

/// <summary>Which tokens of a sequence are text, image, sound ...: travels with the calls of a model (<see cref="AttentionHooks.Layout"/>), so that an edit says "image tokens" and not index arithmetic. Tokens that
/// are generated later lie after the last span and are text.</summary>
public sealed class TokenLayout
{
    /// <summary>Initializes a layout.</summary>
    /// <param name="spans">The spans, in order, without gap from token 0 on.</param>
    /// <exception cref="ArgumentException">A span is empty, or they leave a gap or overlap.</exception>
    public TokenLayout(params IEnumerable<TokenSpan> spans)
    {
        ArgumentNullException.ThrowIfNull(spans);
        Spans = [.. spans];
        long next = 0;
        foreach (var span in Spans)
        {
            if (span.Length < 1 || span.Start != next || (span.Rows > 0 && (long)span.Rows * span.Columns != span.Length))
            {
                throw new ArgumentException(
                    $"The spans of a token layout follow each other without gap, are not empty and fill their grids: {span} was given where token {next} comes next.", nameof(spans));
            }

            next = span.End;
        }

        Length = next;
    }

    /// <summary>The spans, in order.</summary>
    public IReadOnlyList<TokenSpan> Spans { get; }

    /// <summary>Tokens that are laid out.</summary>
    public long Length { get; }

    /// <summary>The only span of a kind.</summary>
    /// <exception cref="InvalidOperationException">There is none, or there are several.</exception>
    public TokenSpan Only(TokenKind kind)
    {
        var found = Spans.Where(span => span.Kind == kind).Take(2).ToArray();
        return found.Length == 1 ? found[0] : throw new InvalidOperationException($"The sequence has {(found.Length == 0 ? "no" : "more than one")} span of {kind} tokens, and exactly one was expected.");
    }
}
