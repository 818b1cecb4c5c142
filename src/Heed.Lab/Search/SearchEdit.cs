using System.Globalization;
using Heed.Edits;
using Heed.Lab.Mechanisms;

namespace Heed.Lab.Search;

/// <summary>An edit whose heads a search chooses: <c>zero</c>, or any <see cref="ModelEdit"/> that takes heads, with its other options: <c>act:beta=0.4</c>.</summary>
public sealed class SearchEdit
{
    /// <summary>The edit that removes heads.</summary>
    public const string Zero = "zero";

    private const string ScaleEdit = "heads";
    private readonly string? _option;

    private SearchEdit(string text, string? option) => (Text, _option) = (text, option);

    /// <summary>The edit as it was written.</summary>
    public string Text { get; }

    /// <summary>Reads an edit.</summary>
    /// <param name="text"><c>zero</c>, or <c>NAME:option=value,...</c> without the option that names heads.</param>
    /// <exception cref="ArgumentException">There is no such edit, it takes no heads, or it names them itself.</exception>
    public static SearchEdit Parse(string text)
    {
        ArgumentException.ThrowIfNullOrEmpty(text);
        if (text == Zero)
        {
            return new(text, null);
        }

        var specification = Specification.Parse(text);
        // The edit that scales outputs says which heads by how much in one word.
        var option = specification.Name == ScaleEdit ? "scale" : "heads";
        if (specification.Text(option) is not null)
        {
            throw new ArgumentException($"The search itself chooses the heads of '{text}': leave {option}= out.", nameof(text));
        }

        var edit = new SearchEdit(text, option);
        edit.Named([(0, 0)]);
        return edit;
    }

    /// <summary>The edit with heads, as <c>--edit</c> reads it.</summary>
    /// <param name="heads">Layer and head of each, at least one.</param>
    public string With(IReadOnlyList<(int Layer, int Head)> heads)
    {
        ArgumentNullException.ThrowIfNull(heads);
        var list = string.Join('/', heads.Select(head => string.Create(CultureInfo.InvariantCulture, $"{head.Layer}.{head.Head}")));
        return _option is null ? $"{ScaleEdit}:scale={list},by=0" : $"{Text}{(Text.Contains(':', StringComparison.Ordinal) ? ',' : ':')}{_option}={list}";
    }

    /// <summary>Puts the edit into heads of a model until the result is disposed.</summary>
    /// <param name="target">The model.</param>
    /// <param name="heads">Layer and head of each, at least one.</param>
    /// <exception cref="ArgumentException">The model has no such head.</exception>
    public IDisposable Install(EditTarget target, IReadOnlyList<(int Layer, int Head)> heads)
    {
        ArgumentNullException.ThrowIfNull(target);
        return _option is null ? target.Hooks.Install(HeadScaling.Zero(heads)) : Named(heads)(target);
    }

    private Func<EditTarget, IDisposable> Named(IReadOnlyList<(int Layer, int Head)> heads) => ModelEdit.Parse(With(heads));
}
