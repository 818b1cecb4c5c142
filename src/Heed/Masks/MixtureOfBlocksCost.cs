namespace Heed.Masks;

/// <summary>A diffusion transformer as far as its floating-point operations go.</summary>
/// <param name="Tokens">Video tokens.</param>
/// <param name="TextTokens">Text tokens that every layer attends to.</param>
/// <param name="Width">Width of the model.</param>
/// <param name="FeedForwardWidth">Width of the feed-forward layer.</param>
/// <param name="Layers">Number of layers.</param>
public readonly record struct VideoTransformerSize(double Tokens, double TextTokens, double Width, double FeedForwardWidth, double Layers);

/// <summary>The floating-point operations of a video transformer with full attention or a mixture of blocks (VMoBA, arXiv 2506.23858, as the authors count them: two per multiply-add).</summary>
public static class MixtureOfBlocksCost
{
    /// <summary>Operations of a forward pass through layers that are all alike.</summary>
    /// <param name="size">The model.</param>
    /// <param name="blocks">Number of key blocks; 0: full attention.</param>
    /// <param name="keptShare">Share of the blocks that a query attends to.</param>
    public static double Operations(VideoTransformerSize size, double blocks, double keptShare)
    {
        var (tokens, text, width) = (size.Tokens, size.TextTokens, size.Width);
        var attention = 4 * tokens * tokens * width;
        if (blocks > 0)
        {
            var block = tokens / blocks;

            // Whole blocks, by the exact remainder: rounding may leave one block less than the quotient says, and the published figures count so.
            var selection = 2 * tokens * width * Math.Round((tokens - (tokens % block)) / block);
            attention = selection + (4 * tokens * (keptShare * blocks * block) * width);
        }

        var projections = 8 * tokens * width * width;
        var cross = (4 * tokens * width * width) + (4 * text * width * width) + (4 * tokens * text * width);
        var feedForward = 4 * tokens * width * size.FeedForwardWidth;
        return size.Layers * (projections + attention + cross + feedForward);
    }

    /// <summary>Operations of a model whose layers cut blocks in turn along time, space and both: the mean of three models that cut alike.</summary>
    /// <param name="size">The model.</param>
    /// <param name="blocks">Number of blocks of each kind of layer.</param>
    /// <param name="keptShare">Share of the blocks that a query attends to.</param>
    public static double Operations(VideoTransformerSize size, (double Temporal, double Spatial, double SpatioTemporal) blocks, double keptShare) =>
        (Operations(size, blocks.Temporal, keptShare) + Operations(size, blocks.Spatial, keptShare) + Operations(size, blocks.SpatioTemporal, keptShare)) / 3;
}
