using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.BrainEncoders;

/// <summary>The linear baseline of arXiv 2505.17329: a 3 x 3 convolution to 256 channels without padding, everything flattened, one linear map per hemisphere. Training adds 0.02 times the sum of the norms of all parameter tensors.</summary>
public sealed class ConvolutionalEncoder : BrainModel
{
    private const double PenaltyShare = 0.02;

    private readonly Conv2d conv;
    private readonly Linear lh_embed;
    private readonly Linear rh_embed;
    private readonly (int Channels, int Height, int Width) _map;

    /// <summary>Makes a model from libtorch's own generator.</summary>
    /// <param name="channels">Channels of the feature map.</param>
    /// <param name="height">Its rows, from 3.</param>
    /// <param name="width">Its columns, from 3.</param>
    /// <param name="leftVertices">Vertices of the left hemisphere.</param>
    /// <param name="rightVertices">Those of the right.</param>
    /// <param name="stride">Places from one application of the convolution to the next, 1 to 3.</param>
    /// <param name="inner">Channels after the convolution.</param>
    /// <exception cref="ArgumentException">A number is out of its range.</exception>
    public ConvolutionalEncoder(int channels, int height, int width, int leftVertices, int rightVertices, int stride = 1, int inner = 256)
        : base(nameof(ConvolutionalEncoder))
    {
        if (channels < 1 || height < 3 || width < 3 || leftVertices < 1 || rightVertices < 1 || stride is < 1 or > 3 || inner < 1)
        {
            throw new ArgumentException(
                $"A linear encoder reads maps of at least 3 x 3 places with a stride of 1 to 3 and has channels and vertices; {channels} x {height} x {width}, stride {stride}, {inner} inner channels, {leftVertices} and {rightVertices} vertices were given.", nameof(height));
        }

        using var scope = NewDisposeScope();
        _map = (channels, height, width);
        conv = nn.Conv2d(channels, inner, 3, stride: stride);
        var flat = (long)inner * (((height - 3) / stride) + 1) * (((width - 3) / stride) + 1);
        (lh_embed, rh_embed) = (nn.Linear(flat, leftVertices), nn.Linear(flat, rightVertices));
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public override BrainPrediction Forward(Tensor features, Tensor? paddingMask = null, bool withAttention = false)
    {
        CheckMap(features, _map.Channels, paddingMask);
        if (paddingMask is not null || features.shape[2] != _map.Height || features.shape[3] != _map.Width)
        {
            throw new ArgumentException($"A linear encoder reads whole maps of one size, {_map.Height} x {_map.Width}, without padding; {features.shape[2]} x {features.shape[3]} {(paddingMask is null ? "was" : "with padding was")} given.", nameof(features));
        }

        using var scope = NewDisposeScope();
        var flat = conv.forward(features).flatten(1);
        return new(lh_embed.forward(flat).MoveToOuterDisposeScope(), rh_embed.forward(flat).MoveToOuterDisposeScope(), null, []);
    }

    /// <inheritdoc/>
    public override Tensor? Penalty()
    {
        using var scope = NewDisposeScope();
        using Scalar share = PenaltyShare;
        return stack(parameters().Select(parameter => parameter.norm())).sum().mul(share).MoveToOuterDisposeScope();
    }
}
