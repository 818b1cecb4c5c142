using System.Globalization;
using Heed.Edits;
using Heed.Models.VisionLanguage;

namespace Heed.Lab.Mechanisms;

/// <summary>The model that an edit is put into.</summary>
/// <param name="Hooks">Its hooks.</param>
/// <param name="Layers">Number of attention layers.</param>
/// <param name="Heads">Query heads of a layer.</param>
public sealed record EditTarget(AttentionHooks Hooks, int Layers, int Heads)
{
    /// <summary>The vision-language model whose decoder this is; null: it reads texts alone.</summary>
    public VisionLanguageModel? Pictures { get; init; }

    /// <summary>Whether edits change the map itself, so that probes see it edited. Slower.</summary>
    public bool Materialize { get; init; }
}

/// <summary>A change to a trained model, without training, that <c>--edit NAME:option=value,...</c> names.</summary>
/// <param name="Name">Name on the command line.</param>
/// <param name="Usage">How to write it, with every option and its default.</param>
/// <param name="Summary">What it does, in one line.</param>
/// <param name="Slug">The paper; null where it is nobody's.</param>
/// <param name="Create">Reads the options (each must be read, so that a misspelt one is an error) and returns what puts the edit into a model until the result is disposed.</param>
public sealed record ModelEdit(string Name, string Usage, string Summary, string? Slug, Func<Specification, Func<EditTarget, IDisposable>> Create)
{
    /// <summary>All edits.</summary>
    public static IReadOnlyList<ModelEdit> All { get; } =
    [
        new("heads", "heads:scale=2.0/2.3,by=0", "multiplies the outputs of heads, written layer.head with / between them, by a factor; 0 removes them", null, ScaledHeads),
        new("var", "var:rho=0.5,image=0.2,keep=0.6,from=2,to=LAYERS,dims=BOS,threshold=BY WIDTH", "takes attention off sink tokens and gives it to the rest of the picture, where a head looks at the picture", "visual-attention-sink", PictureEdits.Redistribution),
        new("informed", "informed:alpha=0.7,beta=0.4,local=0.25,spatial=0,tokens=informed,from=2,to=32", "raises the scores of the patches that the encoder finds informative; tokens=all: of all patches by alpha", "imbalanced-attention", PictureEdits.Informed),
    ];

    /// <summary>Reads an edit.</summary>
    /// <param name="text">For example <c>heads:scale=0.1/2.3,by=0</c>.</param>
    /// <returns>What puts it into a model until the result is disposed; it throws <see cref="ArgumentException"/> where the model lacks what the edit names.</returns>
    /// <exception cref="ArgumentException">There is no such edit, or an option is wrong.</exception>
    public static Func<EditTarget, IDisposable> Parse(string text)
    {
        var specification = Specification.Parse(text);
        var edit = All.FirstOrDefault(edit => edit.Name == specification.Name)
            ?? throw new ArgumentException($"There is no edit '{specification.Name}'; there are: {string.Join(", ", All.Select(known => known.Name))}.");
        var apply = edit.Create(specification);
        specification.RefuseUnread();
        return apply;
    }

    /// <summary>Heads written <c>layer.head</c> with / between them, <c>*</c> for every head of a layer or every layer: <c>2.0/2.3</c>, <c>3.*</c>, <c>*.0</c>.</summary>
    /// <param name="specification">The edit.</param>
    /// <param name="option">The option that lists them.</param>
    /// <param name="fallback">What it is where it is not given.</param>
    /// <exception cref="ArgumentException">The option is no such list.</exception>
    internal static Func<EditTarget, IReadOnlyList<(int Layer, int Head)>> Heads(Specification specification, string option, string fallback)
    {
        var text = specification.Text(option) ?? fallback;
        var parts = text.Split('/').Select(part => part.Split('.')).ToArray();
        static bool IsPlace(string place) => place == "*" || int.TryParse(place, NumberStyles.None, CultureInfo.InvariantCulture, out _);
        if (!parts.All(part => part.Length == 2 && part.All(IsPlace)))
        {
            throw new ArgumentException($"{option} of '{specification.Name}' lists heads as layer.head with / between them, * for all, for example 2.0/2.3 or 3.*, not '{text}'.");
        }

        return target =>
        {
            IEnumerable<int> Places(string place, int count, string what)
            {
                var number = place == "*" ? 0 : int.Parse(place, CultureInfo.InvariantCulture);
                return place == "*" ? Enumerable.Range(0, count)
                    : number < count ? [number]
                    : throw new ArgumentException($"{option} of '{specification.Name}' names {what} {number}, and the model's {what}s are 0 to {count - 1}.");
            }

            return [.. parts.SelectMany(part => Places(part[0], target.Layers, "layer").SelectMany(layer => Places(part[1], target.Heads, "head").Select(head => (layer, head)))).Distinct()];
        };
    }

    private static Func<EditTarget, IDisposable> ScaledHeads(Specification specification)
    {
        var heads = Heads(specification, "scale", "*.*");
        var factor = specification.Number("by", 0);
        return target => target.Hooks.Install(new HeadScaling(heads(target).Select(head => new HeadFactor(head.Layer, head.Head, factor))));
    }
}
