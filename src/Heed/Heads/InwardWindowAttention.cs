using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Attention of a video's tokens within the inward sliding window of FreeSwim (arXiv 2511.14712): neighborhood attention over (frame, row, column) that sees all frames.</summary>
public static class InwardWindowAttention
{
    /// <summary>Computes it.</summary>
    /// <param name="query"><c>[B, frames * height * width, H, D]</c>, tokens in raster order (frame, row, column), heads last.</param>
    /// <param name="key"><c>[B, frames * height * width, Hkv, D]</c>.</param>
    /// <param name="value"><c>[B, frames * height * width, Hkv, Dv]</c>.</param>
    /// <param name="frames">Frames.</param>
    /// <param name="height">Rows.</param>
    /// <param name="width">Columns.</param>
    /// <param name="halfHeight">Rows seen on either side: the window has <c>2 halfHeight + 1</c>, or all.</param>
    /// <param name="halfWidth">Columns seen on either side.</param>
    /// <param name="scale">Factor of the query-key product, for example <see cref="AttentionTemperature.LogScale"/>; null: 1 / sqrt(D).</param>
    /// <param name="isCut">Cuts windows at borders instead of moving them inwards: the comparison of the paper, slower.</param>
    /// <param name="site">Where the call stands in its model; needed where hooks are given.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <returns><c>[B, frames * height * width, H, Dv]</c>.</returns>
    /// <exception cref="ArgumentException">The number of tokens is another one, or shapes do not fit together.</exception>
    public static Tensor Compute(
        Tensor query, Tensor key, Tensor value, long frames, long height, long width, long halfHeight, long halfWidth, double? scale = null, bool isCut = false, AttentionSite site = default,
        AttentionHooks? hooks = null)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        foreach (var tensor in new[] { query, key, value })
        {
            if (tensor.dim() != 4 || tensor.shape[1] != frames * height * width)
            {
                throw new ArgumentException(
                    $"A video of {frames} frames of {height} x {width} has {frames * height * width} tokens: [B, {frames * height * width}, heads, D] was expected, not {AttentionShape.Text(tensor)}.", nameof(query));
            }
        }

        using var scope = NewDisposeScope();
        if (isCut)
        {
            var options = AttentionOptions.Default with { Scale = scale, BlockMask = InwardWindow.Cut(frames, height, width, halfHeight, halfWidth) };
            return Attention.Compute(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), options, site, hooks).transpose(1, 2).MoveToOuterDisposeScope();
        }

        var output = NeighborhoodAttention.Compute(
            Grid(query), Grid(key), Grid(value), InwardWindow.Of(frames, height, width, halfHeight, halfWidth), scale, site: site, hooks: hooks);
        return output.flatten(1, 3).MoveToOuterDisposeScope();

        Tensor Grid(Tensor tensor) => tensor.reshape([tensor.shape[0], frames, height, width, tensor.shape[2], tensor.shape[3]]);
    }
}

/// <summary>Factors of the query-key product that keep attention as sharp as it was in training when there are more tokens.</summary>
public static class AttentionTemperature
{
    /// <summary><c>sqrt(log(tokens) / log(trainTokens) / headWidth)</c>, which is <c>1 / sqrt(headWidth)</c> at the training size (arXiv 2306.08645). FreeSwim's code has twice the training size here, whatever the size that
    /// is sampled.</summary>
    /// <param name="headWidth">Width of a head, from 1.</param>
    /// <param name="trainTokens">Tokens in training, from 2.</param>
    /// <param name="tokens">Tokens now, from 2.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is too small.</exception>
    public static double LogScale(long headWidth, double trainTokens, double tokens)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(headWidth, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(trainTokens, 2);
        ArgumentOutOfRangeException.ThrowIfLessThan(tokens, 2);
        return Math.Sqrt(Math.Log(tokens) / Math.Log(trainTokens) / headWidth);
    }
}
