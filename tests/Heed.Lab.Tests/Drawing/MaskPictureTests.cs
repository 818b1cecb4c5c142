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
    [InlineData(60, null, null)]
    [InlineData(60, 9, null)]
    [InlineData(60, 9, 4)]
    [InlineData(43, 20, null)]
    public void A_call_is_drawn_within_its_causality_and_window(int tokens, int? before, int? after)
    {
        using var scope = NewDisposeScope();
        var (query, key) = (randn(1, 4, tokens, 8), randn(1, 2, tokens, 8));
        var options = new AttentionOptions { Causal = after is null ? Causality.AlignedToEnd : Causality.None, WindowBefore = before, WindowAfter = after };
        foreach (var selected in new[]
        {
            options, options with { BlockMask = DrawableMask.Of("random:density=0.5,block=16", tokens) },
            options with { KeyRuns = new KeyRuns(1, 2, tokens, tokens, tokens, [0, 2, 3], [1, 30, 8], [5, 7, 20], [3, 0, 2], [20, tokens, 17]) },
        })
        {
            var call = new Choice(selected).Select(query, key, key);
            var pairs = call.Pairs().expand(1, 4, tokens, tokens);
            for (var head = 0; head < 4; head++)
            {
                using var picture = MaskPicture.Draw(call, "call", head: head);

                var allowed = pairs[0][head].contiguous().data<bool>().ToArray();
                Assert.Equal(allowed.Count(pair => pair), picture.Census.Pairs);
                for (var at = 0; at < tokens * tokens; at++)
                {
                    var expected = MaskPicture.Shade(allowed[at] ? 1 : 0);
                    Assert.Equal(expected, picture.ColorAt(picture.PairsAt.X + (at % tokens * picture.PixelsPerPair), picture.PairsAt.Y + (at / tokens * picture.PixelsPerPair)));
                }
            }
        }
    }

    [Fact]
    public void A_plan_holds_the_blocks_that_causality_leaves()
    {
        using var scope = NewDisposeScope();
        var call = new Choice(AttentionOptions.CausalSelf with { BlockMask = DrawableMask.Of("full:block=16", 64) }).Select(randn(1, 1, 64, 8), randn(1, 1, 64, 8), randn(1, 1, 64, 8));

        var census = MaskCensus.Of(call);

        Assert.Equal((6, 4, 6), (census.FullBlocks, census.PartialBlocks, census.EmptyBlocks));
        Assert.Equal(64 * 65 / 2, census.Pairs);
    }

    [Fact]
    public void Blocks_of_another_bias_have_another_shade()
    {
        var mask = new BlockMask(1, 1, 64, 64, 32, 32, [0, 2, 4], [0, 1, 0, 1], null, [0, 0.7f, 1.4f, 0]);

        using var picture = MaskPicture.Draw(mask, "levels");

        var width = 64 * picture.PixelsPerPair;
        var right = picture.PairsAt.X + width + 48;
        var colours = new[] { (8, 8), (40, 8), (8, 40), (40, 40) }.Select(at => picture.ColorAt(right + (at.Item1 * picture.PixelsPerPair), picture.PairsAt.Y + (at.Item2 * picture.PixelsPerPair))).ToList();
        Assert.Equal(3, colours.Distinct().Count());
        Assert.Equal(colours[0], colours[3]);
        Assert.True(colours[0].Red < colours[1].Red && colours[1].Red < colours[2].Red);
    }

    [Fact]
    public void Random_inputs_have_neighbours_that_are_alike()
    {
        using var scope = NewDisposeScope();
        var inputs = DrawnInputs.Random(400, 2, seed: 3);

        var key = inputs.Key[0][1];
        var neighbours = nn.functional.cosine_similarity(key.narrow(0, 0, 399), key.narrow(0, 1, 399), 1).mean().item<float>();
        var far = nn.functional.cosine_similarity(key.narrow(0, 0, 200), key.narrow(0, 200, 200), 1).mean().item<float>();
        Assert.InRange(neighbours, 0.9, 0.99);
        Assert.InRange(far, -0.2, 0.2);
        Assert.True(inputs.Query.eq(DrawnInputs.Random(400, 2, seed: 3).Query).all().item<bool>());
        Assert.False(inputs.Query.eq(DrawnInputs.Random(400, 2, seed: 4).Query).all().item<bool>());
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

    /// <summary>Selects what it is told.</summary>
    private sealed class Choice(AttentionOptions options) : Masks.AttentionSelector
    {
        public override void Apply(AttentionCall call) => call.Options = options;
    }
}
