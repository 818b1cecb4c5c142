namespace Heed.Onnx.Graphs;

/// <summary>The equation of an Einsum of two inputs: a label per axis. An ellipsis becomes the axes that the labels leave over.</summary>
internal sealed class EinsumEquation
{
    private const char Ellipsis = '.';

    private EinsumEquation(string left, string right, string output)
    {
        Left = left;
        Right = right;
        Output = output;
    }

    public string Left { get; }

    public string Right { get; }

    public string Output { get; }

    /// <summary>Reads the equation of a node; null where it is not of two inputs, or says one label twice in an input.</summary>
    public static EinsumEquation? Parse(OnnxNode node)
    {
        var text = (node.Attribute("equation")?.Text ?? "").Replace(" ", "", StringComparison.Ordinal).Replace("...", ".", StringComparison.Ordinal);
        var sides = text.Split("->");
        if (sides[0].Split(',') is not [var left, var right] || sides.Length > 2 || new[] { left, right }.Any(part => part.Distinct().Count() != part.Length))
        {
            return null;
        }

        // Without an arrow: the labels that stand there once, in alphabetical order, the ellipsis before them.
        var output = sides.Length == 2 ? sides[1] : string.Concat((left + right).GroupBy(label => label).Where(group => group.Count() == 1 || group.Key == Ellipsis).Select(group => group.Key).Order());
        return output.Distinct().Count() == output.Length ? new(left, right, output) : null;
    }

    /// <summary>The same with a label of its own for every axis that the ellipsis stands for; null where their number cannot be known.</summary>
    public EinsumEquation? Expand(int? leftRank, int? rightRank)
    {
        if (!(Left + Right + Output).Contains(Ellipsis, StringComparison.Ordinal))
        {
            return this;
        }

        int Extra(string labels, int? rank) => labels.Contains(Ellipsis, StringComparison.Ordinal) ? (rank ?? -1) - (labels.Length - 1) : 0;
        var (left, right) = (Extra(Left, leftRank), Extra(Right, rightRank));
        if (left < 0 || right < 0)
        {
            return null;
        }

        // Axes of an ellipsis align at the end. Capital Greek letters are no labels of an equation.
        var most = Math.Max(left, right);
        string Labels(int count) => string.Concat(Enumerable.Range(most - count, count).Select(i => (char)('\u0391' + i)));
        static string Put(string labels, string axes) => labels.Replace(".", axes, StringComparison.Ordinal);
        return new(Put(Left, Labels(left)), Put(Right, Labels(right)), Put(Output, Labels(most)));
    }

    public long?[]? OutputShape(TensorFact[] inputs)
    {
        if (Expand(inputs[0].Rank, inputs[1].Rank) is not { } equation)
        {
            return null;
        }

        long? Find(string labels, long?[]? shape, char label) => labels.IndexOf(label, StringComparison.Ordinal) is >= 0 and var at && shape is not null && at < shape.Length ? shape[at] : null;
        return [.. equation.Output.Select(label =>
        {
            var (a, b) = (Find(equation.Left, inputs[0].Shape, label), Find(equation.Right, inputs[1].Shape, label));
            return a is null or 1 ? b ?? a : a;
        })];
    }
}
