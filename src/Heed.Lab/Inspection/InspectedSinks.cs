using Heed.Probes;

namespace Heed.Lab.Inspection;

/// <summary>A token whose residual stream is that of a sink at some layers.</summary>
/// <param name="Token">Its position.</param>
/// <param name="Label">What it is, by slack and noise in proportion to the model's depth.</param>
/// <param name="Creation">The first layer.</param>
/// <param name="Lifetime">Number of layers.</param>
/// <param name="Layers">The layers.</param>
/// <param name="Received">Attention received (see <see cref="SinkScore"/>), mean over the heads of the layer where it is largest.</param>
public sealed record InspectedSink(int Token, SinkLabel Label, int Creation, int Lifetime, IReadOnlyList<int> Layers, double Received);

/// <summary>The sinks of a text (arXiv 2512.22213).</summary>
/// <param name="Primary">The primary sink's position.</param>
/// <param name="Start">The first layer that was looked at.</param>
/// <param name="End">The layer after the last.</param>
/// <param name="PrimarySlack">A sink is primary that lives for all layers but so many.</param>
/// <param name="NoiseLifetime">A sink that lives for at most so many layers is noise.</param>
/// <param name="CosineThreshold">The threshold of the cosine with the primary.</param>
/// <param name="Tokens">Every token that is a sink at some layer, in order.</param>
public sealed record InspectedSinks(int Primary, int Start, int End, int PrimarySlack, int NoiseLifetime, double CosineThreshold, IReadOnlyList<InspectedSink> Tokens)
{
    /// <summary>Reads a map.</summary>
    /// <param name="map">The sinks, layer by layer.</param>
    /// <param name="options">How they were found.</param>
    /// <param name="received">Attention received by a token at a layer, mean over heads.</param>
    public static InspectedSinks Of(SinkMap map, SinkDetectorOptions options, Func<int, int, double> received)
    {
        ArgumentNullException.ThrowIfNull(map);
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(received);
        var labels = map.LabelInProportion();
        return new(map.Primary, map.Start, map.End, SinkMap.SlackFor(map.Depth), SinkMap.NoiseFor(map.Depth), options.CosineThreshold,
        [
            .. from token in Enumerable.Range(0, map.Tokens)
               where map.Lifetime[token] > 0
               let layers = Enumerable.Range(0, map.Depth).Where(layer => map[layer, token]).ToArray()
               select new InspectedSink(token, labels[token], map.Creation[token], map.Lifetime[token], layers, Enumerable.Range(0, map.Depth).Max(layer => received(layer, token))),
        ]);
    }
}

/// <summary>Norms in a layer: of the first token beside the others (arXiv 2410.13835).</summary>
/// <param name="Layer">The layer.</param>
/// <param name="Residual">The residual stream behind the block.</param>
/// <param name="SinkValueNorm">Norm of the first token's value, mean over key/value heads.</param>
/// <param name="OthersValueNorm">Mean norm of the others' values.</param>
/// <param name="SinkLogitGap">Mean over heads and queries of the score on the first token less the mean score on the tokens between; null where scores are more than products.</param>
public sealed record InspectedLayer(int Layer, ResidualPeak Residual, double SinkValueNorm, double OthersValueNorm, double? SinkLogitGap);
