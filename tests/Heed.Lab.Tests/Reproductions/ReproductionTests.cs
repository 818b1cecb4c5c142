using System.Diagnostics;
using Heed.Lab.Catalogue;
using Heed.Lab.Reproductions;
using Xunit;

namespace Heed.Lab.Tests.Reproductions;

public sealed class ReproductionTests
{
    public static TheoryData<string> Slugs => [.. Reproduction.All.Append(new SampleReproduction()).Select(reproduction => reproduction.Slug)];

    [Fact]
    public void Every_reproduction_is_of_a_paper_and_no_paper_has_two()
    {
        Assert.All(Reproduction.All, reproduction => Assert.Equal(reproduction.Slug, PaperCatalogue.Find(reproduction.Slug).Slug));
        Assert.Equal(Reproduction.All.Count, Reproduction.All.Select(reproduction => reproduction.Slug).Distinct().Count());
    }

    [Fact]
    public void What_is_recorded_is_of_reproductions_that_exist_and_whole() => Assert.All(ReproductionLog.Recorded.Values, record =>
    {
        Assert.False(record.Quick);
        Assert.NotEmpty(record.Claims);
        Assert.Equal(record.Slug, Reproduction.Find(record.Slug).Slug);
    });

    [Fact]
    public void An_unknown_slug_is_told() => Assert.Contains("'none'", Assert.Throws<ArgumentException>(() => Reproduction.Find("none")).Message, StringComparison.Ordinal);

    // Verdicts are not asked for: on problems this small they say nothing.
    [Theory]
    [MemberData(nameof(Slugs))]
    public void A_quick_run_states_its_claims(string slug)
    {
        var folder = Directory.CreateTempSubdirectory("heed-quick-").FullName;
        try
        {
            using var process = Process.GetCurrentProcess();
            var before = process.TotalProcessorTime;
            var reproduction = slug == "sample" ? new SampleReproduction() : Reproduction.Find(slug);
            var record = ReproductionRunner.Run(reproduction, folder, quick: true, resume: false, cancellation: TestContext.Current.CancellationToken);

            Assert.All(record.Claims, claim =>
            {
                Assert.EndsWith(".", claim.Claim, StringComparison.Ordinal);
                Assert.NotEmpty(claim.Source);
                Assert.NotEmpty(claim.Expected);
                Assert.NotEmpty(claim.Measured);
                Assert.DoesNotContain("NaN", claim.Measured, StringComparison.Ordinal);
            });
            Assert.Equal(record.Claims, ReproductionRunner.Finished(folder, quick: true)!.Claims);
            // Twenty seconds on two quiet cores, counted as processor time: a busy machine takes longer by the clock. Half as much again for what the runtime does beside.
            process.Refresh();
            var spent = (process.TotalProcessorTime - before).TotalSeconds;
            Assert.True(spent < 60, $"{slug} --quick took {spent:0} s of processor time.");
        }
        catch (FileNotFoundException missing) when (missing.Message.Contains("apt-get install", StringComparison.Ordinal))
        {
            Assert.Skip(missing.Message);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }
}
