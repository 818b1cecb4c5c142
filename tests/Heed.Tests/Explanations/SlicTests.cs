using Heed.Explanations;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Explanations;

public sealed class SlicTests
{
    [Theory]
    [InlineData(30, 20, 24, 0.1)]
    [InlineData(30, 20, 24, 100)]
    [InlineData(200, 6, 50, 1)]
    [InlineData(5, 90, 9, 0.3)]
    [InlineData(7, 3, 21, 10)]
    public void Labels_count_from_one_without_gap_hang_together_and_are_not_small(int height, int width, int count, double compactness)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(5);
        var labels = Slic.Segment(rand([height, width], generator: generator), count, compactness);
        Assert.Equal([(long)height, width], labels.shape);
        var cells = labels.data<long>().ToArray();
        var groups = cells.GroupBy(label => label).ToDictionary(group => group.Key, group => group.Count());
        Assert.Equal(Enumerable.Range(1, groups.Count).Select(label => (long)label), groups.Keys.Order());
        Assert.Equal(groups.Count, Pieces(cells, height, width));
        // One piece may be small: the first, which finds nothing to join.
        Assert.True(groups.Values.Count(size => size < (double)height * width / count / 3) <= 1);
        Assert.InRange(groups.Count, 1, 2 * count);
    }

    [Fact]
    public void One_segment_is_the_whole_picture_and_stiff_ones_are_boxes()
    {
        using var scope = NewDisposeScope();
        Assert.Equal(1, Slic.Segment(rand(40, 9), 1, 1e6).max().item<long>());
        var boxes = Slic.Segment(rand(20, 20), 16, 1e6, sigma: 0);
        Assert.Equal(16, boxes.max().item<long>());
        Assert.True(boxes.eq(boxes[0, 0]).sum().item<long>() is > 15 and < 36);
    }

    [Fact]
    public void Segments_follow_an_edge()
    {
        using var scope = NewDisposeScope();
        var image = zeros(24, 24);
        image.narrow(1, 11, 13).fill_(1);
        var labels = Slic.Segment(image, 16, 0.05, sigma: 0);
        var (left, right) = (labels.narrow(1, 0, 11).flatten().data<long>().ToArray().ToHashSet(), labels.narrow(1, 11, 13).flatten().data<long>().ToArray().ToHashSet());
        Assert.Empty(left.Intersect(right));
    }

    [Fact]
    public void Mistakes_are_one_sentence()
    {
        using var scope = NewDisposeScope();
        Assert.Contains("[height, width]", Assert.Throws<ArgumentException>(() => Slic.Segment(rand(3, 4, 5), 2)).Message, StringComparison.Ordinal);
        Assert.Contains("at least 1 segment", Assert.Throws<ArgumentException>(() => Slic.Segment(rand(3, 4), 0)).Message, StringComparison.Ordinal);
        Assert.Contains("compactness above 0", Assert.Throws<ArgumentException>(() => Slic.Segment(rand(3, 4), 2, 0)).Message, StringComparison.Ordinal);
        Assert.Contains("finite", Assert.Throws<ArgumentException>(() => Slic.Segment(full([3, 4], double.NaN), 2)).Message, StringComparison.Ordinal);
    }

    private static int Pieces(long[] cells, int height, int width)
    {
        var seen = new bool[cells.Length];
        var pieces = 0;
        for (var start = 0; start < cells.Length; start++)
        {
            if (seen[start])
            {
                continue;
            }

            pieces++;
            var open = new Stack<int>([start]);
            seen[start] = true;
            while (open.TryPop(out var cell))
            {
                foreach (var (row, column) in new[] { ((cell / width) - 1, cell % width), ((cell / width) + 1, cell % width), (cell / width, (cell % width) - 1), (cell / width, (cell % width) + 1) })
                {
                    var at = (row * width) + column;
                    if (row >= 0 && row < height && column >= 0 && column < width && !seen[at] && cells[at] == cells[cell])
                    {
                        seen[at] = true;
                        open.Push(at);
                    }
                }
            }
        }

        return pieces;
    }
}
