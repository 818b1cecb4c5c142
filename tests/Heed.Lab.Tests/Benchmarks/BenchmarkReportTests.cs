using Heed.Lab.Benchmarks;
using Xunit;

namespace Heed.Lab.Tests.Benchmarks;

public sealed class BenchmarkReportTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-benchmarks-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void MeasuringAFamilyAgainReplacesItsSectionOnly()
    {
        var page = Path.Combine(_folder, "benchmarks.md");
        BenchmarkReport.Update(page, Run("window", 7.5));
        BenchmarkReport.Update(page, Run("dense", 1.25));
        BenchmarkReport.Update(page, Run("dense", 1.75));

        var text = File.ReadAllText(page);
        Assert.Contains("1.75", text, StringComparison.Ordinal);
        Assert.DoesNotContain("1.25", text, StringComparison.Ordinal);
        Assert.Contains("7.50", text, StringComparison.Ordinal);
        Assert.True(text.IndexOf("## dense", StringComparison.Ordinal) < text.IndexOf("## window", StringComparison.Ordinal));
        Assert.Equal(2, Directory.GetFiles(_folder).Length);
    }

    [Fact]
    public void EveryRowOfATableHasItsColumns()
    {
        var text = BenchmarkReport.Markdown([Run("dense", 1.5)]);
        Assert.Single(text.Split('\n').Where(line => line.StartsWith('|')).Select(line => line.Count(c => c == '|')).Distinct());
    }

    [Theory]
    [InlineData(2.0, 0.9, true)]
    [InlineData(1.0, 0.9, false)]
    [InlineData(2.0, 0.5, false)]
    public void AnAimIsMetWhenBothItsPartsAre(double ratio, double fraction, bool met) => Assert.Equal(met, new Aim(1.5, 0.8).Met(ratio, fraction));

    [Theory]
    [InlineData(3.0, 1.0, 3.0, 9.0)]
    [InlineData(2.0, 1.0, 3.0)]
    public void TheMedianIsTheMiddleOrTheMeanOfTheTwoMiddles(double expected, params double[] values) => Assert.Equal(expected, PairedTimer.Median(values));

    private static BenchmarkRun Run(string family, double ratio) => new(
        family, new DateTime(2026, 1, 2, 3, 4, 5, DateTimeKind.Utc), "a machine", ["1 thread: a limit"],
        [new BenchmarkResult($"{family}/work", "N1", 1, 10, "peer", 10 * ratio, ratio, 0.5, null, "ratio >= 1", true)]);
}
