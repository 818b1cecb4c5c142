using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.BrainEncoders;

/// <summary>Codes of the places of a feature map.</summary>
internal static class MapPositions
{
    private const float Temperature = 10000;
    private const double Epsilon = 1e-6;

    /// <summary>Sines: the first half of the channels says the row, the second the column; sines at even places, cosines at odd. Rows and columns count from 1 over the places that are not padding, and are divided by the last count, so that
    /// maps of every size span the same angle. Computed in float32 for every type, as the reference does.</summary>
    /// <param name="padding">Boolean <c>[B, h, w]</c>, true where there is no picture.</param>
    /// <param name="width">Channels D, a multiple of 4.</param>
    /// <returns>float32 <c>[B, D, h, w]</c>.</returns>
    public static Tensor Sine(Tensor padding, int width)
    {
        using var scope = NewDisposeScope();
        using Scalar epsilon = Epsilon, turn = 2 * Math.PI;
        var there = padding.logical_not();
        var half = width / 2;
        var periods = tensor(Enumerable.Range(0, half).Select(channel => MathF.Pow(Temperature, 2f * (channel / 2) / half)).ToArray(), device: padding.device);
        Tensor Half(long axis)
        {
            var count = there.cumsum(axis, float32);
            var last = count.narrow(axis, count.shape[axis] - 1, 1);
            var angles = (count / last.add(epsilon)).mul(turn).unsqueeze(-1) / periods;
            // Even channels take the sine of the angle, odd ones its cosine.
            var pairs = angles.view(angles.shape[0], angles.shape[1], angles.shape[2], -1, 2);
            return stack([pairs.select(-1, 0).sin(), pairs.select(-1, 1).cos()], -1).flatten(3);
        }

        return cat([Half(1), Half(2)], -1).permute(0, 3, 1, 2).contiguous().MoveToOuterDisposeScope();
    }
}

/// <summary>Learned codes of the places of a feature map: <c>col_embed.weight</c> gives the first half of the channels, <c>row_embed.weight</c> the second.</summary>
internal sealed class LearnedMapPositions : nn.Module
{
    public const int Places = 50;

    private readonly Embedding row_embed;
    private readonly Embedding col_embed;

    public LearnedMapPositions(int width)
        : base(nameof(LearnedMapPositions))
    {
        (row_embed, col_embed) = (nn.Embedding(Places, width / 2), nn.Embedding(Places, width / 2));
        RegisterComponents();
        Parameters.Keep(this);
        using var still = no_grad();
        row_embed.weight!.uniform_(0, 1);
        col_embed.weight!.uniform_(0, 1);
    }

    /// <summary><c>[1, D, h, w]</c>.</summary>
    public Tensor Forward(long height, long width)
    {
        if (height > Places || width > Places)
        {
            throw new ArgumentException($"Learned positions know {Places} rows and columns; the map has {height} x {width}: take sine positions, or a smaller map.");
        }

        using var scope = NewDisposeScope();
        var columns = col_embed.weight!.narrow(0, 0, width).unsqueeze(0).expand(height, -1, -1);
        var rows = row_embed.weight!.narrow(0, 0, height).unsqueeze(1).expand(-1, width, -1);
        return cat([columns, rows], -1).permute(2, 0, 1).unsqueeze(0).MoveToOuterDisposeScope();
    }
}
