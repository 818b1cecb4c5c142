using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>A grid cut into equal boxes, one after another, and back.</summary>
internal static class Stripes
{
    public static void Check((int Height, int Width) grid, (int Height, int Width) stripe)
    {
        if (grid.Height < 1 || grid.Width < 1 || grid.Height % stripe.Height != 0 || grid.Width % stripe.Width != 0)
        {
            throw new ArgumentException($"Stripes divide the grid; {stripe.Height} x {stripe.Width} and {grid.Height} x {grid.Width} were given.", nameof(stripe));
        }
    }

    public static void CheckInput(Tensor input, (int Height, int Width) grid, int channels)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 4 || input.shape[0] != 3 || input.shape[2] != grid.Height * grid.Width || input.shape[3] != channels)
        {
            throw new ArgumentException($"The input is [3 (queries, keys, values), batch, {grid.Height * grid.Width} tokens, {channels}]; {AttentionShape.Text(input)} was given.", nameof(input));
        }
    }

    /// <summary><c>[B, H W, C]</c> to <c>[B stripes, h w, C]</c>.</summary>
    public static Tensor Cut(Tensor tokens, (int Height, int Width) grid, (int Height, int Width) stripe) => stripe == grid ? tokens
        : tokens.reshape(tokens.shape[0], grid.Height / stripe.Height, stripe.Height, grid.Width / stripe.Width, stripe.Width, tokens.shape[2])
            .permute(0, 1, 3, 2, 4, 5).reshape(-1, stripe.Height * stripe.Width, tokens.shape[2]);

    /// <summary><c>[B stripes, h w, C]</c> to <c>[B, H W, C]</c>.</summary>
    public static Tensor Join(Tensor tokens, (int Height, int Width) grid, (int Height, int Width) stripe) => stripe == grid ? tokens
        : tokens.reshape(-1, grid.Height / stripe.Height, grid.Width / stripe.Width, stripe.Height, stripe.Width, tokens.shape[2])
            .permute(0, 1, 3, 2, 4, 5).reshape(-1, grid.Height * grid.Width, tokens.shape[2]);

    /// <summary>Maps <c>[B stripes, maps, h, w]</c> to <c>[B, maps, H, W]</c>.</summary>
    public static Tensor Picture(Tensor maps, (int Height, int Width) grid, (int Height, int Width) stripe) =>
        maps.reshape(-1, grid.Height / stripe.Height, grid.Width / stripe.Width, maps.shape[1], stripe.Height, stripe.Width)
            .permute(0, 3, 1, 4, 2, 5).reshape(-1, maps.shape[1], grid.Height, grid.Width);
}
