namespace Heed.Kernels;

/// <summary>
/// Attention of a few queries over many keys: every key and value is read once, for all the query rows of its group, straight from the cache's own element type.
/// The keys are split into chunks that threads take as they come; the chunks' partial results are merged by their log-sum-exps in the order of the keys. How the keys are split
/// depends on the problem alone, so that the results are the same bits for any number of threads.
/// </summary>
/// <remarks>Handles softmax with causality, alignment, window, lengths, softcap, sinks, ALiBi, dense and per-key biases and grouped heads. Block masks, predicates, modifiers,
/// packed sequences, low-rank biases, other normalisers and row statistics are left to the tiled kernel.</remarks>
internal static unsafe class DecodingAttention
{
    /// <summary>Most queries of a call that counts as decoding.</summary>
    public const int MostQueries = 16;

    // Over a short cache many queries are better off with packed keys: the tiled kernel measures faster there, and slower everywhere else up to MostQueries.
    private const int MostQueriesOverFewKeys = 8;
    private const int FewKeys = 1024;

    /// <summary>Computes a problem, its output checked too, if it is one of decoding.</summary>
    /// <returns>False, with nothing done, when the call is for the tiled kernel.</returns>
    public static bool TryForward<TScore, TMask>(CheckedProblem problem)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        if (typeof(TScore) != typeof(UnmodifiedScore) || typeof(TMask) != typeof(AllPairs) || !Fits(problem.Arguments))
        {
            return false;
        }

        DecodingLoop.Compute(problem);
        return true;
    }

    private static bool Fits(in AttentionArguments a) =>
        a.Query.Length > 0 && a.Query.Length <= (a.Key.Length < FewKeys ? MostQueriesOverFewKeys : MostQueries)
        && a.Query.Batch > 0 && a.Query.Heads > 0 && a.Key.Length > 0 && a.Query.Width > 0 && a.Value.Width > 0
        && a.Normalizer == Normalizer.Softmax
        && a.BlockMask is null && a.KeyRuns is null && a.QueryOffsets == null && !a.LowRankQuery.IsGiven && !a.Statistics.Any;
}
