namespace Heed.Models.VisionLanguage;

/// <summary>The shape of a <see cref="ClipVisionEncoder"/>. The defaults of members that are not required are those of the transformers library.</summary>
public sealed record ClipVisionConfiguration
{
    /// <summary>Width C of a token.</summary>
    public required int HiddenSize { get; init; }

    /// <summary>Width of the perceptrons' hidden layer.</summary>
    public required int IntermediateSize { get; init; }

    /// <summary>Number of layers.</summary>
    public required int Layers { get; init; }

    /// <summary>Number of heads, a divisor of <see cref="HiddenSize"/>.</summary>
    public required int Heads { get; init; }

    /// <summary>Side of the (square) pictures in pixels, a multiple of the patch.</summary>
    public required int ImageSize { get; init; }

    /// <summary>Side of a patch in pixels.</summary>
    public required int PatchSize { get; init; }

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Activation of the perceptrons: quick_gelu (x sigmoid(1.702 x), CLIP's own) or gelu.</summary>
    public string Activation { get; init; } = "quick_gelu";

    /// <summary>Epsilon of the norms.</summary>
    public double NormEpsilon { get; init; } = 1e-5;

    /// <summary>Patches along a side.</summary>
    public int Grid => ImageSize / PatchSize;

    /// <summary>Patches of a picture.</summary>
    public int Patches => Grid * Grid;

    /// <summary>Refuses sizes that make no model.</summary>
    /// <exception cref="ArgumentException">A size is out of range; the message names it.</exception>
    public void Validate()
    {
        foreach (var (name, size) in new[]
        {
            (nameof(HiddenSize), HiddenSize), (nameof(IntermediateSize), IntermediateSize), (nameof(Layers), Layers), (nameof(Heads), Heads), (nameof(ImageSize), ImageSize), (nameof(PatchSize), PatchSize),
            (nameof(Channels), Channels),
        })
        {
            if (size < 1)
            {
                throw new ArgumentException($"{name} of the vision encoder must be at least 1, not {size}.");
            }
        }

        if (HiddenSize % Heads != 0 || ImageSize % PatchSize != 0)
        {
            throw new ArgumentException(
                $"In a vision encoder the heads divide the width and the patch divides the picture's side: {Heads} heads and width {HiddenSize}, patches of {PatchSize} and pictures of {ImageSize} do not.");
        }

        if (Activation is not ("quick_gelu" or "gelu"))
        {
            throw new ArgumentException($"The activation of a vision encoder is quick_gelu or gelu, not '{Activation}'.");
        }
    }
}
