using Heed.Lab.Inspection;

namespace Heed.Lab.Onnx;

/// <summary>Summarises maps that a model handed over whole, of any shape, causal or not, as <see cref="HeadStatistics"/> summarises streamed ones.</summary>
public static class MapStatistics
{
    /// <summary>Summarises the map of one head.</summary>
    /// <param name="map">Weights, <c>[Nq, Nk]</c>, row by row.</param>
    /// <param name="queries">Number of queries.</param>
    /// <param name="keys">Number of keys. Where there are more or fewer than queries, a query's own place is where it lies in proportion; where the map is causal, queries are the last of the keys.</param>
    /// <param name="isCausal">Whether a row sees only keys up to its own place; rows with one key have no choice and are left out.</param>
    /// <exception cref="ArgumentException">The map has another size.</exception>
    public static HeadStatistics Of(ReadOnlySpan<float> map, int queries, int keys, bool isCausal)
    {
        if (queries < 1 || keys < 1 || map.Length != (long)queries * keys)
        {
            throw new ArgumentException($"A map of {queries} queries and {keys} keys has {(long)queries * keys} weights, not {map.Length}.", nameof(map));
        }

        double entropy = 0, share = 0, first = 0, distance = 0, near = 0, uniformNear = 0, previous = 0, self = 0;
        var counted = 0;
        for (var row = 0; row < queries; row++)
        {
            var own = isCausal ? row + keys - queries : queries == keys ? row : (row + 0.5) * keys / queries - 0.5;
            var sees = isCausal ? Math.Clamp(row + keys - queries + 1, 1, keys) : keys;
            if (isCausal && sees == 1 && queries > 1)
            {
                continue;
            }

            var weights = map.Slice(row * keys, keys);
            var (most, place) = (float.NegativeInfinity, -1);
            double rowEntropy = 0, rowDistance = 0, rowNear = 0, rowMass = 0;
            var reach = isCausal ? HeadStatistics.NearTokens - 1 : HeadStatistics.NearTokens / 2;
            var nearKeys = 0;
            for (var key = 0; key < keys; key++)
            {
                var weight = weights[key];
                var far = Math.Abs(key - own);
                rowEntropy -= weight > 0 ? weight * Math.Log(weight) : 0;
                rowDistance += weight * far;
                rowMass += weight;
                if (far <= reach && key < (isCausal ? sees : keys))
                {
                    rowNear += weight;
                    nearKeys++;
                }

                if (weight > most)
                {
                    (most, place) = (weight, key);
                }
            }

            counted++;
            entropy += rowEntropy;
            share += sees > 1 ? rowEntropy / Math.Log(sees) : 0;
            first += weights[0];
            distance += rowMass > 0 ? rowDistance / rowMass : 0;
            near += rowNear;
            uniformNear += nearKeys / (double)sees;
            previous += place == Math.Round(own) - 1 ? 1 : 0;
            self += place == Math.Round(own) ? 1 : 0;
        }

        return new()
        {
            Entropy = entropy / counted,
            EntropyShare = share / counted,
            FirstMass = first / counted,
            MeanDistance = distance / counted,
            NearMass = near / counted,
            UniformNearMass = uniformNear / counted,
            PreviousShare = previous / counted,
            SelfShare = self / counted,
        };
    }
}
