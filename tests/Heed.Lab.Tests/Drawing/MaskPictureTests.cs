using Heed.Kernels;
using Heed.Lab.Drawing;
using Heed.Models.Checkpoints;
using SkiaSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Drawing;

public sealed class MaskPictureTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-drawing-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("causal", 37)]
    [InlineData("causal:block=16", 100)]
    [InlineData("window:w=9,block=8", 61)]
    [InlineData("neighbours:w=9,block=8", 61)]
    [InlineData("random:density=0.3,seed=5,block=16", 90)]
    [InlineData("full", 20)]
    public void A_pixel_is_blue_where_the_mask_allows_the_pair_and_white_elsewhere(string specification, int tokens)
    {
        var mask = DrawableMask.Of(specification, tokens);
        using var picture = MaskPicture.Draw(mask, specification);

        Assert.Equal(1, picture.PairsPerPixel);
        for (var query = 0; query < tokens; query++)
        {
            for (var key = 0; key < tokens; key++)
            {
                var expected = MaskPicture.Shade(mask.Allows(0, 0, query, key) ? 1 : 0);
                foreach (var corner in new[] { 0, picture.PixelsPerPair - 1 })
                {
                    Assert.Equal(expected, picture.ColorAt(picture.PairsAt.X + (key * picture.PixelsPerPair) + corner, picture.PairsAt.Y + (query * picture.PixelsPerPair) + corner));
                }
            }
        }
    }

    [Fact]
    public void Above_one_pair_a_pixel_its_shade_is_the_share_of_pairs()
    {
        var mask = DrawableMask.Of("window:w=300", 1_501);
        using var picture = MaskPicture.Draw(mask, "window");

        var size = picture.PairsPerPixel;
        Assert.Equal(3, size);
        for (var y = 0; y * size < 1_501; y += 7)
        {
            for (var x = 0; x * size < 1_501; x++)
            {
                var pairs = (from query in Enumerable.Range(y * size, Math.Min(size, 1_501 - (y * size)))
                             from key in Enumerable.Range(x * size, Math.Min(size, 1_501 - (x * size)))
                             select mask.Allows(0, 0, query, key)).ToList();
                var expected = MaskPicture.Shade(pairs.Count(allowed => allowed) / (double)pairs.Count);
                Assert.Equal(expected, picture.ColorAt(picture.PairsAt.X + x, picture.PairsAt.Y + y));
            }
        }
    }

    [Theory]
    [InlineData(60)]
    [InlineData(1_300)]
    public void Key_runs_are_drawn_and_counted_pair_by_pair(int tokens)
    {
        // Every block of 20 queries reads three runs, the last of them by five queries only.
        var (offsets, first, counts, rows) = (new List<int> { 0 }, new List<int>(), new List<int>(), new List<int>());
        for (var block = 0; block < tokens / 20; block++)
        {
            first.AddRange([0, 3 + (block % 30), 40]);
            counts.AddRange([2, 1, 9]);
            rows.AddRange([20, 20, 5]);
            offsets.Add(first.Count);
        }

        var runs = new KeyRuns(1, 1, tokens, tokens, 20, [.. offsets], [.. first], [.. counts], new int[first.Count], [.. rows]);
        using var picture = MaskPicture.Draw(runs, "runs");

        Assert.Equal(runs.Pairs, picture.Census.Pairs);
        Assert.Equal((2 * tokens / 20, tokens / 20), (picture.Census.FullBlocks, picture.Census.PartialBlocks));
        var (pixels, side) = (picture.PixelsPerPair, picture.PairsPerPixel);
        for (var y = 0; y < tokens / side; y++)
        {
            for (var x = 0; x < 60 / side; x++)
            {
                var pairs = Enumerable.Range(0, side * side).Count(i => runs.Allows(0, 0, (y * side) + (i / side), (x * side) + (i % side)));
                Assert.Equal(MaskPicture.Shade(pairs / (double)(side * side)), picture.ColorAt(picture.PairsAt.X + (x * pixels), picture.PairsAt.Y + (y * pixels)));
            }
        }
    }

    [Theory]
    [InlineData("causal", 300)]
    [InlineData("window:w=70,block=32", 333)]
    [InlineData("random:density=0.4,block=48", 200)]
    public void The_census_counts_what_the_mask_allows(string specification, int tokens)
    {
        var mask = DrawableMask.Of(specification, tokens);

        var census = MaskCensus.Of(mask);

        long pairs = 0;
        for (var query = 0; query < tokens; query++)
        {
            for (var key = 0; key < tokens; key++)
            {
                pairs += mask.Allows(0, 0, query, key) ? 1 : 0;
            }
        }

        Assert.Equal(pairs, census.Pairs);
        Assert.Equal((long)mask.QueryBlocks * mask.KeyBlockCount, census.FullBlocks + census.PartialBlocks + census.EmptyBlocks);
        Assert.Equal(mask.Density, (census.FullBlocks + census.PartialBlocks) / ((double)mask.QueryBlocks * mask.KeyBlockCount), 12);
    }

    [Fact]
    public void A_window_is_the_mask_that_attention_applies()
    {
        const int tokens = 50;
        using var scope = NewDisposeScope();
        var (query, key, value) = (randn(1, 1, tokens, 8), randn(1, 1, tokens, 8), randn(1, 1, tokens, 8));

        var byMask = Attention.Compute(query, key, value, new AttentionOptions { BlockMask = DrawableMask.Of("window:w=7,block=16", tokens) });
        var byWindow = Attention.Compute(query, key, value, new AttentionOptions { Causal = Causality.AlignedToEnd, WindowBefore = 6 });

        Assert.True(allclose(byMask, byWindow, rtol: 1e-5, atol: 1e-6));
    }

    [Fact]
    public void A_boolean_tensor_of_a_file_is_drawn_as_it_is()
    {
        using var scope = NewDisposeScope();
        var mask = rand(40, 70) < 0.3;
        var path = Path.Combine(_folder, "mask.safetensors");
        SafetensorsWriter.Write(path, new Dictionary<string, Tensor> { ["mask"] = mask, ["other"] = ones(2, 2) });

        var built = DrawableMask.Of($"{path}:tensor=mask,block=16", 512);

        Assert.Equal((40, 70), (built.QueryLength, built.KeyLength));
        Assert.Equal(mask.sum().item<long>(), MaskCensus.Of(built).Pairs);
        Assert.Contains("tensor=NAME", Assert.Throws<ArgumentException>(() => DrawableMask.Of(path, 512)).Message, StringComparison.Ordinal);
        Assert.Contains("no tensor 'none'", Assert.Throws<ArgumentException>(() => DrawableMask.Of($"{path}:tensor=none", 512)).Message, StringComparison.Ordinal);
        Assert.Contains("boolean", Assert.Throws<ArgumentException>(() => DrawableMask.Of($"{path}:tensor=other", 512)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_picture_is_written_as_png()
    {
        var path = Path.Combine(_folder, "new", "mask.png");
        using (var picture = MaskPicture.Draw(DrawableMask.Of("causal", 64), "causal"))
        {
            picture.Save(path);
            using var read = SKBitmap.Decode(path);
            Assert.Equal((picture.Width, picture.Height), (read.Width, read.Height));
            Assert.Equal(picture.ColorAt(picture.PairsAt.X + 1, picture.PairsAt.Y + 1), read.GetPixel(picture.PairsAt.X + 1, picture.PairsAt.Y + 1));
        }

        Assert.Equal([path], Directory.GetFiles(Path.GetDirectoryName(path)!));
    }

    [Theory]
    [InlineData("spiral", "There is no mask 'spiral'")]
    [InlineData("window:width=3", "has no option 'width'")]
    [InlineData("window:w", "is not an option")]
    [InlineData("window:w=0", "at least 1")]
    [InlineData("window:w=many", "not 'many'")]
    [InlineData("random:density=2", "density")]
    [InlineData("causal:block=-4", "at least 1")]
    public void Wrong_specifications_say_what_was_expected(string specification, string expected) =>
        Assert.Contains(expected, Assert.Throws<ArgumentException>(() => DrawableMask.Of(specification, 64)).Message, StringComparison.Ordinal);
}
