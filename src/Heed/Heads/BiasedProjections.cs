using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>What the attention modules of arXiv 2505.12044 share: query, key and value projections without biases, an output projection with one, heads as slices of the width.</summary>
internal static class BiasedProjections
{
    public static int HeadWidth(int width, int heads, int headWidth)
    {
        if (width < 1 || heads < 1 || headWidth < 0)
        {
            throw new ArgumentException($"Width, heads and head width must be positive, not {width}, {heads} and {headWidth}.", nameof(heads));
        }

        return headWidth > 0 ? headWidth
            : width % heads == 0 ? width / heads
            : throw new ArgumentException($"A width of {width} does not divide into {heads} heads.", nameof(heads));
    }

    public static (Linear Query, Linear Key, Linear Value, Sequential Output) Make(int width, int inner, double dropout) => (
        nn.Linear(width, inner, hasBias: false), nn.Linear(width, inner, hasBias: false), nn.Linear(width, inner, hasBias: false),
        nn.Sequential(nn.Linear(inner, width), nn.Dropout(dropout)));

    public static void Check(Tensor input, int width)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[2] != width)
        {
            throw new ArgumentException($"The input must be [batch, tokens, {width}], not {AttentionShape.Text(input)}.", nameof(input));
        }
    }

    /// <summary><c>[B, N, H D]</c> as <c>[B, H, N, D]</c>.</summary>
    public static Tensor Split(Tensor tokens, int heads) => tokens.view(tokens.shape[0], tokens.shape[1], heads, -1).transpose(1, 2);

    public static Tensor Run(
        Tensor input, Linear query, Linear key, Linear value, Sequential output, int heads, AttentionOptions options, AttentionSite site, AttentionHooks? hooks)
    {
        var mixed = Attention.Compute(Split(query.forward(input), heads), Split(key.forward(input), heads), Split(value.forward(input), heads), options, site, hooks);
        return output.forward(mixed.transpose(1, 2).reshape(input.shape[0], input.shape[1], -1));
    }
}
