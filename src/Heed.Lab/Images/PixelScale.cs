using static TorchSharp.torch;

namespace Heed.Lab.Images;

/// <summary>How pixels become a model's input.</summary>
/// <param name="Mean">What is taken off a pixel on the scale from 0 to 1.</param>
/// <param name="Deviation">What it is then divided by, above 0.</param>
public readonly record struct PixelScale(double Mean, double Deviation)
{
    /// <summary>Makes a model's input.</summary>
    /// <param name="pixels">0 to 255, any shape and type.</param>
    /// <returns>float32 of that shape.</returns>
    public Tensor Apply(Tensor pixels)
    {
        ArgumentNullException.ThrowIfNull(pixels);
        using var scope = NewDisposeScope();
        using TorchSharp.Scalar factor = 1 / (255 * Deviation), offset = -Mean / Deviation;
        return pixels.to(float32, copy: true).mul_(factor).add_(offset).MoveToOuterDisposeScope();
    }
}
