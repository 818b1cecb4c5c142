using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>How sinks are looked for in the residual streams of a model.</summary>
public sealed record SinkDetectorOptions
{
    /// <summary>A token is a sink at a layer where its absolute cosine with the primary sink exceeds this.</summary>
    public double CosineThreshold { get; init; } = 0.9;

    /// <summary>Whether only the layers of the primary sink's window are looked at; otherwise all.</summary>
    public bool ClipToPrimary { get; init; } = true;

    /// <summary>Whether candidates before the primary sink are looked at like the tokens after it. The authors' code skips them, their published files list them.</summary>
    public bool TestCandidates { get; init; }
}

/// <summary>Finds primary and secondary attention sinks in hidden states (arXiv 2512.22213): the primary sink is the candidate (normally the begin token) with the longest residual stream; a later token is a sink at the
/// layers where its residual stream is (anti-)parallel to the primary's.</summary>
/// <remarks>The mechanism behind it: in a middle layer a perceptron writes one large vector into the stream of a token without meaning. A later token becomes a sink by the same vector, which then fades.
/// Computed in float64. Left out: the search for directions by principal components; see <c>StreamHook</c> for the perceptron's stages that it reads.</remarks>
public static class SinkDetector
{
    /// <summary>The usual candidates of a model without chat template: the first two tokens.</summary>
    public static IReadOnlyList<int> Candidates { get; } = [0, 1];

    /// <summary>Finds the sinks of one sequence.</summary>
    /// <param name="hiddenStates">The residual stream after every block, <c>[L, N, D]</c>, the embeddings left out.</param>
    /// <param name="candidates">Positions of which one is the primary sink; null: <see cref="Candidates"/>. With a chat template: 0, 1, 2.</param>
    /// <param name="options">How; null: the defaults.</param>
    /// <exception cref="ArgumentException">The shape is another, there are fewer than two layers, no candidate or one that is not before the last token, or the threshold is not between 0 and 1.</exception>
    public static SinkMap Detect(Tensor hiddenStates, IReadOnlyList<int>? candidates = null, SinkDetectorOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(hiddenStates);
        if (hiddenStates.dim() != 3)
        {
            throw new ArgumentException($"The residual streams of one sequence must be [layers, tokens, width], not [{string.Join(", ", hiddenStates.shape)}].", nameof(hiddenStates));
        }

        return Detect([.. Enumerable.Range(0, (int)hiddenStates.shape[0])], layer => hiddenStates[layer], (int)hiddenStates.shape[1], candidates ?? Candidates, options ?? new());
    }

    /// <summary>Finds the sinks of one sequence, layer by layer, without stacking them.</summary>
    /// <param name="hiddenStates">The residual stream after every block, <c>[N, D]</c> each.</param>
    /// <param name="candidates">Positions of which one is the primary sink; null: <see cref="Candidates"/>.</param>
    /// <param name="options">How; null: the defaults.</param>
    /// <exception cref="ArgumentException">As for the other form.</exception>
    public static SinkMap Detect(IReadOnlyList<Tensor> hiddenStates, IReadOnlyList<int>? candidates = null, SinkDetectorOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(hiddenStates);
        if (hiddenStates.FirstOrDefault(states => states.dim() != 2 || !states.shape.SequenceEqual(hiddenStates[0].shape)) is { } other)
        {
            throw new ArgumentException($"The residual stream of every layer must be [tokens, width], the same for all, not [{string.Join(", ", other.shape)}].", nameof(hiddenStates));
        }

        return Detect(hiddenStates, states => states.alias(), hiddenStates.Count == 0 ? 0 : (int)hiddenStates[0].shape[0], candidates ?? Candidates, options ?? new());
    }

