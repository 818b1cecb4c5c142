namespace Heed.Lab.Inspection;

/// <summary>How an inspection is made.</summary>
public sealed record InspectionOptions
{
    /// <summary>Tokens that are looked at where nothing else is said: as many as a page stays fluid with.</summary>
    public const int DefaultTokens = 2048;

    /// <summary>Bytes of a report where nothing else is said.</summary>
    public const long DefaultMapBudget = 13L << 20;

    /// <summary>The most tokens to look at, the begin token included; null: <see cref="DefaultTokens"/>, or the model's context where that is shorter.</summary>
    public int? Tokens { get; init; }

    /// <summary>Bytes that maps and largest weights may take in the report. See <see cref="InspectionReport.Detail"/>.</summary>
    public long MapBudget { get; init; } = DefaultMapBudget;

    /// <summary>The mechanism that stands in place of the model's attention, as <c>NAME:option=value,...</c> (see <see cref="Mechanisms.AttentionSwap"/>); null: none.</summary>
    public string? Attention { get; init; }

    /// <summary>Edits of the model, each as <c>NAME:option=value,...</c> (see <see cref="Mechanisms.ModelEdit"/>): the text is read without them first, then with them. They change maps, so that the report shows
    /// what became of them, which takes the memory of whole maps.</summary>
    public IReadOnlyList<string> Edits { get; init; } = [];
}

/// <summary>How far an inspection is.</summary>
/// <param name="Done">Attention layers done.</param>
/// <param name="Total">Attention layers to do in all.</param>
public readonly record struct InspectionProgress(int Done, int Total);
