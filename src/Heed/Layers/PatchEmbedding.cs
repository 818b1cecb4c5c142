using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Cuts a picture into patches and projects each to a token: a convolution <c>proj</c> whose stride is its kernel, or less where patches overlap.</summary>
public sealed class PatchEmbedding : nn.Module<Tensor, Tensor>
{
    private readonly Conv2d proj;
    private readonly int _channels;
    private readonly int _patch;
    private readonly int _stride;

    /// <summary>Makes the module.</summary>
    /// <param name="channels">Channels of the picture, at least 1.</param>
    /// <param name="width">Width of a token, at least 1.</param>
    /// <param name="patch">Side of a patch in pixels, at least 1.</param>
    /// <param name="stride">Pixels from one patch to the next; 0: the patch's side, so that patches do not overlap.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is below 1, or the stride negative.</exception>
    public PatchEmbedding(int channels, int width, int patch, int stride = 0)
        : base(nameof(PatchEmbedding))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(patch, 1);
        ArgumentOutOfRangeException.ThrowIfNegative(stride);
        (_channels, _patch, _stride) = (channels, patch, stride == 0 ? patch : stride);
        proj = nn.Conv2d(channels, width, patch, stride: _stride);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The tokens, row by row.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>, both sides multiples of the patch; where patches overlap, at least as long as one (pixels behind the last whole one are not read).</param>
    /// <returns><c>[B, N, width]</c> with (floor((H - patch) / stride) + 1) (floor((W - patch) / stride) + 1) tokens N.</returns>
    /// <exception cref="ArgumentException">The pictures have another shape.</exception>
    public override Tensor forward(Tensor images)
    {
        ArgumentNullException.ThrowIfNull(images);
        if (images.dim() != 4 || images.shape[1] != _channels || !Fits(images.shape[2]) || !Fits(images.shape[3]))
        {
            throw new ArgumentException(
                $"Pictures must be [batch, {_channels}, height, width] with sides that are {(_stride == _patch ? "multiples of" : "at least")} {_patch}, not [{string.Join(", ", images.shape)}].",
                nameof(images));
        }

        using var scope = NewDisposeScope();
        return proj.forward(images).flatten(2).transpose(1, 2).MoveToOuterDisposeScope();
    }
    private bool Fits(long side) => side >= _patch && (_stride != _patch || side % _patch == 0);
}
