namespace Heed.Lab.Inspection;

/// <summary>What a head looks like, in one word.</summary>
public enum HeadLook
{
    /// <summary>Attends to the token before.</summary>
    Previous,

    /// <summary>Attends to the token itself.</summary>
    Self,

    /// <summary>Attends to what followed the same token earlier.</summary>
    Induction,

    /// <summary>Rests on the first token.</summary>
    Sink,

    /// <summary>Attends to a few tokens nearby.</summary>
    Local,

    /// <summary>Spreads over nearly everything.</summary>
    Broad,

    /// <summary>None of these.</summary>
    Mixed,
}

/// <summary>The one place that decides what a head looks like. The first description that fits wins, from the most specific to the least.</summary>
public static class HeadLooks
{
    /// <summary>Share of the rows whose largest weight must be on the token before (or itself) to call a head by it: most of them.</summary>
    public const double PlaceShare = 0.5;

    /// <summary>Mass that must go, on random tokens said twice, to what followed the first saying. Chance is one over the number of tokens.</summary>
    public const double InductionMass = 0.4;

    /// <summary>Mean mass on the first token that makes a sink: more than on all other tokens together.</summary>
    public const double SinkMass = 0.5;

    /// <summary>Mean mass on the nearest <see cref="HeadStatistics.NearTokens"/> tokens that makes a head local: more than on all others together.</summary>
    public const double LocalMass = 0.5;

    /// <summary>A local head's near mass must also be this many times what equal weights would give; otherwise every head is local in a short text.</summary>
    public const double LocalTimesUniform = 2;

    /// <summary>Share of the largest possible entropy from which a head is broad.</summary>
    public const double BroadEntropyShare = 0.8;

    /// <summary>What a head looks like.</summary>
    public static HeadLook Of(HeadStatistics statistics)
    {
        ArgumentNullException.ThrowIfNull(statistics);
        return statistics switch
        {
            { PreviousShare: >= PlaceShare } => HeadLook.Previous,
            { SelfShare: >= PlaceShare } => HeadLook.Self,
            { Induction: >= InductionMass } => HeadLook.Induction,
            { FirstMass: >= SinkMass } => HeadLook.Sink,
            _ when statistics.NearMass >= Math.Max(LocalMass, LocalTimesUniform * statistics.UniformNearMass) => HeadLook.Local,
            { EntropyShare: >= BroadEntropyShare } => HeadLook.Broad,
            _ => HeadLook.Mixed,
        };
    }

    /// <summary>The word for a look.</summary>
    public static string Word(HeadLook look) => look switch
    {
        HeadLook.Previous => "previous token",
        HeadLook.Self => "self",
        HeadLook.Induction => "induction",
        HeadLook.Sink => "sink",
        HeadLook.Local => "local",
        HeadLook.Broad => "broad",
        HeadLook.Mixed => "mixed",
        _ => throw new ArgumentOutOfRangeException(nameof(look), look, $"There is no look {look}."),
    };

    /// <summary>What it takes to be called so, for legends.</summary>
    public static string Meaning(HeadLook look) => look switch
    {
        HeadLook.Previous => $"the largest weight is on the token before in at least {Percent(PlaceShare)} of the rows",
        HeadLook.Self => $"the largest weight is on the token itself in at least {Percent(PlaceShare)} of the rows",
        HeadLook.Induction => $"on random tokens said twice, at least {Percent(InductionMass)} of the mass goes to what followed the first saying",
        HeadLook.Sink => $"at least {Percent(SinkMass)} of the mass is on the first token",
        HeadLook.Local => $"at least {Percent(LocalMass)} of the mass is on the nearest {HeadStatistics.NearTokens} tokens, and {LocalTimesUniform} times what equal weights would give",
        HeadLook.Broad => $"the entropy is at least {Percent(BroadEntropyShare)} of the largest possible",
        HeadLook.Mixed => "none of the others",
        _ => throw new ArgumentOutOfRangeException(nameof(look), look, $"There is no look {look}."),
    };

    private static string Percent(double share) => $"{100 * share:0}%";
}
