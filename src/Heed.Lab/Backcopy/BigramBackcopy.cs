using static TorchSharp.torch;

namespace Heed.Lab.Backcopy;

/// <summary>What follows a trigger.</summary>
public enum BackcopyRule
{
    /// <summary>The token before the trigger: the language of the paper.</summary>
    Copy,

    /// <summary>What follows the token before the trigger, as if the trigger were not there ("dormant Markov").</summary>
    SkipTrigger,

    /// <summary>What follows the trigger: no token is a trigger, and attention has nothing to do ("Markov").</summary>
    None,
}

/// <summary>The bigram-backcopy language (arXiv 2410.13835, section 2): a bigram source in which what follows a trigger repeats the token before it. The head that copies has nothing to do anywhere else, and parks its attention. Triggers are
/// the most frequent tokens; a text begins with the begin token and a token that is no trigger.</summary>
/// <remarks>Draws are taken from uniform numbers in the order of the authors' code: one for token 1; then, for every token, one for what follows the token before it (also where it is thrown away), one more for what follows the one before that
/// under <see cref="BackcopyRule.SkipTrigger"/>, and one more at a trigger where <see cref="Share"/> is below 1.</remarks>
public sealed class BigramBackcopy
{
    private const double Tolerance = 1e-6;

    private readonly double[] _conditional;
    private readonly double[][] _cumulative;
    private readonly double[] _first;
    private readonly bool[] _isTrigger;

    /// <summary>Makes the language of a table.</summary>
    /// <param name="table">The table.</param>
    /// <param name="triggers">Number of triggers.</param>
    /// <param name="rule">What follows a trigger.</param>
    /// <param name="share">Share of the triggers at which the rule holds, 0 to 1; after the others comes what the bigrams say.</param>
    /// <exception cref="ArgumentException">There are not so many tokens to be triggers, or the share is none.</exception>
    public BigramBackcopy(BigramTable table, int triggers = 3, BackcopyRule rule = BackcopyRule.Copy, double share = 1)
        : this((table ?? throw new ArgumentNullException(nameof(table))).Conditional(), table.Marginal(), table.Begin, triggers, rule, share)
    {
    }

    /// <summary>Makes a language.</summary>
    /// <param name="conditional">Probability of every token (columns) behind every token (rows), <c>[V, V]</c>; rows sum to 1.</param>
    /// <param name="marginal">Probability of every token, <c>[V]</c>; sums to 1, that of the begin token is 0.</param>
    /// <param name="begin">The begin token.</param>
    /// <param name="triggers">Number of triggers.</param>
    /// <param name="rule">What follows a trigger.</param>
    /// <param name="share">Share of the triggers at which the rule holds, 0 to 1; after the others comes what the bigrams say.</param>
    /// <exception cref="ArgumentException">The probabilities have another shape, are negative or do not sum to 1; something is followed by the begin token; there are not so many tokens to be triggers; or the share is none.</exception>
    public BigramBackcopy(Tensor conditional, Tensor marginal, int begin, int triggers = 3, BackcopyRule rule = BackcopyRule.Copy, double share = 1)
    {
        ArgumentNullException.ThrowIfNull(conditional);
        ArgumentNullException.ThrowIfNull(marginal);
        if (marginal.dim() != 1 || conditional.dim() != 2 || conditional.shape[0] != marginal.shape[0] || conditional.shape[1] != marginal.shape[0])
        {
            throw new ArgumentException($"Bigram probabilities are [V, V] beside [V], not [{string.Join(", ", conditional.shape)}] beside [{string.Join(", ", marginal.shape)}].", nameof(conditional));
        }

        if (!(share is >= 0 and <= 1))
        {
            throw new ArgumentException($"The share of triggers at which the rule holds is 0 to 1, not {share}.", nameof(share));
        }

        Vocabulary = (int)marginal.shape[0];
        _conditional = Numbers(conditional);
        var shares = Numbers(marginal);
        (Begin, Rule, Share) = (begin, rule, share);
        if (begin < 0 || begin >= Vocabulary)
        {
            throw new ArgumentException($"The begin token is one of 0 to {Vocabulary - 1}, not {begin}.", nameof(begin));
        }

        CheckDistribution(shares, "marginal probabilities");
        if (shares[begin] > 0)
        {
            throw new ArgumentException($"The begin token {begin} occurs nowhere but at the begin, so its marginal probability is 0, not {shares[begin]}.", nameof(marginal));
        }

        _cumulative = new double[Vocabulary][];
        for (var token = 0; token < Vocabulary; token++)
        {
            var row = _conditional.AsSpan(token * Vocabulary, Vocabulary);
            CheckDistribution(row, $"probabilities behind token {token}");
            if (row[begin] > 0)
            {
                throw new ArgumentException($"The begin token {begin} occurs nowhere but at the begin, so its probability behind token {token} is 0, not {row[begin]}.", nameof(conditional));
            }

            _cumulative[token] = Cumulative(row);
        }

        var usable = shares.Count(probability => probability > 0);
        if (triggers < 0 || triggers >= usable)
        {
            throw new ArgumentException($"Of {usable} tokens that occur, 0 to {usable - 1} can be triggers (token 1 of a text is none), not {triggers}.", nameof(triggers));
        }

        // The most frequent ones; of equally frequent ones those with the larger number, as a stable ascending sort puts them last.
        Triggers = [.. Enumerable.Range(0, Vocabulary).OrderBy(token => shares[token]).TakeLast(triggers).Order()];
        _isTrigger = new bool[Vocabulary];
        var first = shares.ToArray();
        foreach (var trigger in Triggers)
        {
            (_isTrigger[trigger], first[trigger]) = (rule != BackcopyRule.None, 0);
        }

        // The authors' code keeps triggers out of token 1 where they copy or where their rule holds now and then, and not otherwise.
        _first = rule == BackcopyRule.None ? _cumulative[begin] : Cumulative(rule == BackcopyRule.SkipTrigger && share == 1 ? shares : first);
    }

