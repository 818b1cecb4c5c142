using System.Globalization;

namespace Heed.Lab.Search;

/// <summary>What a head search tries and by what it judges.</summary>
public sealed record HeadSearchProblem
{
    /// <summary>The layers whose heads are tried.</summary>
    public required IReadOnlyList<int> Layers { get; init; }

    /// <summary>Number of heads of a layer.</summary>
    public required int Heads { get; init; }

    /// <summary>Puts the edit into heads until the result is disposed.</summary>
    public required Func<IReadOnlyList<(int Layer, int Head)>, IDisposable> Edit { get; init; }

    /// <summary>Measures the model as it is now. It must be deterministic, or searches differ from each other by its noise.</summary>
    public required Func<CancellationToken, double> Metric { get; init; }

    /// <summary>Whether a smaller metric is better.</summary>
    public required bool LowerIsBetter { get; init; }

    /// <summary>A head is kept where the edit betters the metric by more than this.</summary>
    public double Margin { get; init; }
}

/// <summary>A head that was tried.</summary>
/// <param name="Layer">The layer.</param>
/// <param name="Head">The head.</param>
/// <param name="Value">The metric with the edit in this head alone.</param>
/// <param name="Gain">How much better than without the edit; negative: worse.</param>
/// <param name="Kept">Whether the head is kept.</param>
public sealed record SearchedHead(int Layer, int Head, double Value, double Gain, bool Kept);

/// <summary>What a search found.</summary>
/// <param name="Baseline">The metric without the edit.</param>
/// <param name="Heads">Every head, in order of layer and head.</param>
/// <param name="Together">The metric with the edit in all kept heads at once; null where none is kept.</param>
public sealed record HeadSearchResult(double Baseline, IReadOnlyList<SearchedHead> Heads, double? Together)
{
    /// <summary>The heads that are kept.</summary>
    public IReadOnlyList<(int Layer, int Head)> Kept => [.. Heads.Where(head => head.Kept).Select(head => (head.Layer, head.Head))];
}

/// <summary>How far a search is.</summary>
/// <param name="Done">Measurements done.</param>
/// <param name="Total">Measurements in all.</param>
/// <param name="What">The one that is made next.</param>
/// <param name="Kept">How many of those done were kept from an earlier search.</param>
public readonly record struct HeadSearchProgress(int Done, int Total, string What, int Kept);

/// <summary>Tries an edit in one head after the other and keeps the heads in which it helps: the offline search of arXiv 2406.15765, for any edit and any metric. With an edit that removes a head it is an ablation study.</summary>
public static class HeadSearch
{
    /// <summary>Searches.</summary>
    /// <param name="problem">What is tried.</param>
    /// <param name="cache">Keeps measurements; null: nothing is kept.</param>
    /// <param name="progress">Told before every measurement, and at the end; null: nobody.</param>
    /// <param name="cancellation">Stops before the next measurement, or within one where the metric takes heed of it; what was measured is kept.</param>
    /// <exception cref="ArgumentException">There is no head to try.</exception>
    /// <exception cref="OperationCanceledException">The search was cancelled.</exception>
    public static HeadSearchResult Run(HeadSearchProblem problem, MetricCache? cache = null, Action<HeadSearchProgress>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(problem);
        if (problem.Layers.Count == 0 || problem.Heads < 1 || problem.Layers.Any(layer => layer < 0))
        {
            throw new ArgumentException($"A search needs layers from 0 on and at least one head in each; {problem.Layers.Count} layers of {problem.Heads} heads were given.", nameof(problem));
        }

        var layers = problem.Layers.Distinct().Order().ToArray();
        var (done, total, kept) = (0, (layers.Length * problem.Heads) + 2, 0);
        double Measure(string name, IReadOnlyList<(int Layer, int Head)> heads)
        {
            cancellation.ThrowIfCancellationRequested();
            progress?.Invoke(new(done, total, name, kept));
            double Now()
            {
                using var edited = heads.Count > 0 ? problem.Edit(heads) : null;
                return problem.Metric(cancellation);
            }

            var known = false;
            var value = cache?.Get(name, Now, out known) ?? Now();
            (done, kept) = (done + 1, kept + (known ? 1 : 0));
            return value;
        }

        var baseline = Measure("without", []);
        var heads = new List<SearchedHead>();
        foreach (var layer in layers)
        {
            for (var head = 0; head < problem.Heads; head++)
            {
                var value = Measure(Name([(layer, head)]), [(layer, head)]);
                var gain = problem.LowerIsBetter ? baseline - value : value - baseline;
                heads.Add(new(layer, head, value, gain, gain > problem.Margin));
            }
        }

        var found = new HeadSearchResult(baseline, heads, null);
        // One kept head alone was measured already.
        var together = found.Kept.Count switch { 0 => (double?)null, 1 => heads.Single(head => head.Kept).Value, _ => Measure(Name(found.Kept), found.Kept) };
        progress?.Invoke(new(total, total, "done", kept));
        return found with { Together = together };
    }

    private static string Name(IReadOnlyList<(int Layer, int Head)> heads) => string.Join('/', heads.Select(head => string.Create(CultureInfo.InvariantCulture, $"{head.Layer}.{head.Head}")));
}
