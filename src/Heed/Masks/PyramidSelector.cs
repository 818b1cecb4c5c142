using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>How the importance of key blocks is estimated.</summary>
public enum PyramidImportance
{
    /// <summary>By the largest scores of a few sampled tokens (for generation, not causal).</summary>
    Sampled,

    /// <summary>By sums along antidiagonals of the score map (for understanding, causal).</summary>
    Antidiagonal,
}

/// <summary>Pyramid sparse attention's settings (PSA, arXiv 2512.04025). The defaults are those of the authors' plug-in for video generation.</summary>
public sealed record PyramidOptions
{
    /// <summary>Queries of a block, from 1.</summary>
    public int QueryBlock { get; init; } = 128;

    /// <summary>Keys of a block, a multiple of 8; with <see cref="PyramidImportance.Antidiagonal"/> the same as <see cref="QueryBlock"/>.</summary>
    public int KeyBlock { get; init; } = 64;

    /// <summary>The levels and their ranges.</summary>
    public IReadOnlyList<PyramidLevel> Levels { get; init; } = [new(1, 0, 0.1), new(2, 0.1, 0.15), new(4, 0.15, 0.15), new(8, 0.15, 0.35), new(0, 0.35, 1)];

    /// <summary>What the ranges are shares of.</summary>
    public PyramidRanking Ranking { get; init; } = PyramidRanking.TopK;

    /// <summary>How importance is estimated.</summary>
    public PyramidImportance Importance { get; init; } = PyramidImportance.Sampled;

    /// <summary>Text tokens at the end of the sequence, read in full.</summary>
    public long TextLength { get; init; }

    /// <summary>Sampled importance: runs of pooled blocks are rounded to fill tiles of so many keys; a divisor of <see cref="KeyBlock"/>.</summary>
    public int Tile { get; init; } = 32;

    /// <summary>Sampled importance, cumulative: the least share of blocks read in full.</summary>
    public double MinFullRatio { get; init; } = 0.06;

    /// <summary>Sampled importance: seed of the sampled tokens.</summary>
    public int Seed { get; init; } = 1;

    /// <summary>Antidiagonal importance: tokens that one product stands for, a divisor of the block.</summary>
    public int Stride { get; init; } = 16;

    /// <summary>Antidiagonal importance: queries and keys are filled up to a multiple of this, itself a multiple of the block.</summary>
    public int Chunk { get; init; } = 4096;

    /// <summary>Whether blocks whose keys differ too much are read at a finer level.</summary>
    public bool UseSimilarity { get; init; }

    /// <summary>Mean cosine that level 2, 4 and 8 need.</summary>
    public (double Two, double Four, double Eight) SimilarityThresholds { get; init; } = (0.7, 0.65, 0.6);

    /// <summary>The authors' setting for Wan 2.1 with 14 billion parameters: cumulative 0.4, 0.5, 0.6, 0.8.</summary>
    public static PyramidOptions WanLarge { get; } = new()
    {
        KeyBlock = 128, Ranking = PyramidRanking.Cumulative, Levels = [new(1, 0, 0.4), new(2, 0.4, 0.5), new(4, 0.5, 0.6), new(8, 0.6, 0.8), new(0, 0.8, 1)],
    };

    /// <summary>The authors' setting for Wan 2.1 with 1.3 billion parameters: cumulative 0.5, 0.6, 0.7, 0.8, capped by similarity.</summary>
    public static PyramidOptions WanSmall { get; } = new()
    {
        KeyBlock = 128, Ranking = PyramidRanking.Cumulative, UseSimilarity = true, Levels = [new(1, 0, 0.5), new(2, 0.5, 0.6), new(4, 0.6, 0.7), new(8, 0.7, 0.8), new(0, 0.8, 1)],
    };

    /// <summary>The authors' setting for 4-step CogVideoX: top-k 0.05, 0.15, 0.25, 0.5.</summary>
    public static PyramidOptions CogVideo { get; } = new()
    {
        KeyBlock = 128, Levels = [new(1, 0, 0.05), new(2, 0.05, 0.15), new(4, 0.15, 0.25), new(8, 0.25, 0.5), new(0, 0.5, 1)],
    };

    /// <summary>The authors' setting for Qwen2.5-VL: antidiagonal importance, cumulative 0.7, 0.8, 0.9, capped by similarity, 512 text tokens at the end.</summary>
    public static PyramidOptions Understanding { get; } = new()
    {
        KeyBlock = 128, Ranking = PyramidRanking.Cumulative, Importance = PyramidImportance.Antidiagonal, Stride = 8, TextLength = 512, UseSimilarity = true,
        SimilarityThresholds = (0.75, 0.7, 0.7), Levels = [new(1, 0, 0.7), new(2, 0.7, 0.8), new(4, 0.8, 0.9), new(8, 0.9, 0.9), new(0, 0.9, 1)],
    };

