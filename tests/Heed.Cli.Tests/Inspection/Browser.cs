using Microsoft.Playwright;
using Xunit;

namespace Heed.Cli.Tests.Inspection;

/// <summary>One headless Chromium, the distribution's own, for the tests of a class.</summary>
public sealed class Browser : IAsyncLifetime
{
    private static readonly string[] Names = ["chromium", "chromium-browser", "google-chrome"];
    private IPlaywright? _playwright;
    private IBrowser? _browser;

    /// <summary>Why there is no browser; null where there is one.</summary>
    public string? Missing { get; private set; }

    public async ValueTask InitializeAsync()
    {
        var program = (Environment.GetEnvironmentVariable("PATH") ?? "").Split(Path.PathSeparator)
            .SelectMany(folder => Names.Select(name => Path.Combine(folder, name)))
            .FirstOrDefault(File.Exists);
        if (program is null)
        {
            Missing = "Chromium is not installed: apt-get install chromium.";
            return;
        }

        _playwright = await Playwright.CreateAsync();
        _browser = await _playwright.Chromium.LaunchAsync(new()
        {
            ExecutablePath = program,
            Headless = true,
            Args = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
        });
    }

    public async ValueTask DisposeAsync()
    {
        if (_browser is not null)
        {
            await _browser.DisposeAsync();
        }

        _playwright?.Dispose();
    }

    /// <summary>Opens a page on a laptop's screen. What it complains about or asks the network for is collected.</summary>
    public async Task<(IPage Page, List<string> Complaints)> OpenAsync(string file, ColorScheme scheme = ColorScheme.Light, string ready = "#stats dd")
    {
        Assert.SkipWhen(Missing is not null, Missing ?? "");
        var page = await _browser!.NewPageAsync(new() { ViewportSize = new() { Width = 1440, Height = 900 }, ColorScheme = scheme });
        page.SetDefaultTimeout(15_000);
        var complaints = new List<string>();
        page.Console += (_, message) =>
        {
            if (message.Type is "error" or "warning")
            {
                complaints.Add($"{message.Type}: {message.Text}");
            }
        };
        page.PageError += (_, error) => complaints.Add($"uncaught: {error}");
        page.Request += (_, request) =>
        {
            if (!request.Url.StartsWith("file:", StringComparison.Ordinal) && !request.Url.StartsWith("data:", StringComparison.Ordinal))
            {
                complaints.Add($"request: {request.Url}");
            }
        };
        await page.GotoAsync(new Uri(file).AbsoluteUri);
        await page.Locator(ready).First.WaitForAsync();
        return (page, complaints);
    }

    /// <summary>What every canvas of a page shows.</summary>
    public static async Task<string[]> PicturesAsync(IPage page) => await page.EvaluateAsync<string[]>("[...document.querySelectorAll('canvas')].map(canvas => canvas.toDataURL())");

    /// <summary>How many pixels of a page's width lie beyond the screen.</summary>
    public static async Task<int> OverhangAsync(IPage page) => await page.EvaluateAsync<int>("document.documentElement.scrollWidth - document.documentElement.clientWidth");

    /// <summary>How light a page's background is, 0 to 255.</summary>
    public static async Task<double> LightnessAsync(IPage page) =>
        await page.EvaluateAsync<double>("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0) / 3");
}
