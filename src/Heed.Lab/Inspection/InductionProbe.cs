using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>
/// Measures prefix matching (arXiv 2209.11895): on random tokens said twice, how much of each row's mass in the second saying goes to the token that followed the same token
/// in the first. A head scores by what it does, not by words that natural text happens to repeat.
/// </summary>
/// <param name="first">Index of the first random token.</param>
/// <param name="length">Random tokens in one saying.</param>
internal sealed class InductionProbe(int first, int length) : AttentionHook
{
    /// <summary>Mean mass of each head, by layer.</summary>
    public Dictionary<int, float[]> Scores { get; } = [];

    /// <summary>Random tokens said twice: distinct ones where the vocabulary has enough.</summary>
    /// <param name="vocabulary">Number of token ids.</param>
    /// <param name="special">Ids that are not said.</param>
    /// <param name="begin">Put first where there is one.</param>
    /// <param name="length">Random tokens in one saying.</param>
    /// <param name="seed">Seed.</param>
    public static long[] Sequence(int vocabulary, IReadOnlySet<int> special, int? begin, int length, int seed)
    {
        var ids = Enumerable.Range(0, vocabulary).Where(id => !special.Contains(id)).ToArray();
        if (ids.Length == 0)
        {
            throw new ArgumentException("The vocabulary has no token that is not special.");
        }

#pragma warning disable CA5394 // Repeatable random tokens are the purpose; nothing is secret.
        new Random(seed).Shuffle(ids);
#pragma warning restore CA5394
        var said = Enumerable.Range(0, length).Select(i => (long)ids[i % ids.Length]);
        return [.. begin is { } id ? [id] : Array.Empty<long>(), .. said, .. said];
    }

    public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Map;

    public override void OnMap(AttentionCall call)
    {
        using var still = no_grad();
        using var scope = NewDisposeScope();
        // The last token has no follower within the first saying.
        var rows = Enumerable.Range(0, length - 1).Select(i => (long)first + length + i).ToArray();
        var keys = tensor(Enumerable.Range(0, length - 1).Select(i => (long)first + i + 1).ToArray(), device: call.Query.device);
        var weights = call.Weights(null, rows)[0];
        var hit = weights.gather(2, keys.view(1, -1, 1).expand(weights.shape[0], -1, 1)).mean([1, 2]);
        Scores[call.Site.Layer] = hit.to(ScalarType.Float32).cpu().data<float>().ToArray();
    }
}
