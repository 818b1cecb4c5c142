using System.Text.RegularExpressions;
using Heed.Lab.Catalogue;
using Heed.Lab.Verification;
using Xunit;

namespace Heed.Lab.Tests.Catalogue;

public sealed partial class PaperCatalogueTests
{
    [Fact]
    public void There_are_forty_two_papers_in_order_of_their_slugs()
    {
        Assert.Equal(42, PaperCatalogue.All.Select(paper => paper.Slug).Distinct().Count());
        Assert.Equal(42, PaperCatalogue.All.Select(paper => paper.Title).Distinct().Count());
        Assert.Equal(42, PaperCatalogue.All.Select(paper => paper.ArXiv).Distinct().Count());
        Assert.Equal(PaperCatalogue.All.Select(paper => paper.Slug).Order(StringComparer.Ordinal), PaperCatalogue.All.Select(paper => paper.Slug));
    }

    [Fact]
    public void Every_paper_is_described_in_sentences()
    {
        Assert.All(PaperCatalogue.All, paper =>
        {
            Assert.Matches(ArXivId(), paper.ArXiv);
            Assert.Equal(paper.Year, 2000 + int.Parse(paper.ArXiv[..2]));
            Assert.EndsWith(".", paper.What, StringComparison.Ordinal);
            Assert.EndsWith(".", paper.Claim, StringComparison.Ordinal);
            Assert.InRange(paper.What.Length, 40, 160);
        });
    }

    [Fact]
    public void Every_location_exists_in_the_repository_and_nothing_is_verified_without_one()
    {
        var root = RepositoryRoot();
        Assert.All(PaperCatalogue.All, paper =>
        {
            Assert.Equal(paper.State != PaperState.NotYet, paper.Location is not null);
            Assert.Equal(paper.State == PaperState.Reproduced, paper.Verdict is not null);
            if (paper.Location is not null)
            {
                Assert.True(File.Exists(Path.Combine(root, paper.Location)), paper.Location);
            }
        });
    }

    [Fact]
    public void A_paper_is_verified_where_golden_cases_of_its_operations_can_be_run()
    {
        var withOperations = GoldenVerifier.Operations.Keys.Select(operation => operation.Split('/')[0]).ToHashSet();

        Assert.All(PaperCatalogue.All, paper => Assert.Equal(withOperations.Contains(paper.Slug), paper.State != PaperState.NotYet));
    }

    [Theory]
    [InlineData("gated-attention", "gated-attention")]
    [InlineData("MoH", "moh")]
    public void A_paper_is_found_by_its_slug(string slug, string found) => Assert.Equal(found, PaperCatalogue.Find(slug).Slug);

    [Theory]
    [InlineData("gated-atention", "gated-attention")]
    [InlineData("neighborhood", "generalized-neighborhood-attention")]
    [InlineData("flash-bias", "flashbias")]
    public void An_unknown_slug_names_the_nearest(string slug, string nearest) =>
        Assert.Contains($"'{nearest}'", Assert.Throws<ArgumentException>(() => PaperCatalogue.Find(slug)).Message, StringComparison.Ordinal);

    private static string RepositoryRoot()
    {
        var folder = AppContext.BaseDirectory;
        while (!File.Exists(Path.Combine(folder, "Heed.slnx")))
        {
            folder = Path.GetDirectoryName(folder) ?? throw new InvalidOperationException("The tests run inside the repository.");
        }

        return folder;
    }

    [GeneratedRegex(@"^\d{4}\.\d{5}$")]
    private static partial Regex ArXivId();
}
