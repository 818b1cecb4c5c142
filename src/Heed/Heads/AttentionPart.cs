using Heed.Biases;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>An exchangeable part of one <see cref="MultiHeadAttention"/>. It registers its parameters in that module, under the names of the reference implementation, and belongs to it alone.</summary>
public abstract class AttentionPart
{
    private MultiHeadAttention? _attention;

    /// <summary>The module that the part belongs to.</summary>
    /// <exception cref="InvalidOperationException">It belongs to none yet.</exception>
    protected MultiHeadAttention Owner => _attention ?? throw new InvalidOperationException($"The {GetType().Name} belongs to no attention module yet: give it to the constructor of one.");

    internal void Attach(MultiHeadAttention attention)
    {
        if (_attention is not null)
        {
            throw new ArgumentException($"The {GetType().Name} belongs to another attention module already: make one for every module.");
        }

        _attention = attention;
        Register();
    }

    /// <summary>Registers the part's parameters and modules in <see cref="Owner"/>. A parameter is read back by its name
    /// (<see cref="nn.Module.get_parameter"/>) at every use: moving a module to another type replaces it.</summary>
    protected virtual void Register()
    {
    }
}

/// <summary>What is done to the outputs of the heads before they are merged: gates, routing weights, norms.</summary>
public abstract class HeadOutputTransform : AttentionPart
{
    /// <summary>Scores that multiply the outputs within the attention call. They are known before it, so that a head with a score of zero need not be computed.</summary>
    /// <param name="input">The module's input <c>[B, N, C]</c>.</param>
    /// <returns>Broadcastable to <c>[B, N, H, D]</c>; null: none.</returns>
    public virtual Tensor? Gates(Tensor input) => null;

    /// <summary>What is done after the attention call and after the gates.</summary>
    /// <param name="input">The module's input <c>[B, N, C]</c>.</param>
    /// <param name="heads">Outputs of the heads <c>[B, N, H, D]</c>.</param>
    /// <returns>Of the same shape.</returns>
    public virtual Tensor Apply(Tensor input, Tensor heads) => heads;
}

/// <summary>How queries and keys learn of their positions: by turning them, or by a bias.</summary>
public abstract class PositionCode : AttentionPart
{
    /// <summary>Queries and keys as the attention call takes them, and what it adds to the scores.</summary>
    /// <param name="query">Queries <c>[B, H, Nq, D]</c>, the last aligned with the last key.</param>
    /// <param name="key">Keys <c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="scale">The factor that the call multiplies products by (and a bias is not).</param>
    public abstract PositionedHeads Apply(Tensor query, Tensor key, double scale);
}

/// <summary>Queries and keys that carry their positions.</summary>
/// <param name="Query">Queries <c>[B, H, Nq, D]</c>.</param>
/// <param name="Key">Keys <c>[B, Hkv, Nk, D]</c>.</param>
/// <param name="Bias">What is added to the scores; null: nothing.</param>
public readonly record struct PositionedHeads(Tensor Query, Tensor Key, AttentionBias? Bias = null);

/// <summary>Rotary positions from 0 on (see <see cref="RotaryEmbedding"/>).</summary>
/// <param name="embedding">The embedding, as wide as a head.</param>
public sealed class RotaryPositions(RotaryEmbedding embedding) : PositionCode
{
    /// <inheritdoc/>
    public override PositionedHeads Apply(Tensor query, Tensor key, double scale)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        var (queries, keys) = (query.shape[2], key.shape[2]);
        var positions = arange(keys, dtype: int64, device: query.device);
        var tables = embedding.Tables(positions, query.dtype);
        var queryTables = queries == keys ? tables : embedding.Tables(positions.narrow(0, keys - queries, queries), query.dtype);

        // The tables have tokens before heads, as the heads of a module lie in memory.
        return new(queryTables.Apply(query.transpose(1, 2)).transpose(1, 2), tables.Apply(key.transpose(1, 2)).transpose(1, 2));
    }
}
