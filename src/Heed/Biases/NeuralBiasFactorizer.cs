using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Biases;

/// <summary>
/// Two token-wise networks whose outputs are the factors of a bias that depends on the data, trained to reproduce it (arXiv 2505.12044, section 3.3 and table 12): three linear layers without
/// biases and tanh between them, for queries and for keys.
/// </summary>
/// <remarks>Parameter names are those of the authors' AlphaFold 3 code: <c>linear_q_flashbias</c>, <c>linear_k_flashbias</c> and, where the bias itself is a linear map of pair features,
/// <c>linear</c>.</remarks>
public sealed class NeuralBiasFactorizer : nn.Module<Tensor, Tensor, LowRankBias>
{
    private readonly Sequential linear_q_flashbias;
    private readonly Sequential linear_k_flashbias;
    private readonly Linear? linear;
    private readonly int _heads;
    private readonly int _rank;

    /// <summary>Makes the networks, with PyTorch's initial weights of linear layers.</summary>
    /// <param name="queryWidth">Features of a query token.</param>
    /// <param name="keyWidth">Features of a key token.</param>
    /// <param name="heads">Number of heads H.</param>
    /// <param name="rank">Rank R of every head's bias.</param>
    /// <param name="hidden">Width of the hidden layers.</param>
    /// <param name="pairWidth">Features of a pair, where the bias is a linear map of them (see <see cref="PairBias"/>); 0: it comes from elsewhere.</param>
    /// <exception cref="ArgumentException">A width is less than 1.</exception>
    public NeuralBiasFactorizer(int queryWidth, int keyWidth, int heads, int rank, int hidden = 256, int pairWidth = 0)
        : base(nameof(NeuralBiasFactorizer))
    {
        if (queryWidth < 1 || keyWidth < 1 || heads < 1 || rank < 1 || hidden < 1 || pairWidth < 0)
        {
            throw new ArgumentException(
                $"Widths, heads, rank and hidden width of a bias factorizer are at least 1, not {queryWidth}, {keyWidth}, {heads}, {rank}, {hidden} (and {pairWidth} for pairs).", nameof(rank));
        }

        (_heads, _rank) = (heads, rank);
        using var scope = NewDisposeScope();
        linear_q_flashbias = Network(queryWidth);
        linear_k_flashbias = Network(keyWidth);
        linear = pairWidth == 0 ? null : nn.Linear(pairWidth, heads, hasBias: false);
        RegisterComponents();
        foreach (var parameter in parameters())
        {
            parameter.DetachFromDisposeScope();
        }

        Sequential Network(int width) => nn.Sequential(
            nn.Linear(width, hidden, hasBias: false), nn.Tanh(), nn.Linear(hidden, hidden, hasBias: false), nn.Tanh(), nn.Linear(hidden, heads * rank, hasBias: false));
    }

    /// <summary>Number of heads.</summary>
    public int Heads => _heads;

    /// <summary>Rank of every head's bias.</summary>
    public int Rank => _rank;

    /// <summary>The factors.</summary>
    /// <param name="query">Features of the query tokens, <c>[N, C]</c> or <c>[B, N, C]</c>.</param>
    /// <param name="key">Features of the key tokens.</param>
    /// <returns>Factors <c>[B or 1, H, N, R]</c>.</returns>
    /// <exception cref="ArgumentException">The features have other shapes.</exception>
    public override LowRankBias forward(Tensor query, Tensor key)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        using var scope = NewDisposeScope();
        return new(Factors(linear_q_flashbias, query).MoveToOuterDisposeScope(), Factors(linear_k_flashbias, key).MoveToOuterDisposeScope());
    }

    /// <summary>The factors for a pair representation: query tokens are its means over the second index beside the single representation, key tokens those over the first.</summary>
    /// <param name="pair">Pair representation, already normalised, <c>[N, N, C]</c>.</param>
    /// <param name="single">Single representation, <c>[N, S]</c>.</param>
    /// <exception cref="ArgumentException">The shapes do not fit each other.</exception>
    public LowRankBias FromPair(Tensor pair, Tensor single)
    {
        ArgumentNullException.ThrowIfNull(pair);
        ArgumentNullException.ThrowIfNull(single);
        if (pair.dim() != 3 || single.dim() != 2 || pair.shape[0] != pair.shape[1] || single.shape[0] != pair.shape[0])
        {
            throw new ArgumentException(
                $"A pair representation is [N, N, C] and its single representation [N, S]; {AttentionShape.Text(pair)} and {AttentionShape.Text(single)} were given.", nameof(pair));
        }

        using var scope = NewDisposeScope();
        var bias = forward(cat([pair.mean([1L]), single], -1), cat([pair.mean([0L]), single], -1));
        return new(bias.QueryFactors.MoveToOuterDisposeScope(), bias.KeyFactors.MoveToOuterDisposeScope());
    }

    /// <summary>The bias that the factors stand for where it is a linear map of pair features: <c>[1, H, N, N]</c>.</summary>
    /// <param name="pair"><c>[N, N, C]</c>.</param>
    /// <exception cref="InvalidOperationException">The module was made without pair features.</exception>
    public Tensor PairBias(Tensor pair)
    {
        ArgumentNullException.ThrowIfNull(pair);
        if (linear is null)
        {
            throw new InvalidOperationException("This factorizer was made without pair features: give pairWidth to its constructor.");
        }

        using var scope = NewDisposeScope();
        return linear.forward(pair).permute(2, 0, 1).unsqueeze(0).MoveToOuterDisposeScope();
    }

    /// <summary>What is minimised: the mean squared difference over heads and pairs.</summary>
    /// <param name="factors">The factors.</param>
    /// <param name="bias">The bias to reproduce, broadcastable to <c>[B, H, Nq, Nk]</c>.</param>
    public static Tensor Loss(LowRankBias factors, Tensor bias)
    {
        ArgumentNullException.ThrowIfNull(factors);
        ArgumentNullException.ThrowIfNull(bias);
        using var scope = NewDisposeScope();
        return (LowRankBiases.Dense(factors) - bias).square().mean().MoveToOuterDisposeScope();
    }

    private Tensor Factors(Sequential network, Tensor tokens)
    {
        if (tokens.dim() is < 2 or > 3)
        {
            throw new ArgumentException($"Token features are [N, C] or [B, N, C]; {AttentionShape.Text(tokens)} was given.", nameof(tokens));
        }

        var batch = tokens.dim() == 3 ? tokens.shape[0] : 1;
        return network.forward(tokens).view(batch, tokens.shape[^2], _heads, _rank).transpose(1, 2);
    }
}
