namespace Heed;

/// <summary>What the queries of a call attend to.</summary>
public enum AttentionKind
{
    /// <summary>Queries and keys come from the same sequence.</summary>
    Self,

    /// <summary>Keys come from another sequence.</summary>
    Cross,

    /// <summary>Several sequences (text and image, for instance) attend to each other as one.</summary>
    Joint,
}

/// <summary>Where in a model an attention call stands. Probes and edits choose by it.</summary>
/// <param name="Layer">The layer, from 0.</param>
/// <param name="Kind">What the queries attend to.</param>
/// <param name="Name">The module's name in the model, for example <c>model.layers.3.self_attn</c>.</param>
public readonly record struct AttentionSite(int Layer, AttentionKind Kind, string Name)
{
    /// <inheritdoc/>
    public override string ToString() => Name;
}
