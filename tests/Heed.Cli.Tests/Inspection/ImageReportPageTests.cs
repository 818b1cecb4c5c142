using Heed.Lab.Images;
using Heed.Lab.Inspection;
using Xunit;

namespace Heed.Cli.Tests.Inspection;

/// <summary>The report on a picture as its reader meets it.</summary>
public sealed class ImageReportPageTests(Browser browser) : IClassFixture<Browser>, IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-picture-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task Maps_are_drawn_and_attention_follows_the_place_that_is_pointed_at()
    {
        Assert.SkipWhen(browser.Missing is not null, browser.Missing ?? "");
        var path = Path.Combine(_folder, "report.html");
        await using (var stream = File.Create(path))
        {
            ImageInspectionReport.Write(Inspection(), stream);
        }

        var (page, complaints) = await browser.OpenAsync(path, ready: "body[data-ready=yes]");
        // The field, two maps and one head; all drawn differently.
        var before = await Pictures();
        Assert.Equal(4, before.Length);
        Assert.Equal(4, before.Distinct().Count());
        Assert.Equal("trouser", await page.InnerTextAsync("#classes .true"));

        await page.HoverAsync("#picture", new() { Position = new() { X = 3, Y = 3 } });
        await page.WaitForSelectorAsync("#place:has-text('row 1, column 1')");
        var after = await Pictures();
        Assert.Equal(before[..3], after[..3]);
        Assert.NotEqual(before[3], after[3]);

        await page.ClickAsync("#mean");
        await page.WaitForSelectorAsync("#place:has-text('mean')");
        Assert.NotEqual(after[3], (await Pictures())[3]);
        await page.EvaluateAsync("() => { const b = document.getElementById('blend'); b.value = 20; b.dispatchEvent(new Event('input')); }");
        await page.EvaluateAsync("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))");
        Assert.NotEqual(before[0], (await Pictures())[0]);
        Assert.Empty(complaints);

        async Task<string[]> Pictures() => await page.EvaluateAsync<string[]>("[...document.querySelectorAll('figure canvas')].map(c => c.toDataURL())");
    }

    [Fact]
    public async Task Every_map_before_an_edit_stands_beside_the_one_with_it()
    {
        Assert.SkipWhen(browser.Missing is not null, browser.Missing ?? "");
        var path = Path.Combine(_folder, "edited.html");
        var before = Inspection();
        var head = before.Heads[0];
        await using (var stream = File.Create(path))
        {
            ImageInspectionReport.Write(
                before with { Edit = "heads:scale=0.0", Before = before, Probabilities = [0.4, 0.6, .. new double[8]], Heads = [head with { Weights = [.. head.Weights.Reverse()], MeanDistance = 2.5 }] }, stream);
        }

        var (page, complaints) = await browser.OpenAsync(path, ready: "body[data-ready=yes]");
        Assert.Contains("heads:scale=0.0 put into the model", await page.InnerTextAsync("#facts"), StringComparison.Ordinal);
        Assert.Contains("90% → 60%", await page.InnerTextAsync("#classes"), StringComparison.Ordinal);
        var pairs = page.Locator("figure .pair");
        Assert.Equal(4, await pairs.CountAsync());
        var drawn = await page.EvaluateAsync<string[]>("[...document.querySelectorAll('figure canvas')].map(c => c.toDataURL())");
        // The maps are the same, the head is not.
        Assert.All(Enumerable.Range(0, 3), map => Assert.Equal(drawn[2 * map], drawn[(2 * map) + 1]));
        Assert.NotEqual(drawn[6], drawn[7]);
        Assert.Contains("distance 1.5 → distance 2.5", await page.InnerTextAsync("figure:has([aria-label^='head 0'])"), StringComparison.Ordinal);
        var (left, right) = ((await pairs.Nth(3).Locator("canvas").Nth(0).BoundingBoxAsync())!, (await pairs.Nth(3).Locator("canvas").Nth(1).BoundingBoxAsync())!);
        Assert.Equal(left.Y, right.Y);
        Assert.True(left.X + left.Width < right.X);
        Assert.Empty(complaints);
    }

    private static ImageInspection Inspection()
    {
        var values = Enumerable.Range(0, 784).Select(i => i / 784f).ToArray();
        // Every place attends to its neighbour most.
        var weights = Enumerable.Range(0, 16).SelectMany(query => Enumerable.Range(0, 16).Select(key => key == (query + 1) % 16 ? 0.7f : 0.02f)).ToArray();
        return new(
            "vit", 1234, 0.9, FashionMnist.Task, FashionMnist.ClassNames, new("a picture", [.. Enumerable.Range(0, 784).Select(i => (byte)(i % 28 * 9))], 1), [0.1, 0.9, .. new double[8]],
            new(28, [.. values.Select(value => value * value)], 9, 4), [new("mixer", "gate", "first", 28, 28, values), new("mixer", "gate", "second", 2, 2, [-1, 0, 1, 0.5f])],
            [new("attn", 0, 4, weights, 1.5)], [], 0.1);
    }
}
