namespace Heed.Lab.Inspection;

/// <summary>What a model is, for a report's heading.</summary>
/// <param name="Name">Its name: a folder's name, or the shipped model's.</param>
/// <param name="Layers">Number of layers.</param>
/// <param name="Heads">Query heads per layer.</param>
/// <param name="KeyValueHeads">Key/value heads per layer.</param>
/// <param name="Parameters">Number of parameters.</param>
public sealed record InspectedModel(string Name, int Layers, int Heads, int KeyValueHeads, long Parameters);

/// <summary>One token of the input.</summary>
/// <param name="Id">Its number in the vocabulary.</param>
/// <param name="Text">What it stands for in the text; a token of part of a character: its bytes in angle brackets.</param>
/// <param name="Loss">-ln of the probability that the model gave it, nats; null where nothing predicts it (the first token).</param>
/// <param name="IsText">Whether <paramref name="Text"/> stands in the text as it is; false for special tokens and parts of characters.</param>
public sealed record InspectedToken(int Id, string Text, double? Loss, bool IsText = true);

/// <summary>One head.</summary>
public sealed record InspectedHead
{
    /// <summary>The layer, from 0.</summary>
    public required int Layer { get; init; }

    /// <summary>The query head, from 0.</summary>
    public required int Head { get; init; }

    /// <summary>Its numbers.</summary>
    public required HeadStatistics Statistics { get; init; }

    /// <summary>What it looks like.</summary>
    public HeadLook Look => HeadLooks.Of(Statistics);

    /// <summary>Share of the layer's pairs that the mechanism in place of the model's attention computed; null where there is none.</summary>
    public double? ComputedShare { get; init; }

    /// <summary>Its map; null where only statistics were wanted.</summary>
    public PooledMap? Map { get; init; }

    /// <summary>Keys of the largest weights of every row, <c>[N, k]</c>, descending by weight; -1: no more.</summary>
    public required int[] TopKeys { get; init; }

    /// <summary>The weights, <c>[N, k]</c>.</summary>
    public required float[] TopWeights { get; init; }

    /// <summary>Mass received by every token from all rows, <c>[N]</c>.</summary>
    public required float[] MassReceived { get; init; }

    /// <summary>Entropy of every row, nats, <c>[N]</c>.</summary>
    public required float[] Entropy { get; init; }

    /// <summary>Whether the head is dormant on this text: see <see cref="Probes.DormantHeads"/>, with its thresholds, among columns that at least half of the rows see and that receive more than
    /// <see cref="Probes.SinkMask.AttentionThreshold"/>. Without that every head of nearly one-hot rows would pass: the last columns, and those of next to no attention, have large entropies anyhow.</summary>
    public bool IsDormant { get; init; }

    /// <summary>The largest entropy of such a column over the most it could be, 0 to 1; 0: there is none.</summary>
    public double ColumnEntropy { get; init; }

    /// <summary>Mean over the queries of the score on the first token less the mean score on the tokens between; null where scores are more than products.</summary>
    public double? SinkLogitGap { get; init; }

    /// <summary>Keys of which each row that sees them gives, on average, more than <see cref="Probes.SinkMask.AttentionThreshold"/>, in order; those that fewer than <see cref="LeastRows"/> rows see are left out.</summary>
    public IReadOnlyList<int> AttentionSinks { get; init; } = [];

    /// <summary>When a head is called dormant, for legends.</summary>
    public static string DormantMeaning => string.Create(
        System.Globalization.CultureInfo.InvariantCulture,
        $"rows nearly one-hot (mean entropy below {Probes.DormantHeads.RowThreshold} of the most), and a key that at least half of the rows see, that takes more than {Probes.SinkMask.AttentionThreshold} of them on average, from nearly all alike (entropy above {Probes.DormantHeads.ColumnThreshold} of the most)");

    /// <summary>Rows that must see a key to call it a sink: a late key's mean over few rows says little.</summary>
    public const int LeastRows = 16;
}

/// <summary>What a model did on a text.</summary>
public sealed record InspectionResult
{
    /// <summary>The model.</summary>
    public required InspectedModel Model { get; init; }

    /// <summary>The input, token by token.</summary>
    public required IReadOnlyList<InspectedToken> Tokens { get; init; }

    /// <summary>Every head, by layer and then by head.</summary>
    public required IReadOnlyList<InspectedHead> Heads { get; init; }

    /// <summary>Bytes of UTF-8 that the predicted tokens stand for.</summary>
    public required long PredictedBytes { get; init; }

    /// <summary>Largest weights kept per row.</summary>
    public required int TopCount { get; init; }

    /// <summary>Where the text came from, for the heading.</summary>
    public required string Source { get; init; }

    /// <summary>Sentences that the reader must know (a text that was cut, for instance).</summary>
    public IReadOnlyList<string> Notices { get; init; } = [];

    /// <summary>The mechanism in place of the model's attention, as it was asked for; null where there is none.</summary>
    public string? Attention { get; init; }

    /// <summary>Bits per byte of the same text by the model's own attention, where another one stands in its place.</summary>
    public double? BitsPerByteWithout { get; init; }

    /// <summary>The edits of the model, as they were asked for; empty: none.</summary>
    public IReadOnlyList<string> Edits { get; init; } = [];

    /// <summary>The same text read by the model without its edits; null where there are none.</summary>
    public InspectionResult? Before { get; init; }

    /// <summary>Tokens whose residual stream is that of a sink; null where the model has one layer.</summary>
    public InspectedSinks? Sinks { get; init; }

    /// <summary>Norms by layer.</summary>
    public IReadOnlyList<InspectedLayer> Layers { get; init; } = [];

    /// <summary>Seconds that running the model with all statistics took.</summary>
    public double Seconds { get; init; }

    /// <summary>Number of tokens that something predicts.</summary>
    public int PredictedTokens => Tokens.Count(token => token.Loss is not null);

    /// <summary>Total loss of the predicted tokens, nats.</summary>
    public double TotalLoss => Tokens.Sum(token => token.Loss ?? 0);

    /// <summary>Mean loss of a predicted token, nats.</summary>
    public double LossPerToken => TotalLoss / PredictedTokens;

    /// <summary>Bits that the model needs per byte of the text.</summary>
    public double BitsPerByte => TotalLoss / Math.Log(2) / PredictedBytes;
}
