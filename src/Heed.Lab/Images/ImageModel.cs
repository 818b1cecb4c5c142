using Heed.Lab.Images.Models;
using Heed.Layers;
using Heed.Models.Images;

namespace Heed.Lab.Images;

/// <summary>What pictures a model is to classify.</summary>
/// <param name="Size">Side of the (square) pictures in pixels.</param>
/// <param name="Channels">Channels of a picture.</param>
/// <param name="Classes">Number of classes.</param>
public readonly record struct ImageTask(int Size, int Channels, int Classes);

/// <summary>A vision model that recipes train and compare: what <c>--model NAME:option=value,...</c> knows. Small by default, for pictures like those of Fashion-MNIST and training on a CPU.</summary>
/// <param name="Name">Name on the command line.</param>
/// <param name="Usage">How to write it, with every option and its default.</param>
/// <param name="Summary">What it is, in one line.</param>
/// <param name="Slug">The paper; null where it is a baseline.</param>
/// <param name="Create">Reads the options (each must be read, so that a misspelt one is an error) and makes a model with fresh weights from libtorch's generator.</param>
public sealed record ImageModel(string Name, string Usage, string Summary, string? Slug, Func<Specification, ImageTask, ImageClassifier> Create)
{
    /// <summary>All models.</summary>
    public static IReadOnlyList<ImageModel> All { get; } =
    [
        BaselineModels.VisionTransformer,
        BaselineModels.MlpMixer,
        ReducedModel.Entry,
        MixtureOfHeadModel.Entry,
        NiNformerModel.Entry,
        FocalNetModel.Entry,
        MambaOutModel.Entry,
        ScanModels.SS2D,
        ScanModels.PlainMamba,
        ScanModels.LocalVim,
        ScanModels.Atrous,
        OverLoCKModel.Entry,
        MobileNetModel.Entry,
        AgentModel.Entry,
        AgentModel.Linear,
        GaussianModel.Entry,
        VimModel.Entry,
    ];

    /// <summary>Makes a model.</summary>
    /// <param name="text">For example <c>focalnet:width=64</c>.</param>
    /// <param name="task">The pictures.</param>
    /// <exception cref="ArgumentException">There is no such model, or an option is wrong.</exception>
    public static ImageClassifier Make(string text, ImageTask task)
    {
        var specification = Specification.Parse(text);
        var model = All.FirstOrDefault(model => model.Name == specification.Name)
            ?? throw new ArgumentException($"There is no vision model '{specification.Name}'; there are: {string.Join(", ", All.Select(model => model.Name))}.", nameof(text));
        var made = model.Create(specification, task);
        specification.RefuseUnread();
        // The standard deviation of 0.02 that most papers draw is made for widths of hundreds: models as narrow as these start from it so slowly that comparisons measure the start.
        Parameters.InitializeByFan(made);
        return made;
    }
}