    /// <summary>What remains to be done once the norms of all tokens and their cosines with every candidate are known (as <see cref="ResidualProbe"/> gathers them).</summary>
    /// <param name="norms">Norms, by layer and token.</param>
    /// <param name="cosines">Cosines, by layer, candidate and token.</param>
    /// <param name="candidates">Positions of the candidates.</param>
    /// <param name="options">How.</param>
    internal static SinkMap Detect(double[][] norms, double[][][] cosines, IReadOnlyList<int> candidates, SinkDetectorOptions options)
    {
        var (layers, tokens) = (norms.Length, norms.Length == 0 ? 0 : norms[0].Length);
        Check(layers, tokens, candidates, options);
        var chosen = Enumerable.Range(0, candidates.Count).MaxBy(index => norms.Average(layer => layer[candidates[index]]));
        var primary = candidates[chosen];
        var (start, end) = options.ClipToPrimary ? Window([.. norms.Select(layer => layer[primary])]) : (0, layers);
        var map = new bool[layers, tokens];
        for (var layer = start; layer < end; layer++)
        {
            for (var token = 0; token < tokens; token++)
            {
                map[layer, token] = token == primary
                    || ((token > primary || (options.TestCandidates && candidates.Contains(token))) && Math.Abs(cosines[layer][chosen][token]) > options.CosineThreshold);
            }
        }

        return new(primary, start, end, map);
    }

    private static SinkMap Detect<T>(IReadOnlyList<T> layers, Func<T, Tensor> statesOf, int tokens, IReadOnlyList<int> candidates, SinkDetectorOptions options)
    {
        Check(layers.Count, tokens, candidates, options);
        using var still = no_grad();
        var (norms, cosines) = (new double[layers.Count][], new double[layers.Count][][]);
        for (var layer = 0; layer < layers.Count; layer++)
        {
            using var scope = NewDisposeScope();
            var states = statesOf(layers[layer]).to(float64);
            (norms[layer], cosines[layer]) = Describe(states, candidates);
        }

        return Detect(norms, cosines, candidates, options);
    }

    /// <summary>Norms of all tokens and their cosines with every candidate.</summary>
    /// <param name="states"><c>[N, D]</c>.</param>
    /// <param name="candidates">Positions; those past the end give zeros.</param>
    internal static (double[] Norms, double[][] Cosines) Describe(Tensor states, IReadOnlyList<int> candidates)
    {
        var tokens = states.shape[0];
        return (Values(SinkMask.Norm(states)), [.. candidates.Select(candidate => candidate < tokens ? Values(SinkMask.Cosine(states, states.narrow(0, candidate, 1))) : new double[tokens])]);
    }

    private static double[] Values(Tensor tensor) => tensor.to(float64).cpu().contiguous().data<double>().ToArray();

    private static void Check(int layers, int tokens, IReadOnlyList<int> candidates, SinkDetectorOptions options)
    {
        if (layers < 2)
        {
            throw new ArgumentException($"Sinks are looked for in at least 2 layers, not {layers}.", nameof(layers));
        }

        if (candidates.Count == 0 || candidates.Any(candidate => candidate < 0 || candidate >= tokens))
        {
            throw new ArgumentException($"Candidates for the primary sink are at least one of the tokens 0 to {tokens - 1}, not {(candidates.Count == 0 ? "none" : string.Join(", ", candidates))}.", nameof(candidates));
        }

        if (options.CosineThreshold is not (>= 0 and < 1))
        {
            throw new ArgumentException($"The cosine's threshold lies from 0 to below 1, not at {options.CosineThreshold}.", nameof(options));
        }
    }

    private static (int Start, int End) Window(double[] norms)
    {
        var steps = norms.Skip(1).Zip(norms, (after, before) => after - before).ToArray();
        var start = Enumerable.Range(0, steps.Length).MaxBy(layer => steps[layer]) + 1;
        // A stream that grows most in the last block is nowhere taken back.
        return (start, start == steps.Length ? norms.Length : Enumerable.Range(start, steps.Length - start).MinBy(layer => steps[layer]) + 1);
    }
}
