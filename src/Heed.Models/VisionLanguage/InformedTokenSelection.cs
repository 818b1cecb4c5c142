using Heed.Edits;
using static TorchSharp.torch;

namespace Heed.Models.VisionLanguage;

/// <summary>Chooses the informed tokens of every picture while the encoder reads it (arXiv 2501.12206) and hands them to an <see cref="InformedTokenEdit"/> of the decoder: from then on the edit knows what it boosts.</summary>
public sealed class InformedTokenSelection : AttentionHook
{
    private readonly InformedTokenEdit _edit;
    private readonly double _localRatio;
    private readonly double _spatialRatio;
    private readonly double _outlierFactor;
    private readonly int _late;

    // Where the decoder reads the class token, too, it stands before the patches.
    private readonly int _firstPatch;
    private Tensor? _first;

    private InformedTokenSelection(InformedTokenEdit edit, int late, int firstPatch, double localRatio, double spatialRatio, double outlierFactor) =>
        (_edit, _late, _firstPatch, _localRatio, _spatialRatio, _outlierFactor) = (edit, late, firstPatch, localRatio, spatialRatio, outlierFactor);

    /// <summary>Watches the encoder until the returned scope is disposed. The edit itself is installed on the decoder's hooks by the caller.</summary>
    /// <param name="model">The model.</param>
    /// <param name="edit">Receives the tokens of each picture (of a batch: one set for each).</param>
    /// <param name="localRatio">The share of patches that are local.</param>
    /// <param name="spatialRatio">The share of patches that are added because they receive most attention.</param>
    /// <param name="outlierFactor">The factor of the box-plot rule.</param>
    /// <exception cref="ArgumentException">The encoder has fewer than two layers, or its features are taken before the last layer but one, so that the summary tokens are not known.</exception>
    public static IDisposable Install(
        VisionLanguageModel model, InformedTokenEdit edit, double localRatio = InformedTokens.DefaultLocalRatio, double spatialRatio = 0, double outlierFactor = InformedTokens.DefaultOutlierFactor)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(edit);
        var late = model.Vision.Configuration.Layers - 2;
        if (late < 0 || model.Vision.LayersUntil(model.Configuration.FeatureLayer) <= late)
        {
            throw new ArgumentException(
                $"Summary tokens are told from the encoder's last layer but one, which features of layer {model.Configuration.FeatureLayer} of {model.Vision.Configuration.Layers} do not run.", nameof(model));
        }

        var selection = new InformedTokenSelection(edit, late, model.Configuration.KeepClassToken ? 1 : 0, localRatio, spatialRatio, outlierFactor);
        return new Watch(selection, model.Vision.Hooks.Install(selection));
    }

    /// <summary>All patches of a picture as local tokens: uniform boosting (PAI).</summary>
    /// <param name="model">The model.</param>
    public static InformedTokens AllOf(VisionLanguageModel model)
    {
        ArgumentNullException.ThrowIfNull(model);
        return new([.. Enumerable.Range(0, model.Configuration.ImageTokens).Select(token => (long)token)], []);
    }

    /// <inheritdoc/>
    public override AttentionStages StagesAt(AttentionSite site) => site.Layer == 0 || site.Layer == _late ? AttentionStages.Map : AttentionStages.None;

    /// <inheritdoc/>
    public override void OnMap(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var map = call.Weights(null).detach();
        if (call.Site.Layer == 0)
        {
            _first?.Dispose();
            _first = map.alias().DetachFromDisposeScope();
        }

        if (call.Site.Layer == _late && _first is { } first && first.shape.AsSpan().SequenceEqual(map.shape))
        {
            _edit.Tokens = [.. Enumerable.Range(0, (int)map.shape[0]).Select(row => AsImageTokens(InformedTokens.Select(first[row], map[row], _localRatio, _spatialRatio, _outlierFactor)))];
        }
    }

    private InformedTokens AsImageTokens(InformedTokens patches) => new([.. patches.Local.Select(patch => patch + _firstPatch)], [.. patches.Summary.Select(patch => patch + _firstPatch)]);

    private sealed class Watch(InformedTokenSelection selection, IDisposable installed) : IDisposable
    {
        public void Dispose()
        {
            installed.Dispose();
            selection._first?.Dispose();
            selection._first = null;
        }
    }
}
