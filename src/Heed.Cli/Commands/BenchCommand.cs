using System.CommandLine;
using System.Diagnostics;
using Heed.Lab.Benchmarks;
using Spectre.Console;

namespace Heed.Cli.Commands;

/// <summary><c>heed bench</c>: speed and memory beside libtorch in the same run.</summary>
internal static class BenchCommand
{
    private const string WaitPolicy = "OMP_WAIT_POLICY";

    public static Command Create()
    {
        var names = new Argument<string[]>("name")
        {
            Description = $"What to measure: {string.Join(", ", BenchmarkFamily.All.Select(family => family.Name))}. Default: everything.",
            HelpName = "NAME",
            Arity = ArgumentArity.ZeroOrMore,
        };
        var threads = new Option<int[]>("--threads") { Description = "Numbers of threads to measure with. Default: 1 and every processor.", AllowMultipleArgumentsPerToken = true };
        var page = new Option<string?>("--out") { Description = "The page to write. Default: docs/benchmarks.md where there is a folder docs; none with --quick.", HelpName = "FILE" };
        var quick = new Option<bool>("--quick") { Description = "Small shapes and short measurements, to see that everything runs." };
        var simulate = new Option<string[]>("--simulate")
        {
            Description = "With gna: run nothing, print what the tile simulator says of these problems; without any, of the paper's.", HelpName = NeighborhoodSimulation.Usage,
            Arity = ArgumentArity.ZeroOrMore, AllowMultipleArgumentsPerToken = true,
        };
        var json = CommandExtensions.JsonOption();
        names.AcceptOnlyFromAmong([.. BenchmarkFamily.All.Select(family => family.Name)]);
        return new Command("bench", "Measure speed and memory beside libtorch, in one process with equal threads.") { names, threads, page, quick, simulate, json }
            .Runs((result, terminal, cancellation) =>
            {
                if (result.GetResult(simulate) is { Implicit: false })
                {
                    if (result.GetValue(names) is not ["gna"])
                    {
                        throw new ArgumentException("--simulate counts the tiles of neighborhood attention: write heed bench gna --simulate.");
                    }

                    Simulate(result.GetValue(simulate) ?? [], result.GetValue(json), terminal);
                    return ExitCode.Success;
                }

                // libtorch's idle threads spin and slow whatever runs next. Its OpenMP reads the policy once, when it is loaded: a process that started without it starts another.
                if (Environment.GetEnvironmentVariable(WaitPolicy) is null)
                {
                    return RunAgain(result, cancellation);
                }

                LibTorchSetup.Ensure();
                var isQuick = result.GetValue(quick);
                var chosen = result.GetValue(names) is { Length: > 0 } some ? some : [.. BenchmarkFamily.All.Select(family => family.Name)];
                var counts = result.GetValue(threads) is { Length: > 0 } given ? given : [.. new[] { 1, Environment.ProcessorCount }.Distinct()];
                if (counts.Any(count => count < 1))
                {
                    throw new ArgumentException("--threads takes numbers of threads from 1 up.");
                }

                Run(chosen, counts, result.GetValue(page) ?? (isQuick || !Directory.Exists("docs") ? null : Path.Combine("docs", "benchmarks.md")), isQuick, result.GetValue(json), terminal, cancellation);
                return ExitCode.Success;
            }, usesLibTorch: false);
    }