    /// <summary>Number V of tokens.</summary>
    public int Vocabulary { get; }

    /// <summary>The begin token.</summary>
    public int Begin { get; }

    /// <summary>The triggers, ascending. Under <see cref="BackcopyRule.None"/> they are tokens like any other.</summary>
    public IReadOnlyList<int> Triggers { get; }

    /// <summary>What follows a trigger.</summary>
    public BackcopyRule Rule { get; }

    /// <summary>Share of the triggers at which the rule holds.</summary>
    public double Share { get; }

    /// <summary>The most uniform numbers that a text may take.</summary>
    /// <param name="length">Tokens behind the begin token.</param>
    public int Draws(int length) => 1 + ((length - 1) * (1 + (Rule == BackcopyRule.SkipTrigger ? 1 : 0) + (Share < 1 && Rule != BackcopyRule.None ? 1 : 0)));

    /// <summary>Texts of a seed.</summary>
    /// <param name="count">Number of texts B.</param>
    /// <param name="length">Tokens n behind the begin token.</param>
    /// <param name="seed">The same seed gives the same texts.</param>
    /// <returns>int64 <c>[B, n + 1]</c>: a model reads the first n tokens of each and predicts the last n.</returns>
    public Tensor Sample(int count, int length, int seed)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(count, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(length, 1);
        var random = new Random(seed);
        var tokens = new long[count * (length + 1)];
        for (var text = 0; text < count; text++)
        {
            Fill(tokens.AsSpan(text * (length + 1), length + 1), random.NextDouble);
        }

        return tensor(tokens, [count, length + 1]);
    }

    /// <summary>Texts of given draws.</summary>
    /// <param name="uniforms">Numbers from 0 (included) to 1 (excluded), <c>[B, m]</c>: what each text draws, in order.</param>
    /// <param name="length">Tokens n behind the begin token; null: m, one draw a token.</param>
    /// <returns>int64 <c>[B, n + 1]</c>.</returns>
    /// <exception cref="ArgumentException">A number lies outside, or they are fewer than <see cref="Draws"/>.</exception>
    public Tensor Sample(Tensor uniforms, int? length = null)
    {
        ArgumentNullException.ThrowIfNull(uniforms);
        if (uniforms.dim() != 2 || uniforms.shape[1] < 1)
        {
            throw new ArgumentException($"Draws are [texts, draws of a text], not [{string.Join(", ", uniforms.shape)}].", nameof(uniforms));
        }

        var (count, draws) = ((int)uniforms.shape[0], (int)uniforms.shape[1]);
        var numbers = Numbers(uniforms);
        foreach (var number in numbers)
        {
            if (!(number is >= 0 and < 1))
            {
                throw new ArgumentException($"Draws are numbers from 0 to below 1, not {number}.", nameof(uniforms));
            }
        }

        var tokens = length ?? draws;
        if (tokens < 1 || draws < Draws(tokens))
        {
            throw new ArgumentException($"A text of {tokens} tokens may take {Draws(Math.Max(1, tokens))} draws; {draws} were given.", nameof(uniforms));
        }

        var texts = new long[count * (tokens + 1)];
        for (var text = 0; text < count; text++)
        {
            var next = text * draws;
            Fill(texts.AsSpan(text * (tokens + 1), tokens + 1), () => numbers[next++]);
        }

        return tensor(texts, [count, tokens + 1]);
    }