    /// <summary>Refuses settings that do not fit together.</summary>
    /// <exception cref="ArgumentException">A value is out of its range, or two do not divide each other.</exception>
    public void Validate()
    {
        PyramidLevels.CheckLevels(Importance == PyramidImportance.Sampled ? PyramidLevels.Ordered(Levels, Ranking) : Levels);
        if (QueryBlock < 1 || KeyBlock < 8 || KeyBlock % 8 != 0)
        {
            throw new ArgumentException($"A query block holds at least 1 query, and a key block a multiple of 8 keys; {QueryBlock} and {KeyBlock} were given.", nameof(KeyBlock));
        }

        if (Importance == PyramidImportance.Sampled && (Tile < 1 || KeyBlock % Tile != 0))
        {
            throw new ArgumentException($"The tile divides the key block; a tile of {Tile} and a block of {KeyBlock} were given.", nameof(Tile));
        }

        if (Importance == PyramidImportance.Antidiagonal && (QueryBlock != KeyBlock || Stride < 1 || KeyBlock % Stride != 0 || Chunk < 1 || Chunk % KeyBlock != 0))
        {
            throw new ArgumentException(
                $"Antidiagonal importance needs query blocks as long as key blocks, a stride that divides them and a chunk that they divide; blocks of {QueryBlock} and {KeyBlock}, the stride {Stride} and the chunk {Chunk} "
                + "were given.", nameof(Stride));
        }

        if (TextLength < 0)
        {
            throw new ArgumentException($"The number of text tokens is not negative; {TextLength} was given.", nameof(TextLength));
        }
    }
}

/// <summary>
/// Lets every query block read key blocks at a resolution that follows their importance (PSA, arXiv 2512.04025): in full, pooled by 2, 4 or 8, or not at all.
/// </summary>
/// <remarks>Causal calls need antidiagonal importance. There, calls with fewer queries than keys (decoding with a cache) stay as they are: dense.</remarks>
public sealed class PyramidSelector : AttentionSelector
{
    private readonly PyramidOptions _options;

    /// <summary>Initializes the selector.</summary>
    /// <param name="options">Settings; null: the defaults.</param>
    /// <exception cref="ArgumentException">Settings do not fit together.</exception>
    public PyramidSelector(PyramidOptions? options = null)
    {
        _options = options ?? new();
        _options.Validate();
    }

    /// <inheritdoc/>
    public override void Apply(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        using var scope = NewDisposeScope();
        if (KeysOf(call) is { } keys)
        {
            keys.Apply(call);
            call.Key.MoveToOuterDisposeScope();
            call.Value.MoveToOuterDisposeScope();
        }
    }

    /// <inheritdoc/>
    public override void ApplyKeepingKeys(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        using var scope = NewDisposeScope();
        if (KeysOf(call) is { } keys)
        {
            keys.ApplyKeepingKeys(call);
            call.Options.Mask!.MoveToOuterDisposeScope();
            ((Biases.DenseBias)call.Options.Biases[0]).Values.MoveToOuterDisposeScope();
        }
    }

    /// <summary>The level map that the selector chooses. No gradient.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>, Hkv a divisor of H.</param>
    /// <param name="isCausal">Whether keys after a query are out of reach; needs antidiagonal importance.</param>
    /// <param name="scale">Factor of the products; null: 1 / sqrt(D). Antidiagonal importance has its own.</param>
    /// <param name="querySample">Sampled importance: offsets of the sampled queries, int64 <c>[B, H, n]</c>; null: drawn by the seed.</param>
    /// <param name="keySample">Sampled importance: offsets of the sampled keys; null: drawn by the seed.</param>
    /// <returns>int32 <c>[B, H, M, N]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit together, or a causal map is asked of sampled importance.</exception>
    public Tensor LevelsOf(Tensor query, Tensor key, bool isCausal, double? scale = null, Tensor? querySample = null, Tensor? keySample = null)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        if (isCausal && _options.Importance == PyramidImportance.Sampled)
        {
            throw new ArgumentException("Sampled importance looks at queries and keys of the future: a causal call needs PyramidImportance.Antidiagonal.", nameof(isCausal));
        }

        using var still = no_grad();
        using var scope = NewDisposeScope();
        Tensor levels;
        if (_options.Importance == PyramidImportance.Sampled)
        {
            var random = new Random(_options.Seed);
            querySample ??= Draw(random, query, _options.QueryBlock);
            keySample ??= Draw(random, query, _options.KeyBlock);
            var importance = BlockSummaries.SampledMaximum(query, key, _options.QueryBlock, _options.KeyBlock, querySample, keySample, scale);
            levels = PyramidLevels.FromImportance(importance, _options.Levels, _options.Ranking, _options.KeyBlock, _options.Tile, _options.TextLength, _options.MinFullRatio);
        }
        else
        {
            var importance = BlockSummaries.AntidiagonalSum(query, key, _options.KeyBlock, _options.Stride, _options.Chunk, isCausal);
            levels = PyramidLevels.Causal(importance, _options.Levels, _options.Ranking, _options.KeyBlock, _options.TextLength, isCausal);
        }

        if (_options.UseSimilarity)
        {
            var (two, four, eight) = _options.SimilarityThresholds;
            levels = PyramidLevels.Capped(levels, PyramidLevels.SimilarityCap(key, _options.KeyBlock, two, four, eight));
        }

        return levels.MoveToOuterDisposeScope();
    }

    private static Tensor Draw(Random random, Tensor query, int block)
    {
        var (heads, count) = (query.size(0) * query.size(1), Math.Max(1, block / 4));
        var offsets = new long[heads * count];
        var order = new long[block];
        for (var head = 0; head < heads; head++)
        {
            for (var i = 0; i < block; i++)
            {
                order[i] = i;
            }

            random.Shuffle(order);
            order.AsSpan(0, count).CopyTo(offsets.AsSpan(head * count, count));
        }

        return tensor(offsets).view(query.size(0), query.size(1), count);
    }

    private PyramidKeys? KeysOf(AttentionCall call)
    {
        var isCausal = call.Options.Causal != Causality.None;
        return isCausal && call.Query.size(2) != call.Key.size(2)
            ? null
            : new(call, LevelsOf(call.Query, call.Key, isCausal, call.Options.Scale), _options.QueryBlock, _options.KeyBlock, isCausal);
    }
}
