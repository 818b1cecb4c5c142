using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Heed.Lab.Inspection;
using Xunit;

namespace Heed.Lab.Tests.Inspection;

public partial class InspectionReportTests
{
    [Fact]
    public void Report_names_nothing_outside_itself()
    {
        var page = Page(SyntheticInspection.Create());
        // The name of SVG is an identifier that is never fetched.
        Assert.DoesNotMatch(Outside(), page.Replace("http://www.w3.org/2000/svg", "", StringComparison.Ordinal));
    }

    [Fact]
    public void Hostile_text_stays_text()
    {
        string[] words = ["</script><script>alert(1)</script>", "\u2028", "<!--", "]]>", "&amp;", "\"'\\", "\u0000", "\u202e", "😀", "שלום", "\n"];
        var page = Page(SyntheticInspection.Create(words.Length, 1, 2, words: words));
        Assert.DoesNotContain("alert(1)</script>", page, StringComparison.Ordinal);
        Assert.DoesNotContain('\u2028', page);
        var data = JsonDocument.Parse(Regex.Match(page, "<script type=\"application/json\" id=\"data\">(.*?)</script>", RegexOptions.Singleline).Groups[1].Value);
        Assert.Equal(words, data.RootElement.GetProperty("tokens").GetProperty("text").EnumerateArray().Select(word => word.GetString()));
    }

    [Fact]
    public void Model_name_in_the_title_is_escaped()
    {
        var inspection = SyntheticInspection.Create(16, 1, 1);
        var page = Page(inspection with { Model = inspection.Model with { Name = "</title><script>" } });
        Assert.Contains("<title>What &lt;/title&gt;&lt;script&gt; attends to</title>", page, StringComparison.Ordinal);
    }

    [Fact]
    public void Long_report_stays_within_its_budget()
    {
        const int tokens = 2048, heads = 48;
        const long budget = 13L << 20;
        var (top, cell) = InspectionReport.Detail(tokens, heads, budget);
        Assert.True(heads * InspectionReport.BytesPerHead(tokens, top, cell) <= budget);
        Assert.True(top >= 4);
        Assert.InRange(PooledMap.SideOf(tokens, cell), 256, 1024);
    }

    [Theory]
    [InlineData(1, 1, 0, 1, 1)]
    [InlineData(512, 48, 13 << 20, 16, 1)]
    [InlineData(100, 8, 0, 2, 2)]
    public void Detail_follows_the_budget(int tokens, int heads, long budget, int top, int cell) =>
        Assert.Equal((top, cell), InspectionReport.Detail(tokens, heads, budget));

    [Fact]
    public void Heads_without_maps_are_refused()
    {
        var inspection = SyntheticInspection.Create(16, 1, 2);
        var error = Assert.Throws<ArgumentException>(() => Page(inspection with { Heads = [inspection.Heads[0], inspection.Heads[1] with { Map = null }] }));
        Assert.Contains("Head 1 of layer 0", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Empty_inspection_is_refused() =>
        Assert.Throws<ArgumentException>(() => Page(SyntheticInspection.Create(16, 1, 1) with { Tokens = [] }));

    private static string Page(InspectionResult inspection)
    {
        using var stream = new MemoryStream();
        InspectionReport.Write(inspection, stream);
        return Encoding.UTF8.GetString(stream.ToArray());
    }

    [GeneratedRegex("""(src|href)\s*=\s*["'](?!data:)|https?://|url\(|@import""")]
    private static partial Regex Outside();
}
