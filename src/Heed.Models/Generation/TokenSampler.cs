namespace Heed.Models.Generation;

/// <summary>Chooses a token from logits.</summary>
internal sealed class TokenSampler(GenerationOptions options)
{
    private readonly Random _random = new(options.Seed);

    /// <summary>The chosen token's id. Of equal logits the lowest id comes first.</summary>
    /// <exception cref="NotFiniteNumberException">The logits are not numbers.</exception>
    public int Choose(ReadOnlySpan<float> logits)
    {
        var best = 0;
        for (var i = 0; i < logits.Length; i++)
        {
            if (float.IsNaN(logits[i]) || float.IsPositiveInfinity(logits[i]))
            {
                throw new NotFiniteNumberException("The model gave logits that are not numbers: its weights are broken, its type is too narrow for them, or an edit is too strong.");
            }

            best = logits[i] > logits[best] ? i : best;
        }

        if (options.Temperature == 0)
        {
            return best;
        }

        var order = new int[logits.Length];
        var weights = new double[logits.Length];
        for (var i = 0; i < order.Length; i++)
        {
            order[i] = i;
            weights[i] = Math.Exp((logits[i] - (double)logits[best]) / options.Temperature);
        }

        var kept = order.Length;
        if (options.TopK > 0 || options.TopP < 1)
        {
            var keys = Array.ConvertAll(weights, weight => -weight);
            // Array.Sort is not stable: ties are broken by the id.
            Array.Sort(order, (left, right) => keys[left] != keys[right] ? keys[left].CompareTo(keys[right]) : left.CompareTo(right));
            kept = options.TopK > 0 ? Math.Min(options.TopK, kept) : kept;
            var total = 0.0;
            for (var i = 0; i < kept; i++)
            {
                total += weights[order[i]];
            }

            var share = 0.0;
            for (var i = 0; i < kept; i++)
            {
                share += weights[order[i]];
                if (share >= options.TopP * total)
                {
                    kept = i + 1;
                    break;
                }
            }
        }

        var sum = 0.0;
        for (var i = 0; i < kept; i++)
        {
            sum += weights[order[i]];
        }

        var left = _random.NextDouble() * sum;
        for (var i = 0; i < kept; i++)
        {
            left -= weights[order[i]];
            if (left < 0)
            {
                return order[i];
            }
        }

        // Rounding may leave a crumb: the last token that can be chosen takes it.
        return order.AsSpan(0, kept).ToArray().Last(id => weights[id] > 0);
    }
}