    private static void Run(string[] names, int[] counts, string? page, bool quick, bool json, Terminal terminal, CancellationToken cancellation)
    {
        var limits = new Dictionary<int, MachineLimits>();
        foreach (var count in counts.Distinct())
        {
            terminal.Notice($"Measuring the machine's limits with {count} thread(s) ...");
            limits[count] = MachineLimits.Measure(count);
        }

        var machine = BenchmarkReport.Machine();
        var words = limits.Select(entry =>
            $"{entry.Key} thread(s): {entry.Value.FusedMultiplyAddGigaflops:0} GFLOP/s multiply-add peak, {entry.Value.ReadGigabytesPerSecond:0.0} GB/s read").ToList();
        var all = new List<BenchmarkResult>();
        foreach (var family in BenchmarkFamily.All.Where(family => names.Contains(family.Name)))
        {
            var rows = new List<BenchmarkResult>();
            foreach (var count in limits.Keys)
            {
                // Before the family makes anything: what it prepares (a graph to go back through) keeps the number of threads that it was made with.
                TorchSharp.torch.set_num_threads(count);
                foreach (var row in family.Run(new(count, quick, limits[count], cancellation)))
                {
                    rows.Add(row);
                    terminal.Notice($"{row.Name,-28} {row.Shape,-34} {row.Threads}t  {row.Milliseconds,10:0.000} ms  {(row.Ratio is { } ratio ? $"{ratio,6:0.00} x {row.Peer}" : "")}{(row.FractionOfLimit is { } share ? $"  {share:P0} of limit" : "")}{(row.Exponent is { } exponent ? $"  exponent {exponent:0.00}" : "")}");
                }
            }

            all.AddRange(rows);
            if (page is not null)
            {
                // Written family by family: what a stopped run has measured stays.
                BenchmarkReport.Update(page, new(family.Name, DateTime.UtcNow, machine, words, rows));
            }
        }

        if (json)
        {
            terminal.WriteJson(all);
            return;
        }

        terminal.Console.WriteLine(machine);
        words.ForEach(line => terminal.Console.WriteLine(line));
        terminal.Console.Write(Table(all));
        if (page is not null)
        {
            terminal.Notice($"Wrote {page}.");
        }
    }

    private static void Simulate(string[] problems, bool json, Terminal terminal)
    {
        var rows = problems.Length > 0 ? [.. problems.Select(problem => NeighborhoodSimulation.One(problem))] : NeighborhoodSimulation.Paper();
        if (json)
        {
            terminal.WriteJson(rows);
            return;
        }

        var table = new Table().Border(TableBorder.Rounded);
        foreach (var column in new[] { "problem", "query tile", "key tile", "bound", "mean", "FLOP-wise", "no mask", "share", "end to end", "published" })
        {
            table.AddColumn(column);
        }

        foreach (var row in rows)
        {
            table.AddRow(
                row.Problem, row.QueryTile, row.KeyTile, $"{row.SpeedupBound:0.000}", $"{row.MeanSpeedup:0.000}", $"{row.FlopSpeedup:0.000}", row.NeedsNoMask ? "yes" : "no", $"{row.AttentionShare:P1}",
                $"{row.EndToEnd:0.000}", $"{row.Published:0.00}");
        }

        terminal.Console.Write(table);
    }

    private static Table Table(List<BenchmarkResult> rows)
    {
        var table = new Table().Border(TableBorder.Rounded);
        foreach (var column in new[] { "work", "shape", "threads", "ours, ms", "peer", "peer, ms", "ratio", "of limit", "peak, MB", "exponent", "aim", "met" })
        {
            table.AddColumn(new TableColumn(column) { NoWrap = column == "work" });
        }

        foreach (var row in rows)
        {
            table.AddRow(
                Markup.Escape(row.Name), Markup.Escape(row.Shape), $"{row.Threads}", $"{row.Milliseconds:0.000}", Markup.Escape(row.Peer), $"{row.PeerMilliseconds:0.000}",
                $"{row.Ratio:0.00}", $"{row.FractionOfLimit:P0}", $"{row.PeakBytes / 1e6:0.0}", $"{row.Exponent:0.00}", Markup.Escape(row.Aim ?? ""), row.Met switch { true => "[green]yes[/]", false => "[red]no[/]", null => "" });
        }

        return table;
    }

    private static int RunAgain(ParseResult result, CancellationToken cancellation)
    {
        // Under the program's own name it is started as it was; hosted by something else (`dotnet`, a test), through its library.
        var library = typeof(BenchCommand).Assembly;
        var own = Environment.ProcessPath is { } path && (Path.GetFileNameWithoutExtension(path) == "heed" || Path.GetFileName(path).StartsWith(library.GetName().Name!, StringComparison.Ordinal));
        var start = new ProcessStartInfo(own ? Environment.ProcessPath! : "dotnet") { UseShellExecute = false };
        if (!own)
        {
            start.ArgumentList.Add(Path.Combine(AppContext.BaseDirectory, $"{library.GetName().Name}.dll"));
        }

        foreach (var token in result.Tokens)
        {
            start.ArgumentList.Add(token.Value);
        }

        start.Environment[WaitPolicy] = "passive";
        using var child = Process.Start(start) ?? throw new InvalidOperationException("The measuring process did not start.");
        using var stop = cancellation.Register(child.Kill);
        child.WaitForExit();
        cancellation.ThrowIfCancellationRequested();
        return child.ExitCode;
    }
}
