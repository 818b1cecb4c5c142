using Heed.Kernels;

namespace Heed.Masks;

/// <summary>Lets a mixture of blocks (MoBA; VMoBA, arXiv 2506.23858) choose the pairs of a call. In causal calls, top-k per query among the own block and complete blocks before it, as the authors use it without training.</summary>
public sealed class MixtureOfBlocksSelector : AttentionSelector
{
    private readonly MixtureOfBlocksOptions _options;

    /// <summary>Initializes the selector.</summary>
    /// <param name="options">Block size and selection; for causal calls top-k per query.</param>
    /// <exception cref="ArgumentException">A value is out of its range.</exception>
    public MixtureOfBlocksSelector(MixtureOfBlocksOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        _options = options;
    }

    // Blocks of the mask that lie within blocks of the selection can be left out with them.
    private int KeyBlock => Array.Find([64, 32, 16], size => _options.BlockSize % size == 0) is var fitting && fitting > 0 ? fitting : BlockMasks.DefaultBlock;

    /// <inheritdoc/>
    public override void Apply(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        var options = call.Options;
        if (options.BlockMask is not null || options.QueryLengths is not null || options.KeyLengths is not null || options.KeyOffsets is not null)
        {
            throw new ArgumentException(
                $"A mixture of blocks cannot be combined with {nameof(AttentionOptions)}.{(options.BlockMask is not null ? nameof(options.BlockMask) : options.KeyOffsets is not null ? nameof(options.KeyOffsets) : "lengths")}: "
                + "it lists blocks of its own, over all keys. Give a boolean mask, or sequences packed by QueryOffsets.", nameof(call));
        }

        if (options.Causal == Causality.None)
        {
            using var selection = MixtureOfBlocks.Select(call.Query, call.Key, _options, options.QueryOffsets is null ? null : SmallIntegers.Read(options.QueryOffsets));
            call.Options = options with { BlockMask = selection.ToBlockMask(keyBlock: KeyBlock) };
            return;
        }

        if (options.QueryOffsets is not null || (options.Causal == Causality.AlignedToStart && call.Query.shape[2] != call.Key.shape[2]))
        {
            throw new ArgumentException(
                "A causal mixture of blocks takes one sequence per batch item with its queries aligned to the last keys; packed sequences or queries aligned to the first keys were given.", nameof(call));
        }

        using var past = MixtureOfBlocks.SelectCausal(call.Query, call.Key, _options);
        call.Options = options with { BlockMask = past.ToBlockMask(keyBlock: KeyBlock) };
    }
}
