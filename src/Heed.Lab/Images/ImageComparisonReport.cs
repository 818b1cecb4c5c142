using System.Globalization;
using System.Text;
using Heed.Lab.Figures;
using Heed.Models;

namespace Heed.Lab.Images;

/// <summary>What the runs of one model come to.</summary>
/// <param name="Model">The model as it was asked for.</param>
/// <param name="Scaled">With the options that bring it to the common number of parameters.</param>
/// <param name="Parameters">Its number of parameters.</param>
/// <param name="Seeds">Number of seeds.</param>
/// <param name="Accuracy">Mean accuracy over the seeds.</param>
/// <param name="Spread">Standard deviation of the accuracy over the seeds; null for one seed.</param>
/// <param name="Loss">Mean cross-entropy, nats.</param>
/// <param name="Steps">Mean number of steps.</param>
/// <param name="PicturesPerSecond">Pictures trained on in a second.</param>
/// <param name="MillisecondsPerPicture">Time of a picture in evaluation.</param>
public sealed record ComparedModel(
    string Model, string Scaled, long Parameters, int Seeds, double Accuracy, double? Spread, double Loss, double Steps, double PicturesPerSecond, double MillisecondsPerPicture);

/// <summary>Writes a comparison as a page: a table, a figure, and how to read them.</summary>
public static class ImageComparisonReport
{
    private const int Batch = 64;

    // As many lines as colours tell apart.
    private const int LinesOfFigure = 7;

    /// <summary>The runs by model, the most accurate first.</summary>
    public static IReadOnlyList<ComparedModel> Summary(IEnumerable<ComparedRun> runs) => [.. runs.GroupBy(run => run.Model).Select(group =>
    {
        var all = group.ToList();
        var mean = all.Average(run => run.Accuracy);
        double? spread = all.Count > 1 ? Math.Sqrt(all.Sum(run => (run.Accuracy - mean) * (run.Accuracy - mean)) / (all.Count - 1)) : null;
        return new ComparedModel(
            group.Key, all[0].Scaled, all[0].Parameters, all.Count, mean, spread, all.Average(run => run.Loss), all.Average(run => run.Steps), all.Average(run => run.Steps * Batch / run.Seconds),
            all.Average(run => run.MillisecondsPerPicture));
    }).OrderByDescending(model => model.Accuracy)];

    /// <summary>Writes the page and its figure (beside it, in <c>images</c>).</summary>
    /// <param name="page">The Markdown file.</param>
    /// <param name="runs">The runs, of one budget.</param>
    /// <returns>The files written.</returns>
    /// <exception cref="ArgumentException">There are no runs.</exception>
    public static IReadOnlyList<string> Write(string page, IReadOnlyList<ComparedRun> runs)
    {
        ArgumentNullException.ThrowIfNull(runs);
        if (runs.Count == 0)
        {
            throw new ArgumentException("There are no runs to write a page of.", nameof(runs));
        }

        var figure = Path.Combine(Path.GetDirectoryName(Path.GetFullPath(page))!, "images", "comparison.png");
        Figure(runs).Save(figure);
        AtomicFile.WriteText(page, Markdown(runs));
        return [page, figure];
    }

    /// <summary>The page.</summary>
    public static string Markdown(IReadOnlyList<ComparedRun> runs)
    {
        ArgumentNullException.ThrowIfNull(runs);
        var models = Summary(runs);
        var (first, last) = (runs.Min(run => run.Date), runs.Max(run => run.Date));
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture,
            $"""
            # Choosing a mixer

            Vision models on Fashion-MNIST (28 x 28 pixels, ten classes), each scaled by its width to about {runs[0].Target:N0} parameters and trained for {runs[0].Budget:0.#} seconds on one thread, {runs.Select(run => run.Seed).Distinct().Count()} seed(s).
            Written by `heed compare`; every figure is one that it measured, {(first.Date == last.Date ? $"on {last:yyyy-MM-dd}" : $"from {first:yyyy-MM-dd} to {last:yyyy-MM-dd}")} on {string.Join("; ", runs.Select(run => run.Machine).Distinct())}.

            | model | parameters | accuracy, % | loss, nats | steps | pictures/s, training | ms per picture |
            |---|---:|---:|---:|---:|---:|---:|

            """);
        foreach (var model in models)
        {
            var far = Math.Abs(model.Parameters - runs[0].Target) > ParameterBudget.Tolerance * runs[0].Target ? " (!)" : "";
            text.Append(CultureInfo.InvariantCulture,
                $"| `{model.Scaled}` | {model.Parameters:N0}{far} | {100 * model.Accuracy:F1}{(model.Spread is { } spread ? string.Create(CultureInfo.InvariantCulture, $" ± {100 * spread:F1}") : "")} | {model.Loss:F3} | {model.Steps:N0} | {model.PicturesPerSecond:N0} | {model.MillisecondsPerPicture:F3} |\n");
        }

        text.Append(
            """

            ![Accuracy against time](images/comparison.png)

            ## How to read it
            - **Accuracy** is of all 10,000 held-out pictures after the time was up, mean ± standard deviation over the seeds. Differences smaller than the spread say nothing.
            - **Steps** is what the time allowed (batches of 64), from the step time measured before each run: a mixer that is cheap sees more pictures. Both what a mixer learns from a picture and what a picture costs are in the accuracy;
              the column tells them apart.
            - **ms per picture** is evaluation in batches of 64 on one thread.
            - All models start alike (weights of linear layers and convolutions uniform within one over the root of what enters an output, whatever their authors draw for far wider models) and get the same recipe (AdamW, largest learning rate 0.002, cosine, weight decay 0.05), none was tuned. An (!) marks a model whose options do not reach the common number of parameters within 10 %.
            - Pictures are small (at most 49 to 784 positions): what is linear in the number of positions gains nothing over attention here. The [benchmarks](../benchmarks.md) show where it does.

            Again: `heed compare --report docs/mixers/comparison.md`; one model in full: `heed train fashion --model NAME`, then `heed inspect --model models/fashion`.

            """);
        return text.ToString();
    }

    private static LineFigure Figure(IReadOnlyList<ComparedRun> runs)
    {
        var best = Summary(runs).Take(LinesOfFigure).Select(model => model.Model).ToList();
        return new(
            $"The {best.Count} most accurate of {runs.Select(run => run.Model).Distinct().Count()} models", "seconds of training, one thread", "held-out accuracy",
            [.. best.Select(name =>
            {
                // The courses of the seeds are as long as each other up to the last steps.
                var own = runs.Where(run => run.Model == name).ToList();
                var points = own.Min(run => run.Course.Count);
                return new FigureLine(
                    name, [.. Enumerable.Range(0, points).Select(point => own.Average(run => run.Seconds * run.Course[point].Step / run.Steps))],
                    [.. Enumerable.Range(0, points).Select(point => own.Average(run => run.Course[point].Value))], Markers: true);
            })]);
    }
}
