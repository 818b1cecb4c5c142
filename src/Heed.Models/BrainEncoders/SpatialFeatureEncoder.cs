using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.BrainEncoders;

/// <summary>A baseline of arXiv 2505.17329: every query has one static map, the softmax of a learned score per place (<c>spatial_embed.weight</c> <c>[R, P]</c>), the same for every picture; its token is the map's mean of the features. No
/// projection, no feed-forward; the readouts are those of <see cref="BrainEncoder"/>.</summary>
public sealed class SpatialFeatureEncoder : TokenBrainModel
{
    private readonly Embedding spatial_embed;
    private readonly BrainReadoutOptions _options;
    private readonly (int Height, int Width) _map;

    /// <summary>Makes a model from libtorch's own generator.</summary>
    /// <param name="options">Its readout.</param>
    /// <param name="height">Rows of the feature map.</param>
    /// <param name="width">Its columns.</param>
    /// <exception cref="ArgumentException">Sizes do not fit together; the message says which.</exception>
    public SpatialFeatureEncoder(BrainReadoutOptions options, int height, int width)
        : base(nameof(SpatialFeatureEncoder), Valid(options, height, width), options.Channels)
    {
        (_options, _map) = (options, (height, width));
        spatial_embed = nn.Embedding(options.Queries, height * width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    /// <remarks>With a padding mask, what a query looks at is shared out among the places that are not padding; the reference knows none.</remarks>
    public override BrainPrediction Forward(Tensor features, Tensor? paddingMask = null, bool withAttention = false)
    {
        CheckMap(features, _options.Channels, paddingMask);
        if (features.shape[2] != _map.Height || features.shape[3] != _map.Width)
        {
            throw new ArgumentException($"Static maps are of one size, {_map.Height} x {_map.Width}; a feature map of {features.shape[2]} x {features.shape[3]} was given.", nameof(features));
        }

        using var scope = NewDisposeScope();
        var scores = spatial_embed.weight!.unsqueeze(0);
        if (paddingMask is not null)
        {
            using TorchSharp.Scalar nothing = double.NegativeInfinity;
            scores = scores.masked_fill(paddingMask.flatten(1).unsqueeze(1), nothing);
        }

        var maps = scores.softmax(-1);
        var tokens = matmul(maps, features.flatten(2).transpose(1, 2));
        var (left, right) = Read(tokens);
        return new(
            left.MoveToOuterDisposeScope(), right.MoveToOuterDisposeScope(), tokens.MoveToOuterDisposeScope(),
            withAttention ? [maps.detach().expand(features.shape[0], -1, -1).MoveToOuterDisposeScope()] : []);
    }

    private static BrainReadoutOptions Valid(BrainReadoutOptions options, int height, int width)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        return height > 0 && width > 0 ? options : throw new ArgumentException($"A feature map has rows and columns; {height} x {width} were given.", nameof(height));
    }
}
