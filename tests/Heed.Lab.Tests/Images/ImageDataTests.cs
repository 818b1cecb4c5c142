using Heed.Lab.Images;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Images;

public sealed class ImageDataTests
{
    // Picture i is filled with 10 i and has the class i modulo 4.
    private static ImageData Data(int count = 21) => new(
        new(2, 1, 4), ["a", "b", "c", "d"], [.. Enumerable.Range(0, 4 * count).Select(i => (byte)(i / 4 * 10))], [.. Enumerable.Range(0, count).Select(i => (byte)(i % 4))], new(0.5, 0.25));

    [Fact]
    public void An_epoch_shows_every_picture_once_and_the_next_one_in_another_order()
    {
        using var scope = NewDisposeScope();
        var batches = Data().Batches(5, seed: 3);
        int[] Seen(int epoch) => [.. Enumerable.Range(4 * epoch, 4).SelectMany(step => batches(step).Images.select(1, 0).select(1, 0).select(1, 0).data<float>().Select(Picture))];

        var (first, second) = (Seen(0), Seen(1));
        Assert.Equal(20, first.Distinct().Count());
        Assert.Equal(20, second.Distinct().Count());
        Assert.NotEqual(first, second);
        // Going back, as a resumed run does.
        Assert.Equal(first, Seen(0));
        Assert.NotEqual(first, Enumerable.Range(0, 4).SelectMany(step => Data().Batches(5, seed: 4)(step).Images.select(1, 0).select(1, 0).select(1, 0).data<float>().Select(Picture)));
    }

    [Fact]
    public void Labels_go_with_their_pictures_and_pixels_are_normalised()
    {
        using var scope = NewDisposeScope();
        var (images, labels) = Data().Batches(21, seed: 1)(0);
        var pictures = images.select(1, 0).select(1, 0).select(1, 0).data<float>().Select(Picture);
        Assert.Equal(pictures.Select(picture => (long)picture % 4), labels.data<long>());
        Assert.Equal(((200 / 255.0) - 0.5) / 0.25, Data().At([20]).Images[0, 0, 1, 1].item<float>(), 1e-6);
    }

    [Fact]
    public void Classes_are_numbered_anew_in_the_order_given()
    {
        var some = Data().OfClasses(3, 1);
        Assert.Equal(["d", "b"], some.ClassNames);
        Assert.Equal(2, some.Task.Classes);
        Assert.Equal(Enumerable.Range(0, 21).Where(i => i % 4 is 1 or 3).Select(i => (byte)(10 * i)), Enumerable.Range(0, some.Count).Select(i => some.PixelsAt(i)[0]));
        Assert.All(Enumerable.Range(0, some.Count), i => Assert.Equal(some.PixelsAt(i)[0] / 10 % 4 == 3 ? 0 : 1, some.LabelOf(i)));
    }

    [Fact]
    public void Some_are_taken_in_order_or_by_a_seed()
    {
        Assert.Equal([0, 1, 2], Enumerable.Range(0, 3).Select(Data().Take(3).LabelOf));
        byte[] Taken(int seed) => [.. Enumerable.Range(0, 10).Select(i => Data().Take(10, seed).PixelsAt(i)[0])];
        Assert.Equal(Taken(1), Taken(1));
        Assert.NotEqual(Taken(1), Taken(2));
        Assert.Equal(10, Taken(1).Distinct().Count());
    }

    [Fact]
    public void Mistakes_are_refused()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => Data().Take(22));
        Assert.Throws<ArgumentOutOfRangeException>(() => Data().Take(0));
        Assert.Throws<ArgumentException>(() => Data().OfClasses(4));
        Assert.Throws<ArgumentException>(() => Data().OfClasses(1, 1));
        Assert.Throws<ArgumentException>(() => new ImageData(new(2, 1, 2), ["a", "b"], new byte[8], [0, 2]));
        Assert.Throws<ArgumentException>(() => new ImageData(new(2, 1, 2), ["a", "b"], new byte[7], [0, 1]));
    }

    private static int Picture(float pixel) => (int)Math.Round(((pixel * 0.25) + 0.5) * 25.5);
}
