namespace Heed.Onnx;

/// <summary>What happens to the mass that a column scaling takes from (or gives to) its columns.</summary>
public enum OnnxFreedMass
{
    /// <summary>Nothing: rows sum to less (or more) than they did.</summary>
    Leave,

    /// <summary>Every row is divided by its new sum, so that it sums to what it did.</summary>
    Renormalise,

    /// <summary>The other columns take it in proportion to their weights; the scaled columns keep what the factor left them.</summary>
    Redistribute,
}

/// <summary>A change to the weights of attention, put into the graph itself: the edited model needs nothing but an ONNX runtime.</summary>
public abstract record OnnxEdit
{
    private protected OnnxEdit()
    {
    }

    /// <summary>The attentions that change, <see cref="OnnxAttention.Layer"/>; null: all.</summary>
    public IReadOnlySet<int>? Layers { get; init; }

    /// <summary>The heads of them that change; null: all.</summary>
    public IReadOnlySet<int>? Heads { get; init; }

    /// <summary>What a weight is multiplied by.</summary>
    public abstract double Factor { get; init; }

    /// <summary>Refuses what cannot be done.</summary>
    internal void Check(IReadOnlyList<OnnxAttention> attentions)
    {
        if (!double.IsFinite(Factor))
        {
            throw new ArgumentException($"An edit multiplies by a finite number, not by {Factor}.");
        }

        if (Layers?.FirstOrDefault(layer => layer < 0 || layer >= attentions.Count, -1) is { } missing && (missing >= 0 || Layers.Contains(-1)))
        {
            throw new ArgumentException($"The edit names attention {missing}, and the model has 0 to {attentions.Count - 1}.");
        }
    }
}

/// <summary>Multiplies all weights of heads, and with them what the heads hand on; zero removes the heads.</summary>
public sealed record OnnxHeadScaling : OnnxEdit
{
    /// <inheritdoc/>
    public override double Factor { get; init; }
}

/// <summary>Multiplies the weights on some columns (keys).</summary>
/// <param name="Columns">The columns; negative ones count from the last.</param>
public sealed record OnnxColumnScaling(IReadOnlyList<int> Columns) : OnnxEdit
{
    /// <inheritdoc/>
    public override double Factor { get; init; }

    /// <summary>What happens to the mass that the columns lose.</summary>
    public OnnxFreedMass FreedMass { get; init; }
}
