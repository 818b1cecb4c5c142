using System.Globalization;
using Heed.Edits;
using Heed.Lab.Inspection;
using Heed.Models.VisionLanguage;

namespace Heed.Lab.Mechanisms;

/// <summary>The edits that need a picture among the tokens.</summary>
internal static class PictureEdits
{
    public static Func<EditTarget, IDisposable> Redistribution(Specification specification)
    {
        var (rho, image) = (specification.Number("rho", VisualAttentionRedistribution.DefaultRho), specification.Number("image", VisualAttentionRedistribution.DefaultImageAttention));
        var keep = specification.Number("keep", VisualAttentionRedistribution.DefaultSinkScale);
        var layers = LayersOf(specification, int.MaxValue);
        var threshold = specification.Number("threshold", 0);
        var dimensions = specification.Text("dims") is { } text
            ? text.Split('/').Select(part => long.TryParse(part, NumberStyles.None, CultureInfo.InvariantCulture, out var dimension) ? dimension
                : throw new ArgumentException($"dims of 'var' lists hidden dimensions with / between them, for example 2533/1415, not '{text}'.")).ToArray()
            : null;
        return target =>
        {
            var model = ModelOf(target, "var");
            var width = model.Configuration.Text.HiddenSize;
            if (dimensions is not null && dimensions.Any(dimension => dimension >= width))
            {
                throw new ArgumentException($"dims of 'var' names dimension {dimensions.Max()}, and the model's are 0 to {width - 1}.");
            }

            if (dimensions is null && model.Configuration.Text.BeginTokenId is null)
            {
                throw new ArgumentException("The edit 'var' tells the sink dimensions by the token that begins texts, and this model has none: name them, for example dims=2533/1415.");
            }

            var edit = new RedistributionEdit(dimensions ?? AnswerInspector.SinkDimensionsOf(model), threshold > 0 ? threshold : null, rho, image, keep, layers) { Materialize = target.Materialize };
            return edit.InstallOn(target.Hooks);
        };
    }

    public static Func<EditTarget, IDisposable> Informed(Specification specification)
    {
        var (alpha, beta) = (specification.Number("alpha", InformedTokenEdit.DefaultAlpha), specification.Number("beta", InformedTokenEdit.DefaultBeta));
        var (local, spatial) = (specification.Number("local", InformedTokens.DefaultLocalRatio), specification.Number("spatial", 0));
        var all = specification.Choice("tokens", false, ("informed", false), ("all", true));
        var layers = LayersOf(specification, 32);
        return target =>
        {
            var model = ModelOf(target, "informed");
            if (all)
            {
                return target.Hooks.Install(new InformedTokenEdit([InformedTokenSelection.AllOf(model)], alpha, beta, layers) { Materialize = target.Materialize });
            }

            var edit = new InformedTokenEdit([new([], [])], alpha, beta, layers) { Materialize = target.Materialize };
            return new Both(InformedTokenSelection.Install(model, edit, local, spatial), target.Hooks.Install(edit));
        };
    }

    private static Range LayersOf(Specification specification, int end)
    {
        var (from, to) = (specification.Integer("from", 2, 0), specification.Integer("to", end, 1));
        return from < to ? from..to : throw new ArgumentException($"The layers of '{specification.Name}' go from a first to before a later one, not from {from} to {to}.");
    }

    private static VisionLanguageModel ModelOf(EditTarget target, string name) => target.Pictures
        ?? throw new ArgumentException($"The edit '{name}' acts on a picture's tokens among those of a text, and this model reads no such thing: use a vision-language model (heed train captions) with --image.");

    private sealed class Both(IDisposable first, IDisposable second) : IDisposable
    {
        public void Dispose()
        {
            second.Dispose();
            first.Dispose();
        }
    }
}
