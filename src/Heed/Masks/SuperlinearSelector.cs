using Heed.Kernels;

namespace Heed.Masks;

/// <summary>
/// The keys of superlinear attention (arXiv 2601.18401) for a model that was not trained with it: window and spans of every query, searched with the attention's own queries, in one softmax.
/// </summary>
/// <remarks>This is not the paper's mechanism, which trains a projection of its own for the search and mixes a softmax per span by the anchors' scores (the module <c>SuperlinearAttention</c>); it shows which keys such a search
/// finds, and what they are worth without training. For causal calls of whole sequences and of decoding steps.</remarks>
public sealed class SuperlinearSelector : AttentionSelector
{
    private readonly SuperlinearOptions _options;

    /// <summary>Initializes the selector.</summary>
    /// <param name="options">The options; null: the defaults. Without a window (<see cref="SuperlinearOptions.SwIndex"/> 0) a query may not see itself.</param>
    /// <exception cref="ArgumentException">An option is out of its range.</exception>
    public SuperlinearSelector(SuperlinearOptions? options = null)
    {
        _options = options ?? new();
        _options.Validate();
    }

    /// <summary>The options.</summary>
    public SuperlinearOptions Options => _options;

    /// <inheritdoc/>
    public override void Apply(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        var (query, key, options) = (call.Query, call.Key, call.Options);
        var (queries, keys) = (query.size(2), key.size(2));
        if (options.Causal == Causality.None || (options.Causal == Causality.AlignedToStart && queries != keys) || queries > keys)
        {
            throw new ArgumentException(
                $"A span search looks back: it needs a causal call, the last query aligned with the last key, not {queries} queries over {keys} keys with {nameof(AttentionOptions.Causal)}.{options.Causal}.");
        }

        if (options.QueryOffsets is not null || options.QueryLengths is not null || options.KeyLengths is not null)
        {
            throw new ArgumentException("A span search by a selector takes sequences of one length, not packed or shortened ones: run them one by one.");
        }

        if (options.BlockMask is not null || options.KeyRuns is not null)
        {
            throw new ArgumentException(
                $"A span search chooses the pairs itself: it cannot be combined with {nameof(AttentionOptions)}.{(options.KeyRuns is null ? nameof(AttentionOptions.BlockMask) : nameof(AttentionOptions.KeyRuns))}.");
        }

        if (query.numel() == 0)
        {
            return;
        }

        var positions = new long[queries];
        var window = new (long, long)[queries];
        for (var i = 0; i < queries; i++)
        {
            positions[i] = keys - queries + i;
            window[i] = (Math.Max(0, positions[i] - (_options.Window - 1)), _options.Window == 0 ? -1 : positions[i]);
        }

        call.Options = options with { KeyRuns = SpanSearch.Select(query, key, positions, _options, padding: null).Union(window) };
    }
}
