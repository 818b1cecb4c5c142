using System.Globalization;
using System.Text.RegularExpressions;

namespace Heed.Lab.Images;

/// <summary>Scales vision models to a common number of parameters.</summary>
internal static partial class ParameterBudget
{
    /// <summary>What counts as met: the number asked for, up to this share.</summary>
    public const double Tolerance = 0.1;

    private const int WidestWidth = 320;
    private const int CoarseStep = 16;
    private const int FineStep = 4;

    /// <summary>The model with the width, and where that does not suffice the depth, that brings it nearest to a number of parameters. Options that are given stay.</summary>
    /// <param name="model">The model, as <c>NAME:option=value,...</c>.</param>
    /// <param name="task">The pictures.</param>
    /// <param name="target">Parameters asked for.</param>
    /// <returns>The model with its options, and its number of parameters; further away than <see cref="Tolerance"/> where none comes nearer.</returns>
    /// <exception cref="ArgumentException">There is no such model, or an option is wrong.</exception>
    public static (string Model, long Parameters) Scale(string model, ImageTask task, long target)
    {
        var given = Count(model, task);
        var best = (Model: model, Parameters: given);
        var usage = ImageModel.All.First(known => known.Name == Specification.Parse(model).Name).Usage;
        var depth = DefaultOf(usage, "depth");
        if (DefaultOf(usage, "width") is null || HasOption(model, "width"))
        {
            return best;
        }

        // Each depth from the nearest to the default on; the first that comes within tolerance is kept.
        var depths = depth is { } usual && !HasOption(model, "depth") ? new[] { usual, usual + 1, usual - 1, usual + 2, usual - 2 }.Where(value => value > 0).Select(value => (int?)value) : [null];
        foreach (var layers in depths)
        {
            // Coarsely first, then every width around the best.
            var around = Search(layers, Enumerable.Range(1, WidestWidth / CoarseStep).Select(step => step * CoarseStep));
            Search(layers, Enumerable.Range(1 - (CoarseStep / FineStep), (2 * CoarseStep / FineStep) - 1).Where(step => step != 0).Select(step => around + (step * FineStep)).Where(width => width >= FineStep));
            if (Distance(best.Parameters) <= Tolerance)
            {
                break;
            }
        }

        return best;

        int Search(int? layers, IEnumerable<int> widths)
        {
            var (nearest, distance) = (CoarseStep, double.PositiveInfinity);
            foreach (var width in widths)
            {
                var candidate = With(layers is null || layers == depth ? model : With(model, "depth", layers.Value), "width", width);
                long parameters;
                try
                {
                    parameters = Count(candidate, task);
                }
                catch (ArgumentException)
                {
                    // A width that does not divide into heads, for example.
                    continue;
                }

                if (Distance(parameters) < distance)
                {
                    (nearest, distance) = (width, Distance(parameters));
                }

                if (Distance(parameters) < Distance(best.Parameters))
                {
                    best = (candidate, parameters);
                }

                if (parameters > 2 * target)
                {
                    break;
                }
            }

            return nearest;
        }

        double Distance(long parameters) => Math.Abs(parameters - target) / (double)target;
    }

    private static long Count(string model, ImageTask task)
    {
        using var made = ImageModel.Make(model, task);
        return made.parameters().Sum(parameter => parameter.numel());
    }

    private static string With(string model, string option, int value) => string.Create(CultureInfo.InvariantCulture, $"{model}{(model.Contains(':', StringComparison.Ordinal) ? ',' : ':')}{option}={value}");

    private static bool HasOption(string model, string option) => Specification.Parse(model).Text(option) is not null;

    private static int? DefaultOf(string usage, string option) => Option().Matches(usage).FirstOrDefault(match => match.Groups[1].Value == option) is { } match ? int.Parse(match.Groups[2].Value, CultureInfo.InvariantCulture) : null;

    [GeneratedRegex(@"(\w+)=(\d+)")]
    private static partial Regex Option();
}
