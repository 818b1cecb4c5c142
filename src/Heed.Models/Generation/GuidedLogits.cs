using Heed.Edits;
using Heed.Models.Decoders;
using static TorchSharp.torch;

namespace Heed.Models.Generation;

/// <summary>Guidance of a generation by what its prompt has beyond another one (<see cref="VisualGuidance"/>): the same text without the picture, read by the same model without any hook, with a cache of its own. Twice the work a token.</summary>
public sealed class GuidedLogits : ILogitsCombiner, IDisposable
{
    private readonly Decoder _model;
    private readonly long[] _without;
    private readonly double _gamma;
    private readonly double _cutoff;
    private KeyValueCache? _cache;

    /// <summary>Initializes guidance.</summary>
    /// <param name="model">The decoder.</param>
    /// <param name="without">The prompt's tokens without what guides, at least one.</param>
    /// <param name="gamma">The strength, finite; 1 leaves the logits as they are but for the cutoff.</param>
    /// <param name="cutoff">Tokens with less than this share of the likeliest one's probability are out; above 0 and at most 1.</param>
    /// <exception cref="ArgumentException">There is no token, or a number is out of range.</exception>
    public GuidedLogits(Decoder model, IReadOnlyList<long> without, double gamma = VisualGuidance.DefaultGamma, double cutoff = VisualGuidance.DefaultCutoff)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(without);
        if (without.Count == 0)
        {
            throw new ArgumentException("Guidance needs a text without the picture: give at least one token.", nameof(without));
        }

        if (!double.IsFinite(gamma) || !(cutoff > 0 && cutoff <= 1))
        {
            throw new ArgumentException($"The strength of guidance is a finite number and its cutoff above 0 and at most 1, not {gamma} and {cutoff}.", nameof(gamma));
        }

        (_model, _without, _gamma, _cutoff) = (model, [.. without], gamma, cutoff);
    }

    /// <inheritdoc/>
    public Tensor Combine(Tensor logits, IReadOnlyList<int> generated)
    {
        ArgumentNullException.ThrowIfNull(logits);
        ArgumentNullException.ThrowIfNull(generated);
        using var scope = NewDisposeScope();
        if (generated.Count == 0)
        {
            _cache?.Dispose();
            _cache = _model.CreateCache(logits.dtype);
        }

        using var unedited = _model.Hooks.Suspend();
        var next = tensor(generated.Count == 0 ? _without : [generated[^1]], dtype: int64).unsqueeze(0);
        var without = _model.forward(next, _cache ?? throw new InvalidOperationException("Guidance begins with the first token of a generation."), lastOnly: true);
        return VisualGuidance.Combine(logits, without, _gamma, _cutoff).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void Dispose() => _cache?.Dispose();
}
