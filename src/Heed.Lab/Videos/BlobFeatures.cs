using static TorchSharp.torch;

namespace Heed.Lab.Videos;

/// <summary>Queries, keys and values as a video model might have them: features of soft blobs that move through a grid of tokens, seen by queries and keys alike, with noise on top. Neighbours in space and time are alike,
/// and so are the places where a blob was and will be.</summary>
public static class BlobFeatures
{
    private const int Blobs = 16;

    /// <summary>Makes inputs of one video; tokens in raster order (frame, row, column).</summary>
    /// <param name="frames">Frames.</param>
    /// <param name="rows">Rows.</param>
    /// <param name="columns">Columns.</param>
    /// <param name="heads">Heads; each sees blobs of its own.</param>
    /// <param name="width">Width of a head.</param>
    /// <param name="seed">The same seed gives the same inputs.</param>
    /// <param name="noise">Standard deviation of the noise, beside features of about 1.</param>
    /// <param name="sharpness">Factor of the queries: the larger, the fewer keys a query attends to.</param>
    /// <returns>Three tensors <c>[1, heads, frames * rows * columns, width]</c>.</returns>
    public static (Tensor Query, Tensor Key, Tensor Value) Make(
        int frames, int rows, int columns, int heads, int width, int seed, double noise = 0.3, double sharpness = 2)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var generator = new Generator((ulong)seed);
        Tensor Normal(params long[] shape) => randn(shape, generator: generator);
        Tensor Uniform(double low, double high, params long[] shape) => rand(shape, generator: generator) * (high - low) + low;

        // Where every blob is in every frame, in units of the grid's sides: [heads, blobs, frames, 1, 1].
        var time = linspace(0, 1, frames).view(1, 1, frames, 1, 1);
        Tensor Path() => Uniform(0, 1, heads, Blobs, 1, 1, 1) + (Uniform(-0.5, 0.5, heads, Blobs, 1, 1, 1) * time);
        var (x, y) = (Path(), Path());
        var radius = Uniform(0.08, 0.25, heads, Blobs, 1, 1, 1);
        var down = linspace(0, 1, rows).view(1, 1, 1, rows, 1);
        var right = linspace(0, 1, columns).view(1, 1, 1, 1, columns);
        var nearness = (-((right - x).square() + (down - y).square()) / (2 * radius.square())).exp().view(heads, Blobs, -1).transpose(1, 2);
        var (looks, contents) = (Normal(heads, Blobs, width), Normal(heads, Blobs, width));
        Tensor Seen(Tensor of) => matmul(nearness, of);
        long[] shape = [heads, (long)frames * rows * columns, width];
        var key = Seen(looks) + (noise * Normal(shape));
        var query = (Seen(looks) + (noise * Normal(shape))) * sharpness;
        var value = Seen(contents) + (noise * Normal(shape));
        return (query.unsqueeze(0).MoveToOuterDisposeScope(), key.unsqueeze(0).MoveToOuterDisposeScope(), value.unsqueeze(0).MoveToOuterDisposeScope());
    }
}
