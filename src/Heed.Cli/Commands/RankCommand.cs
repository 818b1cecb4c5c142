using System.CommandLine;
using System.Globalization;
using Heed.Biases;
using Heed.Lab.Biases;
using Spectre.Console;

namespace Heed.Cli.Commands;

/// <summary><c>heed rank FILE</c>: which rank a stored bias needs.</summary>
internal static class RankCommand
{
    public static Command Create()
    {
        var file = new Argument<string>("FILE") { Description = "A safetensors file with a bias, [heads, queries, keys] or [queries, keys]." };
        var name = new Option<string?>("--tensor") { Description = "The bias's name, where the file holds several tensors.", HelpName = "NAME" };
        var width = new Option<int>("--width") { Description = "Width of the heads in the trial attention.", HelpName = "D", DefaultValueFactory = _ => 32 }.Between(1, 1024);
        var figure = new Option<string?>("--out") { Description = "Where a figure of the errors goes.", HelpName = "FILE.png" };
        var json = CommandExtensions.JsonOption();
        var command = new Command("rank", "Tell which rank a stored attention bias needs: energy kept and output error, rank by rank.") { file, name, width, figure, json };
        return command.Runs((result, terminal, cancellation) =>
        {
            var path = result.GetRequiredValue(file);
            var report = BiasRankReport.OfFile(path, result.GetValue(name), result.GetValue(width), cancellation);
            if (result.GetValue(figure) is { } picture)
            {
                report.Figure($"{Path.GetFileNameWithoutExtension(path)}: error of the output by rank").Save(picture);
            }

            if (result.GetValue(json))
            {
                terminal.WriteJson(report);
                return ExitCode.Success;
            }

            Write(terminal, report, result.GetValue(width));
            if (result.GetValue(figure) is { } written)
            {
                terminal.Out.WriteLine($"wrote {written}");
            }

            return ExitCode.Success;
        });
    }

    private static void Write(Terminal terminal, BiasRankReport report, int width)
    {
        var invariant = CultureInfo.InvariantCulture;
        terminal.Out.WriteLine(string.Create(invariant, $"{report.Heads} heads, {report.Queries} queries, {report.Keys} keys; errors of the attention output for random queries, keys and values."));
        var table = new Table().Border(TableBorder.Rounded);
        foreach (var column in new[] { "rank", "energy kept", "energy, row means removed", "output error", "output error, row means removed" })
        {
            table.AddColumn(new TableColumn(column).RightAligned());
        }

        foreach (var row in report.Ranks)
        {
            table.AddRow(
                $"{row.Rank}", row.Energy.ToString("P3", invariant), row.EnergyWithoutRowMeans.ToString("P3", invariant), row.OutputError.ToString("E1", invariant),
                row.OutputErrorWithoutRowMeans.ToString("E1", invariant));
        }

        terminal.Console.Write(table);
        foreach (var at in report.Thresholds)
        {
            terminal.Out.WriteLine(string.Create(invariant, $"{at.Share:P1} of the energy of every head: rank {at.Rank}, or {at.RankWithoutRowMeans} of what a softmax can see."));
        }

        var faster = FactoredBiasCost.LargestFasterRank(width, width);
        terminal.Out.WriteLine(string.Create(invariant, $"Factors are faster than the dense bias up to about rank {faster} (heads of {width}); they take {(double)(report.Queries + report.Keys) / (report.Queries * report.Keys):P2} of its memory per rank."));
    }
}
