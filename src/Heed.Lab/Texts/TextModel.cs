using Heed.Layers;
using Heed.Models.Texts;

namespace Heed.Lab.Texts;

/// <summary>A small causal language model that recipes train and compare: what <c>--model NAME:option=value,...</c> knows. Small by default, for training on a CPU.</summary>
/// <param name="Name">Name on the command line.</param>
/// <param name="Usage">How to write it, with every option and its default.</param>
/// <param name="Summary">What it is, in one line.</param>
/// <param name="Slug">The paper; null where it is a baseline.</param>
/// <param name="Create">Reads the options (each must be read, so that a misspelt one is an error) and makes a model of so many different tokens and so long a text, with fresh weights from libtorch's generator.</param>
public sealed record TextModel(string Name, string Usage, string Summary, string? Slug, Func<Specification, int, int, LanguageModel> Create)
{
    /// <summary>All models.</summary>
    public static IReadOnlyList<TextModel> All { get; } =
    [
        AttentionModels.MultiHead,
        AttentionModels.Gated,
        AttentionModels.Reduced,
        MambaModel.Entry,
        AttentionModels.RelativeConvolutional,
        AttentionModels.Relative,
        AttentionModels.Convolutional,
        MixtureOfHeadTextModel.Entry,
    ];

    /// <summary>Makes a model.</summary>
    /// <param name="text">For example <c>gated:position=G2</c>.</param>
    /// <param name="vocabulary">Number of different tokens.</param>
    /// <param name="length">Most tokens read at once.</param>
    /// <exception cref="ArgumentException">There is no such model, or an option is wrong.</exception>
    public static LanguageModel Make(string text, int vocabulary, int length)
    {
        var specification = Specification.Parse(text);
        var model = All.FirstOrDefault(model => model.Name == specification.Name)
            ?? throw new ArgumentException($"There is no language model '{specification.Name}'; there are: {string.Join(", ", All.Select(model => model.Name))}.", nameof(text));
        var made = model.Create(specification, vocabulary, length);
        specification.RefuseUnread();
        // The standard deviation of 0.02 that most papers draw is made for widths of hundreds: models as narrow as these start from it so slowly that comparisons measure the start.
        Parameters.InitializeByFan(made);
        return made;
    }
}
