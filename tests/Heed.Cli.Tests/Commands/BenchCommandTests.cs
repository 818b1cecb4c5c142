using System.Text.Json;
using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed class BenchCommandTests
{
    [Fact]
    public async Task Rows_have_the_shape_that_programs_rely_on()
    {
        using var process = Shell.Start(["bench", "bias", "statistics", "--quick", "--json", "--threads", "1"]);
        var result = await Shell.EndAsync(process);
        Assert.Equal(0, result.Code);
        var rows = JsonDocument.Parse(result.Out).RootElement.EnumerateArray().ToList();
        Assert.Contains(rows, row => row.GetProperty("name").GetString() == "bias/ALiBi");
        Assert.Contains(rows, row => row.GetProperty("name").GetString() == "statistics/rows");
        foreach (var row in rows)
        {
            Assert.True(row.GetProperty("milliseconds").GetDouble() > 0);
            Assert.Equal(1, row.GetProperty("threads").GetInt32());
            foreach (var name in new[] { "shape", "peer", "peer_milliseconds", "ratio", "fraction_of_limit", "peak_bytes" })
            {
                Assert.True(row.TryGetProperty(name, out _), name);
            }
        }
    }

    [Fact]
    public async Task The_simulator_prints_the_papers_bounds_and_those_of_ones_own_problems()
    {
        var paper = JsonDocument.Parse((await Shell.RunAsync("bench", "gna", "--simulate", "--json")).Out).RootElement.EnumerateArray().ToList();
        Assert.All(paper.Where(row => row.GetProperty("end_to_end").ValueKind == JsonValueKind.Number),
            row => Assert.Equal(row.GetProperty("published").GetDouble(), row.GetProperty("end_to_end").GetDouble(), 0.01));
        var own = await Shell.RunAsync("bench", "gna", "--simulate", "64x64:w=16x16,stride=16x16,q=8x8,k=8x8", "--json");
        Assert.Equal(16, JsonDocument.Parse(own.Out).RootElement[0].GetProperty("speedup_bound").GetDouble());
        var wrong = await Shell.RunAsync("bench", "dense", "--simulate");
        Assert.NotEqual(0, wrong.Code);
        Assert.Contains("heed bench gna --simulate", wrong.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Unknown_names_are_told_with_the_known_ones()
    {
        var result = await Shell.RunAsync("bench", "nothing");
        Assert.Equal(ExitCode.Usage, result.Code);
        Assert.Contains("decoding", result.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Help_of_the_tool_fits_a_terminal()
    {
        var result = await Shell.RunAsync("--help");
        Assert.All(result.Out.Split('\n'), line => Assert.True(line.TrimEnd().Length < 200, line));
    }
}
