using Heed.Edits;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

/// <summary>The selector that docs/masks/README.md writes is compiled and run here.</summary>
public sealed class MasksPageTests
{
    [Theory]
    [InlineData(300, 300)]
    [InlineData(64, 64)]
    [InlineData(7, 7)]
    [InlineData(1, 300)]
    public void TheSelectorSeesNoFutureAndItsOwnBlockAlways(long queries, long keys)
    {
        using var scope = NewDisposeScope();
        var (query, key, value) = (randn(2, 4, queries, 16), randn(2, 2, keys, 16), randn(2, 2, keys, 8));

        var call = new LikedBlocks(1).Select(query, key, value, AttentionOptions.CausalSelf);
        var pairs = call.Pairs();
        var position = (arange(queries) + (keys - queries)).unsqueeze(1);

        Assert.False(pairs.logical_and(arange(keys) > position).any().item<bool>());
        Assert.True(pairs.logical_or(arange(keys).ne(position)).all().item<bool>());
        Assert.True(Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { Selector = new LikedBlocks(1) }).isfinite().all().item<bool>());
    }

    [Fact]
    public void LikingEveryBlockIsDenseAttention()
    {
        using var scope = NewDisposeScope();
        var (query, key, value) = (randn(1, 4, 300, 16), randn(1, 2, 300, 16), randn(1, 2, 300, 16));

        var dense = Attention.Compute(query, key, value, AttentionOptions.CausalSelf);
        var hooks = new AttentionHooks();
        using var swapped = hooks.Install(new SelectorEdit(site => site.Layer == 0 ? new LikedBlocks(99) : null));
        var sparse = Attention.Compute(query, key, value, AttentionOptions.CausalSelf, new(0, AttentionKind.Self, "layer"), hooks);

        Assert.True((dense - sparse).abs().max().item<float>() < 1e-5);
        var few = Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { Selector = new LikedBlocks(1) });
        Assert.True((dense - few).abs().max().item<float>() > 1e-3);
    }

    [Fact]
    public void TheSelectorIsThePages()
    {
        var folder = new DirectoryInfo(AppContext.BaseDirectory);
        while (!File.Exists(Path.Combine(folder.FullName, "Heed.slnx")))
        {
            folder = folder.Parent ?? throw new InvalidOperationException("The repository was not found above its tests.");
        }

        var page = File.ReadAllText(Path.Combine(folder.FullName, "docs", "masks", "README.md"));
        var start = page.IndexOf("/// <summary>Each block", StringComparison.Ordinal);
        var program = page[start..page.IndexOf("```", start, StringComparison.Ordinal)].Trim();
        var source = File.ReadAllText(Path.Combine(folder.FullName, "tests", "Heed.Tests", "Masks", "MasksPageTests.cs"));
        Assert.Contains(program, source, StringComparison.Ordinal);
    }
}

/// <summary>Each block of 64 queries reads its own block, the first one, and those that its last query likes best by their mean key.</summary>
public sealed class LikedBlocks(int count) : AttentionSelector
{
    private const int Block = 64;

    public override void Apply(AttentionCall call)
    {
        var (query, key) = (call.Query, call.Key);
        var (queries, keys, shift) = (query.size(2), key.size(2), key.size(2) - query.size(2));     // the last query stands at the last key
        var selection = new KeySelection(queries, keys, (int)query.size(0), (int)query.size(1), Block, Block);
        var lastQueries = Enumerable.Range(0, selection.QueryBlocks).Select(block => Math.Min((block + 1L) * Block, queries) - 1).ToArray();
        var means = nn.functional.pad(key, [0, 0, 0, (selection.KeyBlocks * Block) - keys]).unflatten(2, [-1, Block]).mean([3]).repeat_interleave(query.size(1) / key.size(1), 1);
        var liking = query.index_select(2, tensor(lastQueries)).matmul(means.transpose(-1, -2)).to(float32).contiguous().data<float>().ToArray();
        for (var row = 0; row < selection.Batches * selection.Heads * selection.QueryBlocks; row++)
        {
            var (item, head, block) = (row / selection.QueryBlocks / selection.Heads, row / selection.QueryBlocks % selection.Heads, row % selection.QueryBlocks);
            var first = (int)(((block * (long)Block) + shift) / Block);
            var last = (int)((lastQueries[block] + shift) / Block);
            var liked = Enumerable.Range(0, first).OrderByDescending(other => liking[(row * selection.KeyBlocks) + other]).Take(count);
            selection.AddBlocks(item, head, block, [0, .. liked, .. Enumerable.Range(first, last - first + 1)]);
        }

        call.Options = call.Options with { BlockMask = selection.ToBlockMask() };                   // causality still holds on top of it
    }
}
