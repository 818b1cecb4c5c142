using static TorchSharp.torch;

namespace Heed.Lab.Videos;

/// <summary>Clips of two to four coloured discs that move through the picture and bounce off its sides.</summary>
public static class MovingDiscs
{
    /// <summary>Colour channels.</summary>
    public const int Channels = 3;

    /// <summary>Frames of a clip.</summary>
    public const int Frames = 8;

    /// <summary>Rows and columns of a frame.</summary>
    public const int Side = 16;

    private const int MostDiscs = 4;

    /// <summary>Draws clips.</summary>
    /// <param name="clips">How many.</param>
    /// <param name="seed">The same seed gives the same clips.</param>
    /// <returns><c>[clips, frames, channels, side, side]</c>, values from -1 (background) to 1.</returns>
    public static Tensor Draw(int clips, int seed)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var generator = new Generator((ulong)seed);
        Tensor Uniform(double low, double high, params long[] shape) => rand(shape, generator: generator) * (high - low) + low;

        // A path that runs on is folded at the sides: [clips, discs, frames].
        var time = arange(Frames, dtype: float32).view(1, 1, Frames);
        Tensor Path()
        {
            var straight = Uniform(0, Side, clips, MostDiscs, 1) + (Uniform(-1.5, 1.5, clips, MostDiscs, 1) * time);
            return Side - (straight.remainder(2 * Side) - Side).abs();
        }

        var (x, y) = (Path(), Path());
        var radius = Uniform(1.5, 3.5, clips, MostDiscs, 1, 1, 1);
        var color = Uniform(-0.2, 1, clips, MostDiscs, 1, Channels, 1, 1);
        var present = arange(MostDiscs, dtype: float32).view(1, -1, 1, 1, 1) < Uniform(2, MostDiscs + 1, clips, 1, 1, 1, 1).floor();
        var place = arange(Side, dtype: float32) + 0.5;
        var distance = ((place.view(1, 1, 1, 1, Side) - x.unsqueeze(-1).unsqueeze(-1)).square() + (place.view(1, 1, 1, Side, 1) - y.unsqueeze(-1).unsqueeze(-1)).square()).sqrt();

        // Edges a pixel wide, later discs before earlier ones.
        var cover = ((radius - distance) + 0.5).clamp(0, 1) * present.to(float32);
        var clip = full([clips, Frames, Channels, Side, Side], -1f);
        for (var disc = 0; disc < MostDiscs; disc++)
        {
            var share = cover.select(1, disc).unsqueeze(2);
            clip = (clip * (1 - share)) + (color.select(1, disc) * share);
        }

        return clip.MoveToOuterDisposeScope();
    }
}
