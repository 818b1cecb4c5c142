using System.Globalization;
using Heed.Onnx;

namespace Heed.Lab.Onnx;

/// <summary>Edits of an ONNX model as <c>--edit NAME:option=value,...</c> names them.</summary>
public static class OnnxEdits
{
    /// <summary>How to write each.</summary>
    public static IReadOnlyList<(string Name, string Usage, string Summary)> All { get; } =
    [
        ("heads", "heads:scale=2.0/2.3,by=0", "multiplies the weights of heads, written layer.head with / between them and * for all, by a factor; 0 removes them"),
        ("columns", "columns:at=0/3/-1,by=0,heads=*.*,then=leave", "multiplies the weights on columns (keys; from the end where negative; FIRST..LAST for a range) by a factor; then leave, renormalise, or redistribute over the other columns"),
    ];

    /// <summary>Reads an edit.</summary>
    /// <param name="text">For example <c>columns:at=0,by=0.4,then=redistribute</c>.</param>
    /// <param name="attentions">Number of the model's attentions.</param>
    /// <returns>The edits of the graph that make it up.</returns>
    /// <exception cref="ArgumentException">There is no such edit, or an option is wrong.</exception>
    public static IReadOnlyList<OnnxEdit> Parse(string text, int attentions)
    {
        ArgumentNullException.ThrowIfNull(text);
        var specification = Specification.Parse(text);
        var edits = specification.Name switch
        {
            "heads" => Heads(specification),
            "columns" => Columns(specification),
            _ => throw new ArgumentException($"There is no edit '{specification.Name}' of ONNX models; there are: {string.Join(", ", All.Select(edit => edit.Usage))}."),
        };
        specification.RefuseUnread();
        var missing = edits.SelectMany(edit => edit.Layers ?? new HashSet<int>()).FirstOrDefault(layer => layer >= attentions, -1);
        return missing < 0 ? edits : throw new ArgumentException($"'{text}' names attention {missing}, and the model has 0 to {attentions - 1}.");
    }

    private static List<OnnxEdit> Heads(Specification specification)
    {
        var factor = specification.Number("by", 0);
        return [.. Places(specification, "scale").Select(place => new OnnxHeadScaling { Layers = place.Layers, Heads = place.Heads, Factor = factor })];
    }

    private static List<OnnxEdit> Columns(Specification specification)
    {
        var at = specification.Text("at") ?? throw new ArgumentException("The edit 'columns' needs the columns that it scales: at=0/3, at=0..7, at=-1.");
        var columns = at.Split('/').SelectMany(part => Range(part, at)).ToList();
        var factor = specification.Number("by", 0);
        var then = specification.Choice("then", OnnxFreedMass.Leave, ("leave", OnnxFreedMass.Leave), ("renormalise", OnnxFreedMass.Renormalise), ("redistribute", OnnxFreedMass.Redistribute));
        return [.. Places(specification, "heads").Select(place => new OnnxColumnScaling(columns) { Layers = place.Layers, Heads = place.Heads, Factor = factor, FreedMass = then })];
    }

    private static IEnumerable<int> Range(string part, string all)
    {
        const int most = 1 << 20;
        int Number(string text) => int.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var value) && Math.Abs((long)value) < most ? value
            : throw new ArgumentException($"at of 'columns' lists columns with / between them, ranges as FIRST..LAST, for example 0/3/8..11/-1, not '{all}'.");
        var ends = part.Split("..");
        var (first, last) = (Number(ends[0]), Number(ends[^1]));
        return ends.Length <= 2 && last >= first && (first < 0) == (last < 0) ? Enumerable.Range(first, last - first + 1) : throw new ArgumentException($"'{part}' of at={all} is no range of columns: write FIRST..LAST with the smaller first.");
    }

    /// <summary>Heads written <c>layer.head</c>, put together by layer: heads of one layer are one edit, so that none is scaled twice.</summary>
    private static List<(IReadOnlySet<int>? Layers, IReadOnlySet<int>? Heads)> Places(Specification specification, string option)
    {
        var text = specification.Text(option) ?? "*.*";
        static int? Number(string place, string all, string option) => place == "*" ? null
            : int.TryParse(place, NumberStyles.None, CultureInfo.InvariantCulture, out var number) ? number
            : throw new ArgumentException($"{option} lists heads as layer.head with / between them, * for all, for example 0.1/1.*, not '{all}'.");
        var places = text.Split('/').Select(part => part.Split('.') is [var layer, var head] ? (Layer: Number(layer, text, option), Head: Number(head, text, option))
            : throw new ArgumentException($"{option} lists heads as layer.head with / between them, * for all, for example 0.1/1.*, not '{text}'.")).ToList();
        if (places.Any(place => place.Layer is null) && places.Count > 1 && places.Any(place => place.Layer is not null))
        {
            throw new ArgumentException($"{option}={text} names some heads twice: write either *.head for every attention or layer.head for some.");
        }

        return [.. places.GroupBy(place => place.Layer).Select(group => (
            group.Key is { } layer ? (IReadOnlySet<int>)new HashSet<int> { layer } : null,
            group.Any(place => place.Head is null) ? null : (IReadOnlySet<int>)group.Select(place => place.Head!.Value).ToHashSet()))];
    }
}
