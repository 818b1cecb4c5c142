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

    /// <summary>An example that leaves pairs out among 128 tokens already; null: the defaults do.</summary>
    public string? Sparse { get; init; }

    /// <summary>An example that computes every pair of up to 128 tokens and so gives dense attention; null: there is none.</summary>
    public string? Everything { get; init; }

    /// <summary>Whether a query that is decoded with a cache sees what it sees in a prefill of the whole text. Not so where queries are selected for in blocks, or where a selection is kept for some steps.</summary>
    public bool DecodesAsPrefill { get; init; }

    /// <summary>All mechanisms.</summary>
    public static IReadOnlyList<AttentionMechanism> All { get; } =
    [
        new("window", "window:w=128", "every query sees itself and the w - 1 keys before it", null, specification => WindowOf(specification.Integer("w", 128, 1)))
        {
            Sparse = "window:w=9", Everything = "window:w=128", DecodesAsPrefill = true,
        },
        NeighborhoodMechanism.Mechanism,
        new("vmoba", "vmoba:block=32,k=4", "every query sees its own block and the k - 1 complete blocks before it whose mean key it likes best", "vmoba", BlocksOf)
        {
            Sparse = "vmoba:block=8,k=3", Everything = "vmoba:block=16,k=64", DecodesAsPrefill = true,
        },
        new("psa", "psa:block=32,full=0.7,half=0.8,quarter=0.9,eighth=0.9,rank=importance,stride=8,text=0,similarity=0.75/0.7/0.7",
            "every block of queries reads blocks of keys in full, pooled by 2, 4 or 8, or not at all, by their importance", "psa", PyramidOf)
        {
            Sparse = "psa:block=16,full=0.4,half=0.6,quarter=0.7,eighth=0.8,similarity=0/0/-1", Everything = "psa:block=32,full=1,half=1,quarter=1,eighth=1",
        },
        SearchMechanisms.Hip,
        SearchMechanisms.ChunkScan,
        SearchMechanisms.Superlinear,
        new("dma", DynamicMaskMechanism.Usage, "dynamic masks: the w keys of largest importance, drawn at random here (a demonstration: importance is learned)", "dynamic-mask-attention", DynamicMaskMechanism.Create)
        {
            Sparse = "dma:w=9",
        },
    ];

    /// <summary>The edit that puts a mechanism into a model: install it on the model's hooks.</summary>
    /// <param name="text">For example <c>window:w=64</c>. Every mechanism also takes <c>dense=N</c>: the first N layers stay as they are.</param>
    /// <exception cref="ArgumentException">There is no such mechanism, or an option is wrong.</exception>
    public static SelectorEdit Edit(string text) => new(Selectors(text));

    /// <summary>What makes the selectors of a model's layers.</summary>
    /// <param name="text">As for <see cref="Edit"/>.</param>
    /// <returns>A new selector for a site; null where the site stays dense.</returns>
    /// <exception cref="ArgumentException">As for <see cref="Edit"/>.</exception>
    public static Func<AttentionSite, AttentionSelector?> Selectors(string text)
    {
        var specification = Specification.Parse(text);
        var mechanism = All.FirstOrDefault(mechanism => mechanism.Name == specification.Name)
            ?? throw new ArgumentException(specification.Name == MixtureOfHeadSwap.Name
                ? "'moh' chooses heads, not keys, and needs a whole decoder: `heed generate`, `heed inspect` and `heed train reader` take it."
                : $"There is no attention mechanism '{specification.Name}'; there are: {string.Join(", ", All.Select(known => known.Name))} (`heed attention` tells their options).");
        var dense = specification.Integer(DenseLayers, 0, 0);
        var selectorAt = mechanism.Create(specification);
        specification.RefuseUnread();
        return site => site.Layer < dense ? null : selectorAt(site);
    }

    private static Func<AttentionSite, AttentionSelector?> BlocksOf(Specification specification)
    {
        var options = new MixtureOfBlocksOptions
        {
            BlockSize = specification.Integer("block", 32, 1), TopK = specification.Integer("k", 4, 1), Mode = BlockSelectionMode.TopK, Scope = BlockSelectionScope.QueryHead,
            EmptySelection = EmptyBlockSelection.OwnBlockOnly,
        };
        return _ => new MixtureOfBlocksSelector(options);
    }

    private static Func<AttentionSite, AttentionSelector?> PyramidOf(Specification specification)
    {
        var block = specification.Integer("block", 32, 8);
        double[] ends =
        [
            0, specification.Number("full", 0.7), specification.Number("half", 0.8), specification.Number("quarter", 0.9), specification.Number("eighth", 0.9), 1,
        ];
        var ranking = specification.Text("rank") switch
        {
            null or "importance" => PyramidRanking.Cumulative,
            "count" => PyramidRanking.TopK,
            var other => throw new ArgumentException($"rank of 'psa' is importance (shares of importance) or count (shares of the blocks), not '{other}'."),
        };
        var thresholds = (specification.Text("similarity") ?? "0.75/0.7/0.7").Split('/');
        if (thresholds.Length != 3 || !thresholds.All(part => double.TryParse(part, out _)))
        {
            throw new ArgumentException("similarity of 'psa' is three numbers, what the mean cosine must exceed for pooling by 2, 4 and 8: for example 0.75/0.7/0.7, or 0/0/-1 to pool whatever comes.");
        }

        var options = new PyramidOptions
        {
            QueryBlock = block, KeyBlock = block, Importance = PyramidImportance.Antidiagonal, Ranking = ranking, Stride = specification.Integer("stride", 8, 1), Chunk = block,
            TextLength = specification.Integer("text", 0, 0), UseSimilarity = true,
            SimilarityThresholds = (double.Parse(thresholds[0]), double.Parse(thresholds[1]), double.Parse(thresholds[2])),
            Levels = [.. new[] { 1, 2, 4, 8, 0 }.Select((level, index) => new PyramidLevel(level, ends[index], ends[index + 1]))],
        };
        options.Validate();
        return _ => new PyramidSelector(options);
    }

    private static Func<AttentionSite, AttentionSelector?> WindowOf(int width)
    {
        return _ => new WindowSelector(width);
    }
}
