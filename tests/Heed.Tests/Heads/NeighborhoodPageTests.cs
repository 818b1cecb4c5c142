using Heed.Heads;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

/// <summary>The program of docs/masks/neighborhood-attention.md is compiled and run here.</summary>
public sealed class NeighborhoodPageTests
{
    [Fact]
    public void The_program_runs()
    {
        using var scope = NewDisposeScope();
        // Heads last, the grid in the middle: [B, rows, columns, H, D].
        var query = randn([1, 64, 64, 4, 32]);
        var key = randn([1, 64, 64, 4, 32]);
        var value = randn([1, 64, 64, 4, 32]);
        var output = NeighborhoodAttention.Compute(query, key, value, window: [16, 16], stride: [8, 8]);

        // As a layer, with its projections.
        using var layer = new NeighborhoodAttention2d(width: 128, heads: 4, window: [7], dilation: [2]);
        var features = layer.forward(randn(1, 64, 64, 128));

        // What a kernel with such tiles can gain at most.
        var report = NeighborhoodTiling.Simulate(Neighborhood.Of([64, 64], [16], [8]), queryTile: [8, 8], keyTile: [8, 8]);

        Assert.Equal(query.shape, output.shape);
        Assert.Equal([1, 64, 64, 128], features.shape);
        Assert.InRange(report.MeanSpeedup, 1, report.FlopSpeedup);
    }

    [Fact]
    public void The_program_is_the_pages()
    {
        var folder = new DirectoryInfo(AppContext.BaseDirectory);
        while (!File.Exists(Path.Combine(folder.FullName, "Heed.slnx")))
        {
            folder = folder.Parent ?? throw new InvalidOperationException("The repository was not found above its tests.");
        }

        var page = File.ReadAllText(Path.Combine(folder.FullName, "docs", "masks", "neighborhood-attention.md"));
        var source = File.ReadAllText(Path.Combine(folder.FullName, "tests", "Heed.Tests", "Heads", "NeighborhoodPageTests.cs"));
        var start = page.IndexOf("// Heads last", StringComparison.Ordinal);
        var lines = page[start..page.IndexOf("Console", start, StringComparison.Ordinal)].Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);
        Assert.NotEmpty(lines);
        Assert.All(lines, line => Assert.Contains(line, source, StringComparison.Ordinal));
    }
}
