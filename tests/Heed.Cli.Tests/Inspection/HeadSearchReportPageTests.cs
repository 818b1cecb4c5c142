using System.Globalization;
using Heed.Lab.Search;
using Microsoft.Playwright;
using Xunit;

namespace Heed.Cli.Tests.Inspection;

/// <summary>The report on a head search as its reader meets it: a page without a script.</summary>
public sealed class HeadSearchReportPageTests(Browser browser) : IClassFixture<Browser>, IDisposable
{
    private const string Hostile = "</script><b>";
    private static readonly HeadSearchSubject Subject = new("tiny", "act:beta=0.4", "loss", LowerIsBetter: true, "page.txt", "act:beta=0.4,heads=0.1/1.0");
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-search-page-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task Heads_stand_against_the_model_without_the_edit_in_colours_by_their_gain()
    {
        var (page, complaints) = await Open(Subject, Result(2, 3));
        var facts = await page.InnerTextAsync(".facts");
        Assert.Contains("2.5 loss without it (less is better)", facts, StringComparison.Ordinal);
        Assert.Contains("2 of 6 heads kept", facts, StringComparison.Ordinal);
        Assert.Contains("2.25 with all kept heads at once", facts, StringComparison.Ordinal);
        Assert.Equal("--edit act:beta=0.4,heads=0.1/1.0", await page.InnerTextAsync("code"));

        // A gain is a change downwards of a loss.
        Assert.Equal(["0", "-0.1000", "+0.2000", "-0.1000", "+0.2000", "-0.3000"], await page.Locator(".heat td").AllInnerTextsAsync());
        Assert.Equal("layer 1, head 2: 2.2", await page.Locator(".heat td").Last.GetAttributeAsync("title"));
        var colours = await page.EvaluateAsync<string[]>("[...document.querySelectorAll('.heat td')].map(cell => getComputedStyle(cell).backgroundColor)");
        Assert.Equal(colours[1], colours[3]);
        Assert.Equal(colours[2], colours[4]);
        Assert.Equal(4, colours.Distinct().Count());
        double[] Parts(int cell) => [.. colours[cell].Split('(', ')', ',', ' ', '/').Where(part => part.Length > 0 && char.IsAsciiDigit(part[0])).Select(part => double.Parse(part, CultureInfo.InvariantCulture))];
        Assert.True(Parts(5)[1] > Parts(5)[0], $"the best head is not green: {colours[5]}");
        Assert.True(Parts(2)[0] > Parts(2)[1], $"a worse head is not red: {colours[2]}");
        Assert.Equal(0, Parts(0)[3]);
        Assert.True(Parts(5)[3] > 2 * Parts(1)[3], $"the best head is not stronger: {colours[5]} and {colours[1]}");
        Assert.Equal(2, await page.Locator(".heat td.kept").CountAsync());
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task A_large_model_fits_the_screen_and_its_last_head_can_be_reached()
    {
        var (page, complaints) = await Open(Subject, Result(12, 64));
        Assert.Equal(0, await Browser.OverhangAsync(page));
        await page.Locator(".heat td").Last.ScrollIntoViewIfNeededAsync();
        var box = (await page.Locator(".heat td").Last.BoundingBoxAsync())!;
        Assert.InRange(box.X + box.Width, 0, 1440);
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Hostile_text_stays_text_and_the_dark_scheme_is_dark()
    {
        var hostile = new HeadSearchSubject(Hostile, Hostile, Hostile, LowerIsBetter: false, Hostile, Hostile);
        var (page, complaints) = await Open(hostile, Result(2, 3), ColorScheme.Dark);
        Assert.Equal($"{Hostile} in the heads of {Hostile}, one by one", await page.InnerTextAsync("h1"));
        Assert.Equal($"{Hostile} in the heads of {Hostile}", await page.TitleAsync());
        Assert.Contains($"on {Hostile}", await page.InnerTextAsync(".facts"), StringComparison.Ordinal);
        Assert.Equal($"--edit {Hostile}", await page.InnerTextAsync("code"));
        Assert.InRange(await Browser.LightnessAsync(page), 0, 60);
        var ink = await page.EvaluateAsync<double>("getComputedStyle(document.querySelector('.heat td')).color.match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0) / 3");
        Assert.InRange(ink, 180, 255);
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task A_search_that_kept_nothing_offers_no_edit()
    {
        var result = Result(1, 2);
        var (page, complaints) = await Open(Subject with { Again = null }, result with { Heads = [.. result.Heads.Select(head => head with { Kept = false, Gain = double.NaN })], Together = null });
        Assert.Equal(0, await page.Locator("code").CountAsync());
        Assert.DoesNotContain("at once", await page.InnerTextAsync(".facts"), StringComparison.Ordinal);
        Assert.Equal(2, await page.Locator(".heat td").CountAsync());
        Assert.Empty(complaints);
    }

    private async Task<(IPage Page, List<string> Complaints)> Open(HeadSearchSubject subject, HeadSearchResult result, ColorScheme scheme = ColorScheme.Light)
    {
        Assert.SkipWhen(browser.Missing is not null, browser.Missing ?? "");
        var path = Path.Combine(_folder, "report.html");
        await using (var stream = File.Create(path))
        {
            HeadSearchReport.Write(subject, result, stream);
        }

        return await browser.OpenAsync(path, scheme, ".heat td");
    }

    private static HeadSearchResult Result(int layers, int heads)
    {
        double[] gains = [0, 0.1, -0.2, 0.1, -0.2, 0.3];
        return new(2.5, [.. Enumerable.Range(0, layers * heads).Select(at => new SearchedHead(at / heads, at % heads, 2.5 - gains[at % 6], gains[at % 6], at is 1 or 3))], 2.25);
    }
}
