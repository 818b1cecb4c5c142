namespace Heed.Lab.Catalogue;

/// <summary>How far a paper's mechanism has come.</summary>
public enum PaperState
{
    /// <summary>Not built.</summary>
    NotYet,

    /// <summary>Built; agrees with the golden cases.</summary>
    Verified,

    /// <summary>Verified, and the paper's claim has been tested at small scale; the verdict may be yes or no.</summary>
    Reproduced,
}

/// <summary>The part of the code that a mechanism belongs to.</summary>
public enum Room
{
    /// <summary>Which pairs are computed.</summary>
    Masks,

    /// <summary>What is added to a score.</summary>
    Biases,

    /// <summary>How heads are routed, gated, mixed and projected.</summary>
    Heads,

    /// <summary>What stands in place of softmax attention.</summary>
    Mixers,

    /// <summary>What observes attention.</summary>
    Probes,

    /// <summary>What changes the attention of a trained model.</summary>
    Edits,

    /// <summary>Whole model families.</summary>
    Models,

    /// <summary>Experiments: data, losses, measures.</summary>
    Lab,
}

/// <summary>A paper whose mechanism is, or will be, part of Heed.</summary>
/// <param name="Slug">Short name, unique; also the folder of its golden cases.</param>
/// <param name="Title">Title.</param>
/// <param name="ArXiv">arXiv id.</param>
/// <param name="Year">Year of its first version.</param>
/// <param name="Room">Where its mechanism lives or will live.</param>
/// <param name="What">What it is, in one line.</param>
/// <param name="Claim">Its main claim, with the figure where one could be sourced.</param>
public sealed record Paper(string Slug, string Title, string ArXiv, int Year, Room Room, string What, string Claim)
{
    /// <summary>How far it has come.</summary>
    public PaperState State { get; init; }

    /// <summary>Its main source file, from the repository's root; null until there is one.</summary>
    public string? Location { get; init; }

    /// <summary>What the last measurement said: the verdict and its figure; null until there is one.</summary>
    public string? Verdict { get; init; }

    /// <summary>The state in words.</summary>
    public string StateName => State switch { PaperState.Verified => "verified", PaperState.Reproduced => "reproduced", _ => "not yet" };
}
