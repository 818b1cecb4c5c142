using Heed.Explanations;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Explanations;

public sealed class DeletionCurveTests
{
    [Fact]
    public void The_most_important_cells_go_first_and_insertion_is_the_rest()
    {
        using var scope = NewDisposeScope();
        var (features, saliency) = (rand(5, 4) + 1, randperm(20).view(5, 4).to(float32));
        var deleted = DeletionCurve.Create(features, saliency, 5);
        var inserted = DeletionCurve.Create(features, saliency, 5, DeletionMode.Insertion);
        Assert.Equal([21L, 5, 4], deleted.shape);
        Assertions.Close(features.expand(21, 5, 4), deleted + inserted, 0);
        for (var index = 0; index <= 20; index++)
        {
            Assert.True(deleted[index].eq(0).eq(saliency.ge(20 - index)).all().item<bool>());
        }
    }

    [Fact]
    public void Hidden_cells_take_the_baseline_and_equals_are_hidden_from_the_last_on()
    {
        using var scope = NewDisposeScope();
        var curve = DeletionCurve.Create(ones(4), zeros(4), 50, baseline: full([4], 7f));
        Assertions.Close(tensor(new float[,] { { 1, 1, 1, 1 }, { 1, 1, 7, 7 }, { 7, 7, 7, 7 } }), curve, 0);
    }

    [Fact]
    public void The_area_is_the_trapezoids()
    {
        Assert.Equal(100, DeletionCurve.Auc([1, 1, 1, 1, 1]), 1e-12);
        Assert.Equal(50, DeletionCurve.Auc([1, 0]), 1e-12);
        Assert.Equal(25, DeletionCurve.Auc([1, 0, 0]), 1e-12);
    }

    [Fact]
    public void Mistakes_are_one_sentence()
    {
        using var scope = NewDisposeScope();
        Assert.Contains("30 does not", Assert.Throws<ArgumentException>(() => DeletionCurve.Create(ones(4), ones(4), 30)).Message, StringComparison.Ordinal);
        Assert.Contains("features' shape", Assert.Throws<ArgumentException>(() => DeletionCurve.Create(ones(4), ones(2, 2), 10)).Message, StringComparison.Ordinal);
        Assert.Contains("at least two", Assert.Throws<ArgumentException>(() => DeletionCurve.Auc([1])).Message, StringComparison.Ordinal);
    }
}
