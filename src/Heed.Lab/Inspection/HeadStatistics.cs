namespace Heed.Lab.Inspection;

/// <summary>What one head did on one causal sequence, as a handful of numbers. Means run over the rows from the second on: the first row has one key and no choice.</summary>
public sealed record HeadStatistics
{
    /// <summary>How many tokens are near a token, itself included: about a line of text.</summary>
    public const int NearTokens = 16;

    /// <summary>Mean entropy of a row, in nats.</summary>
    public required double Entropy { get; init; }

    /// <summary>Mean of each row's entropy over the most it could be (ln of the number of keys it sees), 0 to 1.</summary>
    public required double EntropyShare { get; init; }

    /// <summary>Mean mass on the first token, 0 to 1.</summary>
    public required double FirstMass { get; init; }

    /// <summary>Mean distance between a query and its keys, in tokens.</summary>
    public required double MeanDistance { get; init; }

    /// <summary>Mean mass on the nearest <see cref="NearTokens"/> tokens, 0 to 1.</summary>
    public required double NearMass { get; init; }

    /// <summary>Mean mass that equal weights on every key would have there.</summary>
    public required double UniformNearMass { get; init; }

    /// <summary>Share of the rows whose largest weight is on the token before, 0 to 1.</summary>
    public required double PreviousShare { get; init; }

    /// <summary>Share of the rows whose largest weight is on the token itself, 0 to 1.</summary>
    public required double SelfShare { get; init; }

    /// <summary>Mean mass, on random tokens said twice, on the token that followed the first saying (prefix matching, arXiv 2209.11895), 0 to 1; null: not measured.</summary>
    public double? Induction { get; init; }

    /// <summary>Summarises the rows of one head.</summary>
    /// <param name="entropy">Entropy of each row, nats.</param>
    /// <param name="maximumKey">Key of each row's largest weight; -1: none.</param>
    /// <param name="meanDistance">Mean distance of each row, tokens.</param>
    /// <param name="firstMass">Mass of each row on the first token.</param>
    /// <param name="nearMass">Mass of each row on its nearest <see cref="NearTokens"/> tokens.</param>
    /// <param name="window">How many keys a row sees at most, itself included; null: all up to itself.</param>
    /// <param name="induction">See <see cref="Induction"/>.</param>
    /// <exception cref="ArgumentException">The lists differ in length or are empty.</exception>
    public static HeadStatistics Of(
        ReadOnlySpan<float> entropy,
        ReadOnlySpan<int> maximumKey,
        ReadOnlySpan<float> meanDistance,
        ReadOnlySpan<float> firstMass,
        ReadOnlySpan<float> nearMass,
        long? window = null,
        double? induction = null)
    {
        var rows = entropy.Length;
        if (rows == 0 || maximumKey.Length != rows || meanDistance.Length != rows || firstMass.Length != rows || nearMass.Length != rows)
        {
            throw new ArgumentException(
                $"The statistics of a head need one value per row each, not {rows}, {maximumKey.Length}, {meanDistance.Length}, {firstMass.Length} and {nearMass.Length}.");
        }

        var first = Math.Min(1, rows - 1);
        var count = rows - first;
        double sumEntropy = 0, sumShare = 0, sumFirst = 0, sumDistance = 0, sumNear = 0, sumUniform = 0, previous = 0, self = 0;
        for (var row = first; row < rows; row++)
        {
            var keys = Math.Min(row + 1, window ?? long.MaxValue);
            sumEntropy += entropy[row];
            sumShare += keys > 1 ? entropy[row] / Math.Log(keys) : 0;
            sumFirst += firstMass[row];
            sumDistance += meanDistance[row];
            sumNear += nearMass[row];
            sumUniform += Math.Min(NearTokens, keys) / (double)keys;
            previous += maximumKey[row] == row - 1 && row > 0 ? 1 : 0;
            self += maximumKey[row] == row ? 1 : 0;
        }

        return new HeadStatistics
        {
            Entropy = sumEntropy / count,
            EntropyShare = sumShare / count,
            FirstMass = sumFirst / count,
            MeanDistance = sumDistance / count,
            NearMass = sumNear / count,
            UniformNearMass = sumUniform / count,
            PreviousShare = previous / count,
            SelfShare = self / count,
            Induction = induction,
        };
    }
}
