using Heed.Lab.Onnx;
using Heed.Onnx;
using Xunit;

namespace Heed.Cli.Tests.Inspection;

/// <summary>The report on an ONNX model as its reader meets it.</summary>
public sealed class OnnxReportPageTests(Browser browser) : IClassFixture<Browser>, IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-onnx-page-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task MapsStandBeforeAndAfterAndTellTheirWeights()
    {
        Assert.SkipWhen(browser.Missing is not null, browser.Missing ?? "");
        var path = Path.Combine(_folder, "report.html");
        using var model = OnnxModel.Load(Path.Combine(AppContext.BaseDirectory, "golden", "onnx", "gpt_small.onnx"));
        var tensor = Path.Combine(_folder, "x.json");
        await File.WriteAllTextAsync(tensor, $"[[{string.Join(',', Enumerable.Range(0, 12).Select(row => $"[{string.Join(',', Enumerable.Range(0, 32).Select(i => ((row * i) % 7) - 2.5))}]"))}]]", TestContext.Current.CancellationToken);
        var (inspection, edited) = OnnxInspector.Run(model, new() { Tensors = [tensor], Edits = ["columns:at=0,by=0"] }, TestContext.Current.CancellationToken);
        edited!.Dispose();
        await using (var stream = File.Create(path))
        {
            OnnxInspectionReport.Write(inspection with { Tokens = [.. Enumerable.Range(0, 12).Select(i => $"</script>{i}")] }, stream);
        }

        var (page, complaints) = await browser.OpenAsync(path, ready: "body[data-ready=yes]");
        Assert.Equal("gpt_small.onnx", await page.InnerTextAsync("#model"));
        // Two attentions of four heads, before and after.
        Assert.Equal(16, await page.Locator("figure canvas").CountAsync());
        Assert.Equal("</script>3", await page.Locator(".t").Nth(3).InnerTextAsync());
        await page.HoverAsync("figure canvas", new() { Position = new() { X = 2, Y = 2 } });
        Assert.Contains("before: query “</script>0” (0)", await page.InnerTextAsync("#pair"), StringComparison.Ordinal);
        Assert.Contains("columns:at=0,by=0", await page.InnerTextAsync("#what"), StringComparison.Ordinal);
        await page.ClickAsync("#theme");
        Assert.Empty(complaints);
    }
}