    /// <summary>Which tokens are triggers.</summary>
    /// <param name="tokens">int64, any shape.</param>
    /// <returns>Boolean, of that shape; false everywhere under <see cref="BackcopyRule.None"/>.</returns>
    /// <exception cref="ArgumentException">A token is none of the language's.</exception>
    public Tensor TriggerMask(Tensor tokens)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        CheckTokens(tokens);
        using var scope = NewDisposeScope();
        return tensor(_isTrigger).index_select(0, tokens.flatten()).view(tokens.shape).MoveToOuterDisposeScope();
    }

    /// <summary>The true probability of what comes next at every token. (At the begin token it is the marginal one, triggers included, though token 1 is none: as the authors have it.)</summary>
    /// <param name="tokens">int64 <c>[B, N]</c>, texts from their begin on.</param>
    /// <returns>float64 <c>[B, N, V]</c>; rows sum to 1.</returns>
    /// <exception cref="ArgumentException">The tokens have another shape, or one is none of the language's.</exception>
    public Tensor Oracle(Tensor tokens)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 2 || tokens.shape[1] < 1)
        {
            throw new ArgumentException($"Texts are int64 [batch, tokens], not [{string.Join(", ", tokens.shape)}].", nameof(tokens));
        }

        CheckTokens(tokens);
        using var scope = NewDisposeScope();
        var table = tensor(_conditional, [Vocabulary, Vocabulary]);
        Tensor Behind(Tensor of) => table.index_select(0, of.flatten()).view(of.shape[0], of.shape[1], Vocabulary);
        var bigram = Behind(tokens);
        if (Rule == BackcopyRule.None || Share == 0)
        {
            return bigram.MoveToOuterDisposeScope();
        }

        // Before the begin token stands nothing; it is no trigger, so what is taken there does not matter.
        var before = cat([tokens.narrow(1, 0, 1), tokens.narrow(1, 0, tokens.shape[1] - 1)], 1);
        var ruled = Rule == BackcopyRule.Copy ? nn.functional.one_hot(before, Vocabulary).to(float64) : Behind(before);
        using TorchSharp.Scalar kept = Share, rest = 1 - Share;
        return where(TriggerMask(tokens).unsqueeze(-1), (ruled * kept) + (bigram * rest), bigram).MoveToOuterDisposeScope();
    }

    private static double[] Numbers(Tensor values)
    {
        using var plain = values.detach().to(float64).cpu().contiguous();
        return plain.data<double>().ToArray();
    }

    private static void CheckDistribution(ReadOnlySpan<double> probabilities, string what)
    {
        double sum = 0;
        foreach (var probability in probabilities)
        {
            if (!(probability >= 0))
            {
                throw new ArgumentException($"The {what} hold {probability}; none may be negative.");
            }

            sum += probability;
        }

        if (!(Math.Abs(sum - 1) <= Tolerance))
        {
            throw new ArgumentException($"The {what} sum to {sum}, not to 1.");
        }
    }

    private static double[] Cumulative(ReadOnlySpan<double> probabilities)
    {
        var sums = new double[probabilities.Length];
        double sum = 0;
        for (var i = 0; i < sums.Length; i++)
        {
            sums[i] = sum += probabilities[i];
        }

        for (var i = 0; i < sums.Length; i++)
        {
            sums[i] /= sum;
        }

        return sums;
    }

    // The first place whose cumulative share is above the number.
    private static long Draw(double[] cumulative, double uniform)
    {
        var (low, high) = (0, cumulative.Length - 1);
        while (low < high)
        {
            var middle = (low + high) / 2;
            (low, high) = cumulative[middle] > uniform ? (low, middle) : (middle + 1, high);
        }

        return low;
    }

    private void Fill(Span<long> text, Func<double> uniform)
    {
        text[0] = Begin;
        text[1] = Draw(_first, uniform());
        for (var i = 1; i + 1 < text.Length; i++)
        {
            // Drawn whether needed or not, so that texts of one seed stay alike in all that the rule does not touch.
            var following = Draw(_cumulative[text[i]], uniform());
            var skipping = Rule == BackcopyRule.SkipTrigger ? Draw(_cumulative[text[i - 1]], uniform()) : 0;
            var rules = _isTrigger[text[i]] && (Share == 1 || uniform() < Share);
            text[i + 1] = !rules ? following : Rule == BackcopyRule.Copy ? text[i - 1] : skipping;
        }
    }

    private void CheckTokens(Tensor tokens)
    {
        if (tokens.dtype != ScalarType.Int64 || (tokens.numel() > 0 && (tokens.min().item<long>() < 0 || tokens.max().item<long>() >= Vocabulary)))
        {
            throw new ArgumentException($"Tokens are int64 from 0 to {Vocabulary - 1}, not {tokens.dtype}{(tokens.dtype == ScalarType.Int64 ? $" from {tokens.min().item<long>()} to {tokens.max().item<long>()}" : "")}.", nameof(tokens));
        }
    }
}
