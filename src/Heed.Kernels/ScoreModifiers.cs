using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>The row that a score modifier or mask predicate is asked about.</summary>
/// <param name="Batch">The batch item (the packed sequence, where sequences are packed).</param>
/// <param name="Head">The query head.</param>
/// <param name="Query">The query, counted within its sequence.</param>
/// <param name="Position">The query's aligned position among the keys.</param>
public readonly record struct ScoreRow(int Batch, int Head, int Query, int Position);

/// <summary>A user's change to the scores. Implement it on a struct: the kernel is compiled for it, and the call disappears into the tile loop
/// (mark the methods for aggressive inlining).</summary>
public interface IScoreModifier
{
    /// <summary>The modified scores of sixteen consecutive keys.</summary>
    /// <param name="scores">The scores so far.</param>
    /// <param name="row">The row.</param>
    /// <param name="keys">The keys, counted within the sequence. Lanes past the last key hold values that are not used.</param>
    Vector512<float> Apply(Vector512<float> scores, in ScoreRow row, Vector512<int> keys);

    /// <summary>The gradient with respect to the scores before the change.</summary>
    /// <param name="scores">The scores before the change.</param>
    /// <param name="gradient">The gradient with respect to the changed scores.</param>
    /// <param name="row">The row.</param>
    /// <param name="keys">The keys.</param>
    Vector512<float> Gradient(Vector512<float> scores, Vector512<float> gradient, in ScoreRow row, Vector512<int> keys);
}

/// <summary>A user's rule for which pairs exist. Implement it on a struct, as <see cref="IScoreModifier"/>.
/// With a block mask it is asked in partial blocks only; without one, everywhere. It cannot be combined with key runs.</summary>
public interface IMaskPredicate
{
    /// <summary>All bits set in the lanes of the keys that the query may attend to, zero in the others.</summary>
    Vector512<int> Allows(in ScoreRow row, Vector512<int> keys);
}

/// <summary>No change.</summary>
public readonly struct UnmodifiedScore : IScoreModifier
{
    /// <inheritdoc/>
    public Vector512<float> Apply(Vector512<float> scores, in ScoreRow row, Vector512<int> keys) => scores;

    /// <inheritdoc/>
    public Vector512<float> Gradient(Vector512<float> scores, Vector512<float> gradient, in ScoreRow row, Vector512<int> keys) => gradient;
}

/// <summary>Every pair.</summary>
public readonly struct AllPairs : IMaskPredicate
{
    /// <inheritdoc/>
    public Vector512<int> Allows(in ScoreRow row, Vector512<int> keys) => Vector512<int>.AllBitsSet;
}
