using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class ChunkScanTests
{
    [Fact]
    public void A_chunk_with_one_hill_ends_at_its_top()
    {
        using var scope = NewDisposeScope();
        var score = -(arange(64, dtype: float64) - 21).abs();
        var key = score.view(1, 1, 64, 1);
        var (left, right, best) = ChunkScan.Scan(
            ones(1, 2, 3, 1, dtype: float64), key, tensor(new[] { 0, 16, 40, 5 }).view(1, 1, 1, 4).expand(1, 2, 1, 4), tensor(new[] { 64, 32, 48, 6 }).view(1, 1, 1, 4).expand(1, 2, 1, 4), 4, 2);

        Assert.Equal([1, 2, 1, 4], left.shape);
        Assert.True(right.sub(left).le(1).all().item<bool>());
        Assert.True(best.eq(score.index_select(0, left.reshape(-1).to(int64)).view(1, 2, 1, 4)).all().item<bool>());
        // The search compares quarters of a chunk; it ends at the top or beside it.
        Assert.InRange(left[0, 0, 0, 1].item<int>(), 20, 22);
        Assert.Equal(40, left[0, 0, 0, 2].item<int>());
        Assert.Equal(5, left[0, 0, 0, 3].item<int>());
    }

    [Fact]
    public void Chunks_in_which_the_query_finds_its_key_are_kept()
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        // Locally constant keys: what one key of a piece scores, all score.
        var key = randn([1, 1, 64, 16], generator: random).repeat_interleave(16, 2);
        var query = key.narrow(2, 400, 1) * 10;
        var selector = new ChunkScanSelector(new() { Stages = [new(64, 1), new(16, 1, 256), new(4, 1, 64)], Keep = 16, SlidingWindow = 0, SinkSize = 0 });
        using var starts = selector.Search(query, key).Indices().data<int>();
        Assert.Equal([400, 404, 408, 412], starts.ToArray());
    }

    [Fact]
    public void What_is_no_chunk_is_refused()
    {
        using var scope = NewDisposeScope();
        var (query, key) = (ones(1, 1, 4, 2), ones(1, 1, 8, 2));
        static Tensor At(int value) => tensor(new[] { value }).view(1, 1, 1, 1);
        Refuses("range of the 8 keys", () => ChunkScan.Scan(query, key, At(3), At(3), 4, 1));
        Refuses("range of the 8 keys", () => ChunkScan.Scan(query, key, At(3), At(9), 4, 1));
        Refuses("[1, 1, 2, n]", () => ChunkScan.Scan(query, key, At(3), At(4), 2, 1));
        Refuses("stride", () => ChunkScan.Scan(query, key, At(3), At(4), 4, 0));
        Refuses("int32 or int64", () => ChunkScan.Scan(query, key, At(3).to(float32), At(4), 4, 1));

        static void Refuses(string words, Action action) => Assert.Contains(words, Assert.Throws<ArgumentException>(action).Message, StringComparison.Ordinal);
    }
}
