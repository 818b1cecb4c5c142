using Heed.Lab.Inspection;
using Heed.Models.Speech;
using Microsoft.Playwright;
using Xunit;

namespace Heed.Cli.Tests.Inspection;

/// <summary>The report on a sound as its reader meets it.</summary>
public sealed class SpeechReportPageTests(Browser browser) : IClassFixture<Browser>, IDisposable
{
    private const int Frames = 40, Bins = 8, States = 10, Tokens = 4;
    private const string Hostile = "</script><b>";
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-speech-page-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task A_word_shows_its_own_saliency_and_is_marked_in_every_map()
    {
        var (page, complaints) = await Open(Inspection());
        // The spectrogram, three maps and two heads, all different.
        var first = await Browser.PicturesAsync(page);
        Assert.Equal(6, first.Length);
        Assert.Equal(6, first.Distinct().Count());
        Assert.Equal("Saliency of the whole sentence", await page.InnerTextAsync("#what"));
        Assert.Equal(["one", "two", "three", "(end)"], await page.Locator("#words button").AllInnerTextsAsync());
        Assert.Contains("with the saliency of the sound 0.61, with that of the encoder's output –", await page.InnerTextAsync("#mapwords"), StringComparison.Ordinal);
        Assert.Contains("r 0.25 and –", await page.Locator("#heads figcaption").Nth(0).InnerTextAsync(), StringComparison.Ordinal);
        Assert.Equal(["one", "0.05", "0.25", "0.00", "0.30"], (await page.Locator("#table td").AllInnerTextsAsync()).Take(5));

        await page.ClickAsync("#words button:text-is('two')");
        var two = await Browser.PicturesAsync(page);
        Assert.Equal("Saliency of “two”, probability 0.80", await page.InnerTextAsync("#what"));
        Assert.All(first.Zip(two), pair => Assert.NotEqual(pair.First, pair.Second));
        Assert.Equal(["two", "two"], await page.Locator(".line span.chosen").AllInnerTextsAsync());
        await page.ClickAsync("#words button:text-is('three')");
        Assert.All(two.Zip(await Browser.PicturesAsync(page)), pair => Assert.NotEqual(pair.First, pair.Second));

        // Once more takes the choice back.
        await page.ClickAsync("#words button:text-is('three')");
        Assert.Equal(first, await Browser.PicturesAsync(page));
        Assert.Equal(0, await page.Locator(".line span.chosen").CountAsync());
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Sound_and_maps_are_clicked_where_a_word_is_and_the_blend_bares_the_sound()
    {
        var (page, complaints) = await Open(Inspection());
        var box = (await page.Locator("#spectrogram").BoundingBoxAsync())!;
        // "two" is said from 0.3 to 0.5 of one second.
        await page.ClickAsync("#spectrogram", new() { Position = new() { X = box.Width * 0.4f, Y = 50 } });
        Assert.Equal(["two"], await page.Locator("#words button[aria-pressed=true]").AllInnerTextsAsync());
        var map = (await page.Locator("#maps canvas").First.BoundingBoxAsync())!;
        await page.Locator("#maps canvas").First.ClickAsync(new() { Position = new() { X = 20, Y = map.Height * 0.9f } });
        Assert.Equal(["(end)"], await page.Locator("#words button[aria-pressed=true]").AllInnerTextsAsync());

        var before = await Browser.PicturesAsync(page);
        await page.EvaluateAsync("() => { const blend = document.getElementById('blend'); blend.value = 0; blend.dispatchEvent(new Event('input')); }");
        var bare = await Browser.PicturesAsync(page);
        Assert.NotEqual(before[0], bare[0]);
        Assert.Equal(before[1..], bare[1..]);
        await page.ClickAsync("#words button:text-is('one')");
        Assert.Equal(bare[0], (await Browser.PicturesAsync(page))[0]);
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task The_page_fits_the_screen_and_says_what_it_lacks()
    {
        var inspection = Inspection();
        var tokens = Enumerable.Range(0, 120).Select(i => $"word{i}").ToArray();
        float[] Map(int rows) => [.. Enumerable.Range(0, rows * States).Select(i => (float)(i % 7))];
        var (page, complaints) = await Open(inspection with
        {
            Tokens = tokens, Probabilities = [.. tokens.Select(_ => 0.5)], Words = [.. tokens.Select((text, i) => new TimedWord(text, i, 1, i / 120.0, (i + 1) / 120.0, 0, 1))],
            Heads = [.. Enumerable.Range(0, 32).Select(head => new InspectedCrossHead(head / 8, head % 8, Map(120), null, null))], Mean = Map(120), MeanWithInput = null,
            Saliency = null, Sentence = null, Pooled = null, EncoderSaliency = null, Notices = ["The saliency was not asked for."],
        });
        Assert.Equal(0, await Browser.OverhangAsync(page));
        Assert.Equal("The saliency was not asked for.", await page.InnerTextAsync(".notice"));
        Assert.Equal(34, (await Browser.PicturesAsync(page)).Length);
        await page.ClickAsync("#words button:last-child");
        Assert.StartsWith("There is no saliency of this", await page.InnerTextAsync("#what"), StringComparison.Ordinal);
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Hostile_text_stays_text_and_the_dark_scheme_draws()
    {
        var inspection = Inspection();
        var (page, complaints) = await Open(
            inspection with { Model = Hostile, Source = Hostile, Text = Hostile, Tokens = [Hostile, .. inspection.Tokens.Skip(1)], Words = [inspection.Words[0] with { Text = Hostile }, .. inspection.Words.Skip(1)], Notices = [Hostile] },
            ColorScheme.Dark);
        foreach (var place in new[] { "#model", ".notice", "#words button:first-child", "#dtw span:first-child", "#table tr:nth-child(2) td:first-child" })
        {
            Assert.Equal(Hostile, await page.InnerTextAsync(place));
        }

        Assert.Equal($"{Hostile}: “{Hostile}”", await page.InnerTextAsync("#source"));
        Assert.Contains(Hostile, await page.TitleAsync(), StringComparison.Ordinal);
        await page.ClickAsync("#words button:first-child");
        Assert.Contains(Hostile, await page.InnerTextAsync("#what"), StringComparison.Ordinal);
        Assert.Equal(6, (await Browser.PicturesAsync(page)).Distinct().Count());
        Assert.InRange(await Browser.LightnessAsync(page), 0, 60);
        await page.ClickAsync("#theme");
        Assert.InRange(await Browser.LightnessAsync(page), 200, 255);
        Assert.Empty(complaints);
    }

    private async Task<(IPage Page, List<string> Complaints)> Open(SpeechInspection inspection, ColorScheme scheme = ColorScheme.Light)
    {
        Assert.SkipWhen(browser.Missing is not null, browser.Missing ?? "");
        var path = Path.Combine(_folder, "report.html");
        await using (var stream = File.Create(path))
        {
            SpeechInspectionReport.Write(inspection, stream);
        }

        return await browser.OpenAsync(path, scheme, "body[data-ready=yes]");
    }

    private static SpeechInspection Inspection()
    {
        var random = new Random(4);
        float[] Map(int cells) => [.. Enumerable.Range(0, cells).Select(_ => random.NextSingle())];
        return new(
            "tiny", 1234, "sound.wav", 1, Frames, Bins, 0.025, States, 0.1, Map(Frames * Bins), "one two three", [" one", " two", " three", "(end)"], [0.9, 0.8, 0.7, 0.6],
            [new("one", 0, 1, 0.05, 0.25, 0, 0.3), new("two", 1, 1, 0.3, 0.5, 0.3, 0.6), new("three", 2, 1, 0.6, 0.9, 0.6, 1)],
            [new(0, 0, Map(Tokens * States), 0.25, null), new(0, 1, Map(Tokens * States), -0.5, 0.5)], Map(Tokens * States), 0.611, null, Map(Tokens * Frames * Bins), Map(Frames * Bins), Map(Tokens * States),
            Map(Tokens * States), [], 0.5);
    }
}
