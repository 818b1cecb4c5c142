using Heed.Edits;
using Heed.Masks;

namespace Heed.Lab.Mechanisms;

/// <summary>A sparse mechanism that can stand in place of the dense attention of a model: what <c>--attention NAME:option=value,...</c> and <c>heed draw NAME</c> know.</summary>
/// <param name="Name">Name on the command line.</param>
/// <param name="Usage">How to write it, with every option and its default.</param>
/// <param name="Summary">What it is, in one line.</param>
/// <param name="Slug">The paper; null where it is nobody's.</param>
/// <param name="Create">Reads the options (each must be read, so that a misspelt one is an error) and returns what makes a selector for a layer. Models are causal: defaults suit text.</param>
public sealed record AttentionMechanism(
    string Name, string Usage, string Summary, string? Slug, Func<Specification, Func<AttentionSite, AttentionSelector?>> Create)
{
    private const string DenseLayers = "dense";

    /// <summary>All mechanisms.</summary>
    public static IReadOnlyList<AttentionMechanism> All { get; } =
    [
        new("window", "window:w=128", "every query sees itself and the w - 1 keys before it", null, specification => WindowOf(specification.Integer("w", 128, 1))),
        new("hip", SearchMechanisms.HipUsage, "HiP: a beam search down a tree finds the k best keys of every query block; window and first keys beside them", "hip-attention", SearchMechanisms.Hip),
        new("chunk-scan", SearchMechanisms.ChunkScanUsage, "HiP 1.2: scans of ever smaller chunks find the k best keys of every query block", "hip-attention", SearchMechanisms.ChunkScan),
        new("superlinear", SearchMechanisms.SuperlinearUsage, "window and k spans around the best anchors of every query, in one softmax (untrained)", "superlinear-attention", SearchMechanisms.Superlinear),
    ];

    /// <summary>The edit that puts a mechanism into a model: install it on the model's hooks.</summary>
    /// <param name="text">For example <c>window:w=64</c>. Every mechanism also takes <c>dense=N</c>: the first N layers stay as they are.</param>
    /// <exception cref="ArgumentException">There is no such mechanism, or an option is wrong.</exception>
    public static SelectorEdit Edit(string text)
    {
        var specification = Specification.Parse(text);
        var mechanism = All.FirstOrDefault(mechanism => mechanism.Name == specification.Name)
            ?? throw new ArgumentException($"There is no attention mechanism '{specification.Name}'; there are: {string.Join(", ", All.Select(known => known.Name))}.");
        var dense = specification.Integer(DenseLayers, 0, 0);
        var selectorAt = mechanism.Create(specification);
        specification.RefuseUnread();
        return new(site => site.Layer < dense ? null : selectorAt(site));
    }

    private static Func<AttentionSite, AttentionSelector?> WindowOf(int width)
    {
        return _ => new WindowSelector(width);
    }
}
