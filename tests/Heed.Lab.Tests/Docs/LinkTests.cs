using System.Text.RegularExpressions;
using Xunit;

namespace Heed.Lab.Tests.Docs;

public sealed partial class LinkTests
{
    [Fact]
    public void Links_between_pages_lead_somewhere()
    {
        var root = AppContext.BaseDirectory;
        while (!File.Exists(Path.Combine(root, "Heed.slnx")))
        {
            root = Path.GetDirectoryName(root) ?? throw new InvalidOperationException("The tests run inside the repository.");
        }

        var pages = Directory.GetFiles(root, "*.md").Concat(Directory.GetFiles(Path.Combine(root, "docs"), "*.md", SearchOption.AllDirectories)).ToList();
        var dead = from page in pages
                   from Match link in Link().Matches(File.ReadAllText(page))
                   let target = link.Groups[1].Value.Split('#')[0]
                   where target.Length > 0 && !target.Contains("://", StringComparison.Ordinal) && !Path.Exists(Path.Combine(Path.GetDirectoryName(page)!, target))
                   select $"{Path.GetRelativePath(root, page)}: {target}";

        Assert.NotEmpty(pages);
        Assert.Empty(dead);
    }

    [GeneratedRegex(@"\]\(([^)\s]+)\)")]
    private static partial Regex Link();
}
