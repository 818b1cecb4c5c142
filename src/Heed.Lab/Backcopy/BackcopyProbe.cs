using Heed.Models.Texts;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Backcopy;

/// <summary>What a forward pass did in a layer, with the first token as the sink (arXiv 2410.13835, section 2). The tensors are the probe's.</summary>
/// <param name="Index">The layer.</param>
internal sealed record BackcopyLayer(int Index)
{
    /// <summary>Scores <c>[B, H, N, N]</c>; null where the layer has no attention.</summary>
    public Tensor? Scores { get; set; }

    /// <summary>Weights <c>[B, H, N, N]</c>.</summary>
    public Tensor? Weights { get; set; }

    /// <summary>Values <c>[B, H, N, D]</c>.</summary>
    public Tensor? Values { get; set; }

    /// <summary>The residual stream after the layer, <c>[B, N, C]</c>.</summary>
    public Tensor Residual { get; set; } = null!;

    /// <summary>Mean weight on the first token over chosen queries (boolean <c>[B, N]</c>), <c>[H]</c>.</summary>
    public Tensor SinkAttention(Tensor queries)
    {
        using var mass = Weights!.select(-1, 0);
        return ExtremeTokens.SinkAttention(mass, queries);
    }

    /// <summary>Norm of the value of every token, before or behind the output projection, <c>[B, H, N]</c>.</summary>
    public Tensor ValueNorm(Tensor? outputWeight = null) => ExtremeTokens.ValueNorm(Values!, outputWeight);

    /// <summary>Norm of the residual stream, <c>[B, N]</c>.</summary>
    public Tensor ResidualNorm() => Residual.norm(-1);

    /// <summary>By how much the score of the first token exceeds the mean score of the others before the query, <c>[B, H, N]</c>; 0 for queries 0 and 1, which have no others.</summary>
    public Tensor SinkLogitGap() => ExtremeTokens.SinkLogitGap(Scores!);
}

/// <summary>Keeps scores, weights, values and residuals of a small model's last forward pass while it is installed. Shows what other hooks left of them, where those were installed before.</summary>
internal sealed class BackcopyProbe : AttentionHook, IDisposable
{
    private readonly SortedDictionary<int, BackcopyLayer> _layers = [];
    private readonly List<IDisposable> _installed;

    public BackcopyProbe(LanguageModel model) => _installed = [model.Hooks.Install(this), model.Hooks.Install(new Stream(this))];

    /// <summary>The layers.</summary>
    public IReadOnlyCollection<BackcopyLayer> Layers => _layers.Values;

    /// <summary>The residual stream before the first layer, <c>[B, N, C]</c>.</summary>
    public Tensor? Embedded { get; private set; }

    public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Inputs | AttentionStages.Scores | AttentionStages.Weights;

    public override void OnInputs(AttentionCall call)
    {
        var layer = At(call.Site.Layer);
        layer.Values?.Dispose();
        layer.Values = Kept(call.Value);
    }

    public override Tensor OnScores(AttentionCall call, Tensor scores)
    {
        var layer = At(call.Site.Layer);
        layer.Scores?.Dispose();
        layer.Scores = Kept(scores);
        return scores;
    }

    public override Tensor OnWeights(AttentionCall call, Tensor weights)
    {
        var layer = At(call.Site.Layer);
        layer.Weights?.Dispose();
        layer.Weights = Kept(weights);
        return weights;
    }

    public void Dispose()
    {
        _installed.ForEach(hook => hook.Dispose());
        foreach (var layer in _layers.Values)
        {
            foreach (var kept in new[] { layer.Scores, layer.Weights, layer.Values, layer.Residual })
            {
                kept?.Dispose();
            }
        }

        Embedded?.Dispose();
        _layers.Clear();
    }

    private static Tensor Kept(Tensor tensor) => tensor.detach().DetachFromDisposeScope();

    private BackcopyLayer At(int layer) => _layers.TryGetValue(layer, out var found) ? found : _layers[layer] = new(layer);

    private sealed class Stream(BackcopyProbe probe) : StreamHook
    {
        public override bool ActsAt(StreamSite site) => site.Point == StreamPoint.BlockOutput || site is { Point: StreamPoint.BlockInput, Layer: 0 };

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            if (site.Point == StreamPoint.BlockInput)
            {
                probe.Embedded?.Dispose();
                probe.Embedded = Kept(states);
                return states;
            }

            var layer = probe.At(site.Layer);
            layer.Residual?.Dispose();
            layer.Residual = Kept(states);
            return states;
        }
    }
}
