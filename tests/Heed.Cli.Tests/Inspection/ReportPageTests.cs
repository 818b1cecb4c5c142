using System.Diagnostics;
using System.Globalization;
using Heed.Lab.Inspection;
using Heed.Lab.Tests.Inspection;
using Microsoft.Playwright;
using Xunit;

namespace Heed.Cli.Tests.Inspection;

/// <summary>The report as its reader meets it: in a browser, with a mouse and a keyboard.</summary>
public sealed class ReportPageTests(Browser browser) : IClassFixture<Browser>, IDisposable
{
    private const int Heads = 8;
    private static readonly InspectionResult Small = SyntheticInspection.Create(96, 2, 4);
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-report").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task Every_head_has_a_picture_and_nothing_complains()
    {
        var (page, complaints) = await Open(Small);
        Assert.Equal(Heads, await page.Locator(".cell").CountAsync());
        await WaitForPictures(page, Heads);
        // The pictures are of different heads: a picture of nothing would be the same eight times.
        var pictures = await page.EvaluateAsync<string[]>("[...document.querySelectorAll('.cell canvas')].map(c => c.toDataURL())");
        Assert.Equal(Heads - 1, pictures.Distinct().Count());
        Assert.Equal("8 heads", await page.InnerTextAsync("#count"));
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Heads_are_sorted_by_the_chosen_statistic_both_ways()
    {
        var (page, _) = await Open(Small);
        await page.SelectOptionAsync("#sort", "mean_distance");
        var expected = Enumerable.Range(0, Heads).OrderByDescending(i => Math.Round(Small.Heads[i].Statistics.MeanDistance, 6)).ThenBy(i => i).ToArray();
        Assert.Equal(expected, await Order(page));
        await page.ClickAsync("#direction");
        Assert.Equal(Enumerable.Range(0, Heads).OrderBy(i => Math.Round(Small.Heads[i].Statistics.MeanDistance, 6)).ThenBy(i => i), await Order(page));
    }

    [Fact]
    public async Task Heads_are_filtered_by_look()
    {
        var (page, _) = await Open(Small);
        await page.SelectOptionAsync("#sort", "entropy");
        await page.ClickAsync(".chip[data-look=sink]");
        Assert.Equal(Enumerable.Range(0, Heads).Where(i => Small.Heads[i].Look == HeadLook.Sink), await Order(page));
        await page.ClickAsync(".chip[data-look=sink]");
        Assert.Equal(Heads, (await Order(page)).Length);
    }

    [Fact]
    public async Task Selected_head_shows_its_own_numbers()
    {
        var (page, _) = await Open(Small);
        foreach (var index in new[] { 3, 6 })
        {
            await page.ClickAsync($".cell[data-index='{index}']");
            var head = Small.Heads[index];
            await Text(page, "#name", $"Layer {head.Layer} · head {head.Head}");
            await Text(page, "#look", HeadLooks.Word(head.Look));
            await Text(page, "dd[data-stat=entropy]", head.Statistics.Entropy.ToString("F2", CultureInfo.InvariantCulture));
        }
    }

    [Fact]
    public async Task Hovered_token_shows_the_weights_of_the_data()
    {
        var (page, complaints) = await Open(Small);
        await page.ClickAsync(".cell[data-index='5']");
        await page.HoverAsync(".t[data-i='40']");
        await Until(page, "document.querySelector('#focus h3').textContent.includes('token 40')");
        var head = Small.Heads[5];
        var shown = await Weights(page, "#focus .lists > div:nth-child(1) li");
        var expected = Enumerable.Range(0, Small.TopCount).Select(k => (head.TopKeys[(40 * Small.TopCount) + k], head.TopWeights[(40 * Small.TopCount) + k])).ToArray();
        Assert.Equal(expected.Select(pair => pair.Item1), shown.Select(pair => pair.Token));
        for (var i = 0; i < shown.Length; i++)
        {
            Assert.Equal(expected[i].Item2, shown[i].Weight, 1.0 / 65535);
        }

        // The strongest is shaded strongest.
        Assert.True(await Alpha(page, expected[0].Item1) >= await Alpha(page, expected[7].Item1));
        Assert.True(await Alpha(page, expected[0].Item1) > 0);
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Hovered_token_shows_who_attends_to_it()
    {
        var (page, _) = await Open(Small);
        // Head 0 looks at the previous token: token 30 is attended to by token 31 above all.
        await page.ClickAsync(".cell[data-index='0']");
        await page.HoverAsync(".t[data-i='30']");
        await Until(page, "document.querySelector('#focus h3').textContent.includes('token 30')");
        var shown = await Weights(page, "#focus .lists > div:nth-child(2) li");
        Assert.Equal(31, shown[0].Token);
        Assert.Equal(Small.Heads[0].TopWeights[31 * Small.TopCount], shown[0].Weight, 1.0 / 65535);
    }

    [Fact]
    public async Task Pinned_token_stays_and_the_tip_gives_the_weight_of_the_pair()
    {
        var (page, _) = await Open(Small);
        await page.ClickAsync(".cell[data-index='0']");
        await page.ClickAsync(".t[data-i='20']");
        await page.HoverAsync(".t[data-i='19']");
        await Until(page, "document.getElementById('tip').classList.contains('show')");
        var weight = Small.Heads[0].TopWeights[20 * Small.TopCount];
        Assert.Contains(weight.ToString("F2", CultureInfo.InvariantCulture), await page.InnerTextAsync("#tip"), StringComparison.Ordinal);
        Assert.Contains("token 20", await page.InnerTextAsync("#focus h3"), StringComparison.Ordinal);
        await page.Keyboard.PressAsync("Escape");
        await page.HoverAsync(".t[data-i='25']");
        await Until(page, "document.querySelector('#focus h3').textContent.includes('token 25')");
    }

    [Fact]
    public async Task Loss_shading_follows_the_loss()
    {
        var (page, _) = await Open(Small);
        await page.ClickAsync("[data-mode=loss]");
        var order = Enumerable.Range(1, Small.Tokens.Count - 1).OrderBy(i => Small.Tokens[i].Loss).ToArray();
        await Until(page, $"document.querySelector(\".t[data-i='{order[^1]}']\").style.backgroundColor !== ''");
        Assert.Equal(0, await Alpha(page, 0));
        Assert.True(await Alpha(page, order[^1]) > 2 * await Alpha(page, order[order.Length / 2]));
        Assert.True(await Alpha(page, order[order.Length / 2]) > await Alpha(page, order[0]));
    }

    [Fact]
    public async Task An_edit_shows_the_head_before_and_after_and_which_tokens_changed()
    {
        var before = SyntheticInspection.Create(96, 2, 4);
        var tokens = before.Tokens.Select((token, i) => token with { Loss = token.Loss + (i == 40 ? 3 : i == 50 ? -2 : 0) }).ToArray();
        var (page, complaints) = await Open(before with { Tokens = tokens, Edits = ["act:beta=0.4"], Before = before, Heads = [.. before.Heads.Reverse().Zip(before.Heads, (other, head) => head with { Map = other.Map })] });
        Assert.Contains("act:beta=0.4", await page.InnerTextAsync("#facts"), StringComparison.Ordinal);
        Assert.Contains("before the edit", await page.InnerTextAsync("#facts"), StringComparison.Ordinal);
        await Until(page, "document.getElementById('map-before').width > 8 && document.getElementById('map').width > 8");
        Assert.NotEqual(await page.EvaluateAsync<string>("document.getElementById('map').toDataURL()"), await page.EvaluateAsync<string>("document.getElementById('map-before').toDataURL()"));
        // Beside each other, at the same height and as large; pointing at either tells the weights of both.
        var (left, right) = ((await page.Locator("#map-before").BoundingBoxAsync())!, (await page.Locator("#map").BoundingBoxAsync())!);
        Assert.Equal(right.Y, left.Y, 1f);
        Assert.Equal(right.Width, left.Width, 1f);
        Assert.True(left.X + left.Width < right.X && right.X + right.Width < 1440);
        Assert.False(await page.IsVisibleAsync("#dormant"));
        foreach (var map in (string[])["#map", "#map-before"])
        {
            await page.HoverAsync(map, new() { Position = new() { X = 2, Y = left.Width - 2 } });
            await page.WaitForSelectorAsync("#pair:has-text('(before: ')");
            await page.Mouse.MoveAsync(5, 5);
            await page.WaitForSelectorAsync("#pair:empty", new() { State = Microsoft.Playwright.WaitForSelectorState.Attached });
        }

        await page.ClickAsync("[data-mode=change]");
        await Until(page, "document.querySelector(\".t[data-i='40']\").style.backgroundColor !== ''");
        Assert.True(await Alpha(page, 50) > 0);
        Assert.Equal(0, await Alpha(page, 60));
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Without_an_edit_nothing_speaks_of_one()
    {
        var (page, _) = await Open(Small);
        Assert.True(await page.IsHiddenAsync("#unedited"));
        Assert.True(await page.IsHiddenAsync("#change"));
    }

    [Fact]
    public async Task Received_shading_finds_the_sink()
    {
        var (page, _) = await Open(Small);
        var sink = Small.Heads.Index().First(head => head.Item.Look == HeadLook.Sink).Index;
        await page.ClickAsync($".cell[data-index='{sink}']");
        await page.ClickAsync("[data-mode=received]");
        await Until(page, "document.querySelector(\".t[data-i='0']\").style.backgroundColor !== ''");
        Assert.True(await Alpha(page, 0) > await Alpha(page, 50));
    }

    [Fact]
    public async Task Sinks_are_marked_in_the_text_and_on_the_map_and_dormant_heads_are_greyed()
    {
        var (page, complaints) = await Open(Small);
        Assert.Equal(new[] { 0, 9 }, await page.EvaluateAsync<int[]>("[...document.querySelectorAll('.t.sink')].map(t => +t.dataset.i)"));
        Assert.Equal(new[] { 0 }, await page.EvaluateAsync<int[]>("[...document.querySelectorAll('.t.sink.primary')].map(t => +t.dataset.i)"));
        var dormant = Enumerable.Range(0, Heads).Where(i => Small.Heads[i].IsDormant).ToArray();
        Assert.NotEmpty(dormant);
        Assert.Equal(dormant, await page.EvaluateAsync<int[]>("[...document.querySelectorAll('.cell.dormant')].map(c => +c.dataset.index)"));
        await page.ClickAsync($".cell[data-index='{dormant[0]}']");
        await Until(page, "document.getElementById('map').dataset.sinks === '0' && !document.getElementById('dormant').hidden");
        Assert.Contains("below 0.5", await page.GetAttributeAsync("#dormant", "title"), StringComparison.Ordinal);
        await page.HoverAsync(".t[data-i='9']");
        await Until(page, "document.getElementById('tip').textContent.includes('secondary sink from layer 1, 1 layer')");
        await page.ClickAsync(".cell[data-index='0']");
        await Until(page, "document.getElementById('map').dataset.sinks === '' && document.getElementById('dormant').hidden");
        await page.ClickAsync(".chip[data-look=dormant]");
        await page.SelectOptionAsync("#sort", "entropy");
        Assert.Equal(dormant.Order(), (await Order(page)).Order());
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Sinks_and_norms_are_listed_and_lead_to_their_token()
    {
        var (page, complaints) = await Open(Small);
        await page.ClickAsync("#sinks");
        Assert.Equal(new[] { "0", "9" }, await page.EvaluateAsync<string[]>("[...document.querySelectorAll('#sinktable .go')].map(row => row.cells[0].textContent)"));
        Assert.Equal(new[] { "100.0", "101.0" }, await page.EvaluateAsync<string[]>("[...document.querySelectorAll('#normtable tr')].slice(1).map(row => row.cells[1].textContent)"));
        Assert.Contains("0.9", await page.InnerTextAsync("#sinkwords"), StringComparison.Ordinal);
        await page.ClickAsync("#sinktable .go[data-token='9']");
        await Until(page, "document.querySelector('#focus h3').textContent.includes('token 9') && !document.getElementById('norms').open");
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Keyboard_moves_among_heads_and_tokens()
    {
        var (page, _) = await Open(Small);
        await page.ClickAsync(".cell[data-index='1']");
        await page.Keyboard.PressAsync("ArrowRight");
        await Text(page, "#name", "Layer 0 · head 2");
        await page.Keyboard.PressAsync("ArrowDown");
        await Text(page, "#name", "Layer 1 · head 2");
        await page.Keyboard.PressAsync("[");
        await Text(page, "#name", "Layer 1 · head 1");
        await page.ClickAsync(".t[data-i='10']");
        await page.FocusAsync("#text");
        await page.Keyboard.PressAsync("ArrowRight");
        await Until(page, "document.querySelector('#focus h3').textContent.includes('token 11')");
        await page.Keyboard.PressAsync("g");
        Assert.False(await page.IsVisibleAsync("#text"));
    }

    [Fact]
    public async Task Address_brings_the_reader_back()
    {
        var file = Write(Small);
        var (page, _) = await browser.OpenAsync(file);
        await page.GotoAsync("about:blank");
        await page.GotoAsync(new Uri(file).AbsoluteUri + "#head=1.2&by=loss&token=33");
        await Text(page, "#name", "Layer 1 · head 2");
        Assert.Equal("true", await page.GetAttributeAsync("[data-mode=loss]", "aria-pressed"));
        Assert.Contains("token 33", await page.InnerTextAsync("#focus h3"), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Dark_systems_get_a_dark_page()
    {
        var (light, _) = await Open(Small);
        var (dark, complaints) = await browser.OpenAsync(Write(Small), ColorScheme.Dark);
        const string background = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)";
        Assert.True(await light.EvaluateAsync<int>(background) > 600);
        Assert.True(await dark.EvaluateAsync<int>(background) < 150);
        await WaitForPictures(dark, Heads);
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Hostile_text_is_shown_and_does_nothing()
    {
        string[] words = ["</script><script>document.title='owned'</script>", " <img src=x onerror=\"document.title='owned'\">", "\u2028", "\u202eright", "\0", "😀", " שלום", " &lt;", "\n", "", "  ", "\t"];
        var (page, complaints) = await Open(SyntheticInspection.Create(words.Length, 1, 2, words: words));
        Assert.Equal("What synthetic attends to", await page.TitleAsync());
        Assert.Equal(words[0], await page.InnerTextAsync(".t[data-i='0']"));
        Assert.Equal(words[1].Trim(), await page.InnerTextAsync(".t[data-i='1']"));
        Assert.Contains("202E", await page.InnerTextAsync(".t[data-i='3']"), StringComparison.Ordinal);
        Assert.Equal(words.Length, await page.Locator(".t").CountAsync());
        Assert.Equal(0, await page.Locator("#text img").CountAsync());
        Assert.Empty(complaints);
    }

    [Fact]
    public async Task Two_thousand_tokens_by_48_heads_stay_fluid()
    {
        const int tokens = 2048;
        var (top, cell) = InspectionReport.Detail(tokens, 48, InspectionOptions.DefaultMapBudget);
        var file = Write(SyntheticInspection.Create(tokens, 6, 8, top, cell));
        Assert.True(new FileInfo(file).Length < 15 << 20);
        var watch = Stopwatch.StartNew();
        var (page, complaints) = await browser.OpenAsync(file);
        Assert.True(watch.Elapsed.TotalSeconds < 8, $"opening took {watch.Elapsed.TotalSeconds:F1} s");
        await WaitForPictures(page, 48);
        foreach (var mode in new[] { "attention", "received", "loss" })
        {
            await page.ClickAsync($"[data-mode={mode}]");
            // From the pointer's arrival to the next painted frame; one slow frame on a busy machine is forgiven, a slow page is not.
            var milliseconds = await page.EvaluateAsync<double>(
                """
                async () => {
                  const times = [];
                  for (const i of [5, 900, 60, 1500, 30, 700, 110]) {
                    const start = performance.now();
                    document.querySelector(`.t[data-i='${i}']`).dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
                    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
                    times.push(performance.now() - start);
                  }
                  return times.sort((a, b) => a - b)[3];
                }
                """);
            Assert.True(milliseconds < 400, $"a hover in mode {mode} took {milliseconds:F0} ms");
        }

        Assert.Empty(complaints);
    }

    private Task<(IPage Page, List<string> Complaints)> Open(InspectionResult inspection) => browser.OpenAsync(Write(inspection));

    private string Write(InspectionResult inspection)
    {
        var file = Path.Combine(_folder, $"{Guid.NewGuid():N}.html");
        using var stream = File.Create(file);
        InspectionReport.Write(inspection, stream);
        return file;
    }

    /// <summary>Asks until it is true. Playwright's own waiting evaluates text inside the page, which the report's content policy forbids.</summary>
    private static async Task Until(IPage page, string expression, object? argument = null)
    {
        for (var clock = Stopwatch.StartNew(); !await page.EvaluateAsync<bool>(expression, argument); await Task.Delay(20, TestContext.Current.CancellationToken))
        {
            Assert.True(clock.Elapsed < TimeSpan.FromSeconds(20), $"Waited for: {expression}");
        }
    }

    private static async Task WaitForPictures(IPage page, int count) =>
        await Until(page, $"[...document.querySelectorAll('.cell canvas')].filter(c => c.width > 8).length === {count}");

    private static async Task Text(IPage page, string selector, string text) =>
        await Until(page, "([selector, text]) => document.querySelector(selector).textContent === text", new[] { selector, text });

    private static async Task<int[]> Order(IPage page) => await page.EvaluateAsync<int[]>("[...document.querySelectorAll('.cell')].map(c => +c.dataset.index)");

    private static async Task<double> Alpha(IPage page, int token) => await page.EvaluateAsync<double>(
        "i => { const c = document.querySelector(`.t[data-i='${i}']`).style.backgroundColor; return c === '' ? 0 : +(/\\/ ([\\d.]+)/.exec(c)?.[1] ?? 1); }", token);

    private static async Task<(int Token, double Weight)[]> Weights(IPage page, string selector)
    {
        var pairs = await page.EvaluateAsync<double[][]>("selector => [...document.querySelectorAll(selector)].map(li => [+li.dataset.token, +li.dataset.weight])", selector);
        return [.. pairs.Select(pair => ((int)pair[0], pair[1]))];
    }
}
