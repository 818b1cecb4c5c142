using System.Text.Json;
using Heed.Lab.Reproductions;
using Xunit;

namespace Heed.Lab.Tests.Reproductions;

public sealed class ReproductionRunnerTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-reproductions-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void A_run_leaves_results_and_a_report_and_nothing_else()
    {
        var told = new List<ReproductionProgress>();

        var record = ReproductionRunner.Run(new SampleReproduction(), _folder, quick: false, resume: false, told.Add, TestContext.Current.CancellationToken);

        Assert.Equal(["report.html", "results.json"], Directory.GetFiles(_folder).Select(path => Path.GetFileName(path)!).Order());
        Assert.Equal(["first", "second"], told.Select(progress => progress.What));
        Assert.Equal("1 of 3 claims confirmed, 1 not confirmed, 1 inconclusive", record.Counts);
        Assert.EndsWith($"). A claim where a < b: {record.Claims[0].Measured}", record.Summary, StringComparison.Ordinal);
        using var json = JsonDocument.Parse(File.ReadAllText(Path.Combine(_folder, "results.json")));
        Assert.Equal("sample", json.RootElement.GetProperty("slug").GetString());
        Assert.False(json.RootElement.GetProperty("quick").GetBoolean());
        Assert.Equal([1, 2, 3], json.RootElement.GetProperty("seeds").EnumerateArray().Select(seed => seed.GetInt32()));
        Assert.Equal(["confirmed", "not confirmed", "inconclusive"], json.RootElement.GetProperty("claims").EnumerateArray().Select(claim => claim.GetProperty("verdict").GetString()));
        foreach (var name in new[] { "claim", "source", "expected", "measured" })
        {
            Assert.All(json.RootElement.GetProperty("claims").EnumerateArray(), claim => Assert.NotEqual("", claim.GetProperty(name).GetString()));
        }

        Assert.True(json.RootElement.TryGetProperty("seconds", out _) && json.RootElement.TryGetProperty("date", out _) && json.RootElement.TryGetProperty("machine", out _));
    }

    [Fact]
    public void The_report_needs_nothing_beside_itself_and_escapes_what_it_tells()
    {
        ReproductionRunner.Run(new SampleReproduction(), _folder, quick: true, resume: false, cancellation: TestContext.Current.CancellationToken);

        var page = File.ReadAllText(Path.Combine(_folder, "report.html"));
        Assert.Equal(2, page.Split("src=\"data:image/png;base64,").Length - 1);
        Assert.DoesNotContain("src=\"http", page, StringComparison.Ordinal);
        Assert.DoesNotContain("<script", page, StringComparison.Ordinal);
        Assert.Contains("a &lt; b", page, StringComparison.Ordinal);
        Assert.Contains("heed reproduce sample --quick", page, StringComparison.Ordinal);
        Assert.DoesNotContain("{{", page, StringComparison.Ordinal);
    }

    [Fact]
    public void A_stopped_run_goes_on_to_what_an_uninterrupted_one_measures()
    {
        using var stop = new CancellationTokenSource();
        var (whole, halves) = (Path.Combine(_folder, "whole"), Path.Combine(_folder, "halves"));
        var expected = ReproductionRunner.Run(new SampleReproduction(), whole, quick: false, resume: false, cancellation: TestContext.Current.CancellationToken);

        var stopped = new SampleReproduction { AfterFirst = stop.Cancel };
        Assert.Throws<OperationCanceledException>(() => ReproductionRunner.Run(stopped, halves, quick: false, resume: false, cancellation: stop.Token));

        Assert.True(ReproductionRunner.IsUnfinished(halves, quick: false));
        Assert.False(ReproductionRunner.IsUnfinished(halves, quick: true));
        Assert.Contains("--resume", Assert.Throws<ArgumentException>(() => ReproductionRunner.Run(new SampleReproduction(), halves, quick: false, resume: false, cancellation: TestContext.Current.CancellationToken)).Message, StringComparison.Ordinal);
        var resumed = new SampleReproduction();
        var record = ReproductionRunner.Run(resumed, halves, quick: false, resume: true, cancellation: TestContext.Current.CancellationToken);

        Assert.Equal((1, 1), (stopped.Measurements, resumed.Measurements));
        Assert.Equal(expected.Claims, record.Claims);
        Assert.False(ReproductionRunner.IsUnfinished(halves, quick: false));
        Assert.Equal(record.Claims, ReproductionRunner.Finished(halves, quick: false)!.Claims);
        Assert.Null(ReproductionRunner.Finished(halves, quick: true));
    }

    [Fact]
    public void The_same_seed_gives_the_same_numbers()
    {
        var first = ReproductionRunner.Run(new SampleReproduction(), _folder, quick: true, resume: false, cancellation: TestContext.Current.CancellationToken);
        var second = ReproductionRunner.Run(new SampleReproduction(), _folder, quick: true, resume: false, cancellation: TestContext.Current.CancellationToken);

        Assert.Equal(first.Claims, second.Claims);
    }

    [Fact]
    public void A_broken_memory_is_told()
    {
        File.WriteAllText(Path.Combine(_folder, "unfinished.json"), "{ half");

        var error = Assert.Throws<InvalidDataException>(() => ReproductionRunner.Run(new SampleReproduction(), _folder, quick: false, resume: true, cancellation: TestContext.Current.CancellationToken));
        Assert.Contains("delete it", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_log_keeps_the_last_full_run_of_every_paper()
    {
        var page = Path.Combine(_folder, "reproductions.md");
        var record = ReproductionRunner.Run(new SampleReproduction(), Path.Combine(_folder, "run"), quick: false, resume: false, cancellation: TestContext.Current.CancellationToken);
        ReproductionLog.Update(page, record with { Slug = "other" });
        ReproductionLog.Update(page, record with { Seconds = 77 });
        ReproductionLog.Update(page, record with { Seconds = 88 });

        var text = File.ReadAllText(page);
        Assert.Equal(2, text.Split("\n## ").Length - 1);
        Assert.True(text.IndexOf("## other", StringComparison.Ordinal) < text.IndexOf("## sample", StringComparison.Ordinal));
        Assert.DoesNotContain("77 s", text, StringComparison.Ordinal);
        Assert.Contains("88 s", text, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => ReproductionLog.Update(page, record with { Quick = true }));
    }
}
