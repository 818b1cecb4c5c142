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

    [Fact]
    public async Task With_an_edit_both_texts_and_maps_stand_beside_each_other_on_one_scale()
    {
        var (page, complaints) = await Open(Edited(Inspection()));
        Assert.Equal("With heads:scale=0.1,kind=cross", await page.InnerTextAsync("#editname"));
        // The six as ever, then map and row of either side.
        Assert.Equal(10, (await Browser.PicturesAsync(page)).Length);
        Assert.Equal(["two", "three"], await page.Locator("#sides > div:nth-child(1) button.changed").EvaluateAllAsync<string[]>("all => all.map(b => b.firstChild.textContent)"));
        Assert.Equal(["four"], await page.Locator("#sides > div:nth-child(2) button.changed").EvaluateAllAsync<string[]>("all => all.map(b => b.firstChild.textContent)"));
        Assert.Equal(["0.90", "0.80", "0.70", "0.60"], await page.Locator("#sides > div:nth-child(1) small").AllInnerTextsAsync());
        Assert.Equal(["0.50", "0.40", "0.30"], await page.Locator("#sides > div:nth-child(2) small").AllInnerTextsAsync());
        Assert.Equal(["mean of all heads", "layer 0, head 0", "layer 0, head 1"], await page.Locator("#head option").AllInnerTextsAsync());
        Assert.Equal(["Choose a token to see its row by itself.", "Choose a token to see its row by itself."], await page.Locator("#sides figcaption").AllInnerTextsAsync());

        await page.Locator("#sides > div:nth-child(2) button").Nth(1).ClickAsync();
        Assert.Equal(["two"], await page.Locator("#words button[aria-pressed=true]").AllInnerTextsAsync());
        var captions = await page.Locator("#sides figcaption").AllInnerTextsAsync();
        Assert.Contains("token 2, “two”, probability 0.80", captions[0], StringComparison.Ordinal);
        Assert.Contains("token 2, “four”, probability 0.40", captions[1], StringComparison.Ordinal);

        // The second head's weights before are all 0.1 and after 0.1 but for one of 0.9: the same weight has the same colour and height on both sides.
        await page.SelectOptionAsync("#head", "2");
        Assert.Contains("33% of it lies elsewhere with the edit", await page.InnerTextAsync("#moved"), StringComparison.Ordinal);
        Assert.Contains("from 0 to 0.90 in both maps", await page.InnerTextAsync("#moved"), StringComparison.Ordinal);
        const string Copy = "const copy = c => { const d = document.createElement('canvas'); d.width = c.width; d.height = c.height; const t = d.getContext('2d', { willReadFrequently: true }); t.drawImage(c, 0, 0); return t; };";
        const string Pixel = "([x, y]) => { " + Copy + " return [...document.querySelectorAll('#sides canvas.map')].map(c => [...copy(c).getImageData(x * c.width, y * c.height, 1, 1).data].join()); }";
        var (same, other) = (await page.EvaluateAsync<string[]>(Pixel, new[] { 0.55, 0.1 }), await page.EvaluateAsync<string[]>(Pixel, new[] { 0.35, 0.45 }));
        Assert.Equal(same[0], same[1]);
        Assert.NotEqual(other[0], other[1]);
        Assert.Equal(same[0], other[0]);
        Assert.Contains("most at 0.35 s; height from 0 to 0.90", await page.Locator("#sides figcaption").Nth(1).InnerTextAsync(), StringComparison.Ordinal);
        var tops = await page.EvaluateAsync<int[]>(
            "() => { " + Copy + " return [...document.querySelectorAll('#sides canvas.row')].map(c => { const d = copy(c).getImageData(.35 * c.width, 0, 1, c.height).data; return [...Array(c.height).keys()].find(y => d[4 * y + 3] > 0); }); }");
        Assert.InRange(tops[0], 150, 179);
        Assert.InRange(tops[1], 0, 20);

        // The text with the edit is shorter: its fourth token is not there, and saliency stays that of the model as trained.
        await page.ClickAsync("#words button:last-child");
        Assert.Equal("This text has no token 4.", await page.Locator("#sides figcaption").Nth(1).InnerTextAsync());
        Assert.StartsWith("Saliency of “(end)”", await page.InnerTextAsync("#what"), StringComparison.Ordinal);
        Assert.Equal(0, await Browser.OverhangAsync(page));
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task A_long_or_hostile_text_with_an_edit_fits_the_page_and_has_no_saliency_beyond_the_other()
    {
        var inspection = Edited(Inspection());
        string[] tokens = [Hostile, .. Enumerable.Range(0, 90).Select(i => $"word{i}")];
        var (page, complaints) = await Open(
            inspection with
            {
                Edited = inspection.Edited! with
                {
                    Edits = [Hostile], Tokens = tokens, Probabilities = [.. tokens.Select(_ => 0.5)], Words = [], Mean = [.. Enumerable.Range(0, 91 * States).Select(i => i % 5 / 10f)],
                    Heads = [.. inspection.Edited.Heads.Select(head => head with { Weights = null })],
                },
            },
            ColorScheme.Dark);
        Assert.Equal($"With {Hostile}", await page.InnerTextAsync("#editname"));
        Assert.Equal(["mean of all heads"], await page.Locator("#head option").AllInnerTextsAsync());
        await page.Locator("#sides > div:nth-child(2) button").Nth(50).ClickAsync();
        Assert.Equal("The text as trained has no token 51", await page.InnerTextAsync("#what"));
        Assert.Equal("This text has no token 51.", await page.Locator("#sides figcaption").Nth(0).InnerTextAsync());
        Assert.Equal(0, await page.Locator("#words button[aria-pressed=true]").CountAsync());
        Assert.Equal(0, await Browser.OverhangAsync(page));
        Assert.Empty(complaints);
    }

    private static SpeechInspection Edited(SpeechInspection inspection)
    {
        static float[] Flat(int rows) => [.. Enumerable.Repeat(0.1f, rows * States)];
        var after = Flat(3);
        after[States + 3] = 0.9f;
        var before = new InspectedCrossHead(0, 1, Flat(Tokens), null, null);
        return inspection with
        {
            Heads = [inspection.Heads[0], before],
            Edited = new(
                ["heads:scale=0.1,kind=cross"], "one four", true, [" one", " four", "(end)"], [0.5, 0.4, 0.3], [new("one", 0, 1, 0, 0.4, 0, 0.4), new("four", 1, 1, 0.4, 1, 0.4, 1)],
                [new(0, 0, [.. inspection.Heads[0].Weights.Take(3 * States)], 0), new(0, 1, after, 0.333)], [.. inspection.Mean.Take(3 * States)], 0),
        };
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
