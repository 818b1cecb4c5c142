using Heed.Lab.Inspection;
using Microsoft.Playwright;
using Xunit;

namespace Heed.Cli.Tests.Inspection;

/// <summary>The report on what a model says of a picture as its reader meets it.</summary>
public sealed class AnswerReportPageTests(Browser browser) : IClassFixture<Browser>, IDisposable
{
    private const int Side = 16, Grid = 4, Layers = 2;
    private const string Hostile = "</script><b>";
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-answer-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task A_word_shows_where_each_head_looked_before_and_after_the_edit()
    {
        var inspection = Inspection(heads: 4);
        var (page, complaints) = await Open(inspection);
        // The picture, eight heads as trained and with the edit, and two layers of the encoder, of which no two look alike.
        var first = await Browser.PicturesAsync(page);
        Assert.Equal(19, first.Length);
        Assert.Equal(19, first.Distinct().Count());
        Assert.Equal(["as trained", "var:keep=0.5"], await page.Locator(".run b").AllInnerTextsAsync());
        Assert.Equal(["a", "red", "ball", "a", "blue", "ball"], await page.Locator(".said button").AllInnerTextsAsync());
        Assert.Equal(["blue"], await page.Locator(".said button.changed").AllInnerTextsAsync());
        Assert.Equal(Shares(inspection, 0), await page.Locator("#heads figcaption").AllInnerTextsAsync());
        var (left, right) = ((await page.Locator("[aria-label='layer 1, head 2, as trained']").BoundingBoxAsync())!, (await page.Locator("[aria-label='layer 1, head 2, var:keep=0.5']").BoundingBoxAsync())!);
        Assert.Equal(left.Y, right.Y);
        Assert.True(left.X + left.Width < right.X);

        // The second word, and the word that the edit put in its place.
        await page.ClickAsync(".said button:text-is('red')");
        var trained = await Browser.PicturesAsync(page);
        Assert.Equal("Word 2, “red”: mean of all heads", await page.InnerTextAsync("#place"));
        Assert.Equal(Shares(inspection, 1), await page.Locator("#heads figcaption").AllInnerTextsAsync());
        await page.ClickAsync(".said button:text-is('blue')");
        var edited = await Browser.PicturesAsync(page);
        Assert.Equal("Word 2, “blue”: mean of all heads", await page.InnerTextAsync("#place"));
        Assert.Equal(Shares(inspection, 1), await page.Locator("#heads figcaption").AllInnerTextsAsync());
        Assert.Equal(["blue"], await page.Locator(".said button[aria-pressed=true]").AllInnerTextsAsync());
        for (var i = 0; i < 17; i++)
        {
            Assert.NotEqual(first[i], trained[i]);
        }

        // The heads show both; the large picture the one that is chosen.
        Assert.NotEqual(trained[0], edited[0]);
        Assert.Equal(trained[1..], edited[1..]);

        Assert.Equal(0, await Browser.OverhangAsync(page));

        // What the encoder saw hangs on no word.
        Assert.Equal(first[17..], edited[17..]);
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Heads_arrows_sinks_and_the_blend_change_the_picture()
    {
        var (page, complaints) = await Open(Inspection(heads: 4));
        var mean = (await Browser.PicturesAsync(page))[0];
        await page.ClickAsync("[aria-label='layer 1, head 2, as trained']");
        Assert.Equal("Word 1, “a”: layer 1, head 2", await page.InnerTextAsync("#place"));
        Assert.Equal(1, await page.Locator("figure.chosen [aria-label='layer 1, head 2, as trained'][aria-pressed=true]").CountAsync());
        var head = (await Browser.PicturesAsync(page))[0];
        Assert.NotEqual(mean, head);

        await page.Keyboard.PressAsync("ArrowRight");
        Assert.Equal("Word 2, “red”: layer 1, head 2", await page.InnerTextAsync("#place"));
        Assert.NotEqual(head, (await Browser.PicturesAsync(page))[0]);
        await page.Keyboard.PressAsync("ArrowLeft");
        Assert.Equal(head, (await Browser.PicturesAsync(page))[0]);
        await page.Keyboard.PressAsync("ArrowLeft");
        Assert.Equal(head, (await Browser.PicturesAsync(page))[0]);

        // Layer 1 has a sink, layer 0 none.
        var marked = await Browser.PicturesAsync(page);
        await page.ClickAsync("#sinks");
        var bare = await Browser.PicturesAsync(page);
        Assert.NotEqual(marked[0], bare[0]);
        Assert.Equal(marked[1], bare[1]);
        Assert.NotEqual(marked[9], bare[9]);
        Assert.Equal(["0", "none", "none", "1.25", "1", "6", "0, 21", "9.50"], await page.Locator("#table td").AllInnerTextsAsync());
        await page.ClickAsync("#mean");
        Assert.Equal("Word 1, “a”: mean of all heads", await page.InnerTextAsync("#place"));

        var before = await Browser.PicturesAsync(page);
        await page.EvaluateAsync("() => { const blend = document.getElementById('blend'); blend.value = 0; blend.dispatchEvent(new Event('input')); }");
        var after = await Browser.PicturesAsync(page);
        // Without the weights every head shows the bare picture.
        Assert.Single(after[1..].Distinct());
        Assert.All(before.Zip(after), pair => Assert.NotEqual(pair.First, pair.Second));
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task A_model_of_many_heads_fits_the_screen()
    {
        const int heads = 32;
        var (page, complaints) = await Open(Inspection(heads));
        Assert.Equal((2 * 2 * heads) + 3, (await Browser.PicturesAsync(page)).Length);
        Assert.Equal(0, await Browser.OverhangAsync(page));
        // The last head of a layer can be brought to sight and chosen.
        await page.ClickAsync($"[aria-label='layer 1, head {heads - 1}, as trained']");
        Assert.Equal($"Word 1, “a”: layer 1, head {heads - 1}", await page.InnerTextAsync("#place"));
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Hostile_text_stays_text_and_the_dark_scheme_draws()
    {
        var inspection = Inspection(heads: 4);
        var run = inspection.Runs[0];
        var (page, complaints) = await Open(
            inspection with
            {
                Model = Hostile, Prompt = Hostile, Picture = inspection.Picture with { Source = Hostile },
                Runs = [run, run with { Name = Hostile, Words = [run.Words[0] with { Text = Hostile }, run.Words[1] with { Text = "" }] }],
            },
            ColorScheme.Dark);
        foreach (var place in new[] { "#model", "#prompt", "#source", ".run:nth-child(2) b", ".run:nth-child(2) button:first-child" })
        {
            Assert.Equal(Hostile, await page.InnerTextAsync(place));
        }

        await page.ClickAsync(".run:nth-child(2) button:first-child");
        Assert.Equal($"Word 1, “{Hostile}”: mean of all heads", await page.InnerTextAsync("#place"));
        Assert.Contains(Hostile, await page.TitleAsync(), StringComparison.Ordinal);
        // A word of blanks alone can be seen and chosen, too.
        await page.ClickAsync(".run:nth-child(2) button:nth-child(2)");
        Assert.NotEqual("", (await page.InnerTextAsync(".run:nth-child(2) button:nth-child(2)")).Trim());
        Assert.Equal("“”", (await page.InnerTextAsync("#place"))[8..10]);

        Assert.Equal(11, (await Browser.PicturesAsync(page)).Distinct().Count());
        Assert.InRange(await Browser.LightnessAsync(page), 0, 60);
        await page.ClickAsync("#theme");
        Assert.InRange(await Browser.LightnessAsync(page), 200, 255);
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task A_model_that_says_nothing_still_shows_its_picture()
    {
        var inspection = Inspection(heads: 4);
        var (page, complaints) = await Open(inspection with { Runs = [inspection.Runs[0] with { Text = "", Words = [] }], SinkDimensions = [], Sinks = [] });
        Assert.Equal("(nothing)", await page.InnerTextAsync("#said span"));
        Assert.Equal("The model said nothing.", await page.InnerTextAsync("#place"));
        Assert.Contains("begins texts with no token", await page.InnerTextAsync("#about"), StringComparison.Ordinal);
        await page.ClickAsync("[aria-label='layer 1, head 2']");
        await page.Keyboard.PressAsync("ArrowRight");
        Assert.Empty(complaints);
    }

    private async Task<(IPage Page, List<string> Complaints)> Open(AnswerInspection inspection, ColorScheme scheme = ColorScheme.Light)
    {
        Assert.SkipWhen(browser.Missing is not null, browser.Missing ?? "");
        var path = Path.Combine(_folder, "report.html");
        await using (var stream = File.Create(path))
        {
            AnswerInspectionReport.Write(inspection, stream);
        }

        return await browser.OpenAsync(path, scheme, "body[data-ready=yes]");
    }

    /// <summary>What stands under the heads, as the page writes shares.</summary>
    private static string[] Shares(AnswerInspection inspection, int word)
    {
        static string Text(float mass) => (100 * Math.Round(mass, 4)).ToString(mass < 0.1f ? "F1" : "F0", System.Globalization.CultureInfo.InvariantCulture) + "%";
        return [.. inspection.Runs[0].Words[word].ImageMass.Zip(inspection.Runs[1].Words[word].ImageMass, (before, after) => $"{Text(before)} → {Text(after)}")];
    }

    private static AnswerInspection Inspection(int heads)
    {
        var random = new Random(5);
        AnswerWord Word(string text)
        {
            var weights = Enumerable.Range(0, Layers * heads * Grid * Grid).Select(_ => (float)Math.Pow(random.NextDouble(), 4) / 8).ToArray();
            return new(text, [.. weights.Chunk(Grid * Grid).Select(head => head.Sum())], weights);
        }

        float[] Map() => [.. Enumerable.Range(0, Grid * Grid).Select(_ => random.NextSingle())];
        return new(
            "tiny", 1234, new("scene.png", [.. Enumerable.Range(0, 3 * Side * Side).Select(i => (byte)(i * 7))]), Side, "what is here ?", Grid, Layers, heads,
            [new("as trained", "a red ball", [Word("a"), Word("red"), Word("ball")], 100), new("var:keep=0.5", "a blue ball", [Word("a"), Word("blue"), Word("ball")], 90)],
            [3], 4, [new(0, [], [], 1.25), new(1, [6], [0, 21], 9.5)], [Map(), Map()], 0.5);
    }
}
