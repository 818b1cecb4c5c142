using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Cuts a picture into patches and projects each to a token: a convolution <c>proj</c> whose stride is its kernel.</summary>
public sealed class PatchEmbedding : nn.Module<Tensor, Tensor>
{
    private readonly Conv2d proj;
    private readonly int _channels;
    private readonly int _patch;

    /// <summary>Makes the module.</summary>
    /// <param name="channels">Channels of the picture, at least 1.</param>
    /// <param name="width">Width of a token, at least 1.</param>
    /// <param name="patch">Side of a patch in pixels, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is below 1.</exception>
    public PatchEmbedding(int channels, int width, int patch)
        : base(nameof(PatchEmbedding))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(patch, 1);
        (_channels, _patch) = (channels, patch);
        proj = nn.Conv2d(channels, width, patch, stride: patch);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The tokens, row by row.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>, both sides multiples of the patch.</param>
    /// <returns><c>[B, (H / patch) (W / patch), width]</c>.</returns>
    /// <exception cref="ArgumentException">The pictures have another shape.</exception>
    public override Tensor forward(Tensor images)
    {
        ArgumentNullException.ThrowIfNull(images);
        if (images.dim() != 4 || images.shape[1] != _channels || images.shape[2] % _patch != 0 || images.shape[3] % _patch != 0)
        {
            throw new ArgumentException(
                $"Pictures must be [batch, {_channels}, height, width] with sides that are multiples of {_patch}, not [{string.Join(", ", images.shape)}].", nameof(images));
        }

        using var scope = NewDisposeScope();
        return proj.forward(images).flatten(2).transpose(1, 2).MoveToOuterDisposeScope();
    }
}
