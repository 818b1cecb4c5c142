namespace Heed.Heads;

/// <summary>Where a gate acts (arXiv 2505.06708, section 2.2, positions G1 to G5).</summary>
public enum GatePosition
{
    /// <summary>Nowhere.</summary>
    None,

    /// <summary>G1: the output of every query head, before heads are merged. Gated by the query token.</summary>
    SdpaOutput,

    /// <summary>G2: the values after their projection. Gated by the source token; a cache stores the gated values.</summary>
    Value,

    /// <summary>G3: the keys after their projection, before norm and rotation. Gated by the source token; a cache stores the gated keys.</summary>
    Key,

    /// <summary>G4: the queries after their projection, before norm and rotation.</summary>
    Query,

    /// <summary>G5: the module's output, after the output projection.</summary>
    DenseOutput,
}

/// <summary>How many scores a gated head has.</summary>
public enum GateGranularity
{
    /// <summary>One for every element.</summary>
    Elementwise,

    /// <summary>One for every head (query heads for G1 and G4, key/value heads for G2 and G3).</summary>
    Headwise,
}

/// <summary>How scores act on what is gated.</summary>
public enum GateCombination
{
    /// <summary><c>Y * score</c>.</summary>
    Multiply,

    /// <summary><c>Y + score</c>.</summary>
    Add,
}

/// <summary>What turns the gate's linear map into scores.</summary>
public enum GateActivation
{
    /// <summary>1 / (1 + exp(-z)).</summary>
    Sigmoid,

    /// <summary>z * sigmoid(z).</summary>
    SiLU,

    /// <summary>z.</summary>
    Identity,

    /// <summary>0.5 + 0.5 * sigmoid(z): a gate that cannot close, the paper's control.</summary>
    NonSparseSigmoid,
}

/// <summary>What a gate depends on.</summary>
public enum GateSource
{
    /// <summary>A linear map of the module's input.</summary>
    Input,

    /// <summary>Nothing: learned logits, zero at first.</summary>
    Constant,
}

/// <summary>Where an input gate's weights live.</summary>
public enum GateLayout
{
    /// <summary>In a projection of its own, <c>gate.weight</c>, rows head by head.</summary>
    Separate,

    /// <summary>In <c>q_proj</c>, as the published checkpoints have it: for every key/value head first the rows of its query heads, then their gate rows.</summary>
    WithinQueryProjection,
}

/// <summary>What is done to the attention output of every head before a gate at <see cref="GatePosition.SdpaOutput"/>: the paper's non-linearities without a gate.</summary>
public enum HeadNonlinearity
{
    /// <summary>Nothing.</summary>
    None,

    /// <summary><c>SiLU(Y)</c>.</summary>
    SiLU,

    /// <summary>Root-mean-square normalisation per head, one weight <c>out_norm.weight</c> <c>[D]</c> for all heads.</summary>
    RmsNorm,
}

/// <summary>A gate in an attention module (arXiv 2505.06708, equation 5: <c>Y' = Y * sigmoid(X W)</c>, with X the module's input).</summary>
public sealed record GateOptions
{
    /// <summary>No gate.</summary>
    public static GateOptions None { get; } = new() { Position = GatePosition.None };

    /// <summary>Where the gate acts.</summary>
    public GatePosition Position { get; init; } = GatePosition.SdpaOutput;

    /// <summary>How many scores a head has.</summary>
    public GateGranularity Granularity { get; init; }

    /// <summary>Whether the scores (after the activation) are averaged over heads and shared by all of them.</summary>
    public bool HeadShared { get; init; }

    /// <summary>How the scores act.</summary>
    public GateCombination Combine { get; init; }

    /// <summary>What makes scores of the linear map.</summary>
    public GateActivation Activation { get; init; }

    /// <summary>What the gate depends on.</summary>
    public GateSource Source { get; init; }

    /// <summary>Where the gate's weights live.</summary>
    public GateLayout Layout { get; init; }

    /// <summary>Refuses a combination that means nothing.</summary>
    /// <exception cref="ArgumentException">Two options exclude each other; the message names them.</exception>
    public void Validate()
    {
        if (Position == GatePosition.None)
        {
            return;
        }

        if (HeadShared && Granularity == GateGranularity.Headwise)
        {
            throw new ArgumentException("HeadShared averages the element scores over the heads, so it cannot be combined with Granularity Headwise.");
        }

        if (Position == GatePosition.DenseOutput && (HeadShared || Granularity == GateGranularity.Headwise))
        {
            throw new ArgumentException(
                $"Position DenseOutput acts after the heads are merged, so it cannot be combined with {(HeadShared ? "HeadShared" : "Granularity Headwise")}.");
        }

        if (Layout == GateLayout.WithinQueryProjection && (Position != GatePosition.SdpaOutput || Source != GateSource.Input))
        {
            throw new ArgumentException(
                $"Layout WithinQueryProjection has rows for a gate of the input at SdpaOutput only, so it cannot be combined with {(Source != GateSource.Input ? $"Source {Source}" : $"Position {Position}")}.");
        }
    }
}
