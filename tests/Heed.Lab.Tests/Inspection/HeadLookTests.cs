using Heed.Lab.Inspection;
using Xunit;

namespace Heed.Lab.Tests.Inspection;

public class HeadLookTests
{
    public static TheoryData<HeadLook> Looks => [.. Enum.GetValues<HeadLook>()];

    [Theory]
    [MemberData(nameof(Looks))]
    public void Map_drawn_after_a_look_is_called_by_it(HeadLook look)
    {
        var head = SyntheticInspection.Head(0, 0, 200, SyntheticInspection.Patterns[look], induction: look == HeadLook.Induction ? 0.8 : 0.01);
        Assert.Equal(look, head.Look);
    }

    [Fact]
    public void Statistics_of_a_head_that_looks_back_one_token_are_exact()
    {
        var head = SyntheticInspection.Head(0, 0, 50, (row, key) => key == Math.Max(0, row - 1) ? 1 : 0);
        Assert.Equal(0, head.Statistics.Entropy, 1e-6);
        Assert.Equal(1, head.Statistics.PreviousShare);
        Assert.Equal(0, head.Statistics.SelfShare);
        Assert.Equal(1, head.Statistics.MeanDistance, 1e-6);
        // Of the rows 1 to 49 only row 1 has its previous token first in the text.
        Assert.Equal(1 / 49.0, head.Statistics.FirstMass, 1e-6);
        Assert.Equal(1, head.Statistics.NearMass, 1e-6);
        Assert.Equal(Enumerable.Range(1, 49).Average(row => Math.Min(1, 16.0 / (row + 1))), head.Statistics.UniformNearMass, 1e-9);
    }

    [Fact]
    public void Equal_weights_have_the_whole_entropy()
    {
        var head = SyntheticInspection.Head(0, 0, 64, (_, _) => 1);
        Assert.Equal(1, head.Statistics.EntropyShare, 1e-5);
        Assert.Equal(HeadLook.Broad, head.Look);
    }

    [Fact]
    public void Equal_weights_in_a_window_have_the_whole_entropy_of_the_window()
    {
        const int window = 8;
        var head = SyntheticInspection.Head(0, 0, 64, (row, key) => row - key < window ? 1 : 0);
        var place = Enumerable.Range(0, 64).Select(row => Math.Max(0, row - window + 1)).ToArray();
        var statistics = HeadStatistics.Of(head.Entropy, place, new float[64], new float[64], new float[64], window);
        Assert.Equal(1, statistics.EntropyShare, 1e-5);
    }

    [Fact]
    public void Short_text_does_not_make_every_head_local()
    {
        // Eight tokens: nothing is farther than seven away, and equal weights are still not "local".
        var head = SyntheticInspection.Head(0, 0, 8, (_, _) => 1);
        Assert.NotEqual(HeadLook.Local, head.Look);
    }

    [Fact]
    public void One_token_has_statistics()
    {
        var statistics = HeadStatistics.Of([0f], [0], [0f], [1f], [1f]);
        Assert.Equal(1, statistics.SelfShare);
        Assert.Equal(0, statistics.EntropyShare);
    }

    [Fact]
    public void Lists_of_different_lengths_are_refused() =>
        Assert.Throws<ArgumentException>(() => HeadStatistics.Of([0f, 1f], [0], [0f, 1f], [1f, 1f], [1f, 1f]));

    [Theory]
    [MemberData(nameof(Looks))]
    public void Every_look_has_a_word_and_a_meaning(HeadLook look)
    {
        Assert.NotEmpty(HeadLooks.Word(look));
        Assert.NotEmpty(HeadLooks.Meaning(look));
    }
}
