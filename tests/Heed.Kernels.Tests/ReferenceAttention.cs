using System.Runtime.Intrinsics;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>
/// The meaning of <see cref="AttentionArguments"/>, written out in float64 one pair at a time: what every kernel is tested against. Slow on purpose.
/// Beside each result stands a bound of the error that a float32 kernel may make: rounding of every step, propagated through the formula with
/// sums of n terms counted as 4 sqrt(n) + 8 roundings (the probabilistic analysis of Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
/// </summary>
/// <remarks>Choices where the contract leaves room: the block mask, the biases, the key set and the keys in statistics are indexed by packed rows and keys where sequences are
/// packed; a row with no pair has a log-sum-exp of minus infinity even where its head has a sink; a score that a bias or the modifier makes minus infinity is a pair that does
/// not exist.</remarks>
internal sealed unsafe class ReferenceAttention
{
    private const double Unit = 1.0 / (1 << 24);
    private readonly ReferenceInputs _inputs;
    private readonly Pair[] _pairs;
    private readonly double[] _averageError;

    private ReferenceAttention(ReferenceInputs inputs)
    {
        _inputs = inputs;
        var rows = inputs.Batch * inputs.Heads * inputs.Queries;
        _pairs = new Pair[rows * inputs.Keys];
        _averageError = new double[rows];
        Weights = new double[rows * inputs.Keys];
        SinkWeights = new double[rows];
        Output = new Approximation(rows * inputs.ValueWidth);
        LogSumExp = new Approximation(rows);
        Array.Fill(LogSumExp.Value, double.NegativeInfinity);
        Array.Fill(_pairs, Pair.Absent);
    }

    /// <summary>Output <c>[B, H, Nq, Dv]</c>.</summary>
    public Approximation Output { get; }

    /// <summary>Log-sum-exp <c>[B, H, Nq]</c>; minus infinity with the other normalisers.</summary>
    public Approximation LogSumExp { get; }

    /// <summary>Weights <c>[B, H, Nq, Nk]</c>, zero where no pair exists.</summary>
    public double[] Weights { get; }

    /// <summary>Weight of the sink <c>[B, H, Nq]</c>.</summary>
    public double[] SinkWeights { get; }

    /// <summary>Computes the forward pass of a problem; nothing is written to the problem.</summary>
    public static ReferenceAttention Compute(in AttentionArguments arguments) => Compute(arguments, default(UnmodifiedScore), default(AllPairs));

    /// <summary>As <see cref="Compute(in AttentionArguments)"/> with a modifier and a predicate.</summary>
    public static ReferenceAttention Compute<TScore, TMask>(in AttentionArguments arguments, TScore modifier, TMask predicate)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate => Compute(new ReferenceInputs(arguments), modifier, predicate);

    /// <summary>As <see cref="Compute(in AttentionArguments)"/> from inputs that were read into float64.</summary>
    public static ReferenceAttention Compute<TScore, TMask>(ReferenceInputs inputs, TScore modifier, TMask predicate)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        var result = new ReferenceAttention(inputs);
        for (long b = 0; b < inputs.Batch; b++)
        {
            for (long h = 0; h < inputs.Heads; h++)
            {
                for (long i = 0; i < inputs.Queries; i++)
                {
                    var place = inputs.PlaceOf(b, i);
                    if (place.Exists)
                    {
                        result.ScoreRow(b, h, i, place, modifier, predicate);
                        result.NormalizeRow(b, h, i, place);
                    }
                }
            }
        }

        return result;
    }

    /// <summary>Mass that each key receives <c>[B, H, Nk]</c>.</summary>
    public Approximation MassPerKey()
    {
        var n = _inputs;
        var mass = new Approximation(n.Batch * n.Heads * n.Keys);
        n.ForEachPair((b, h, i, j) =>
        {
            var row = n.RowIndex(b, h, i);
            var at = (((b * n.Heads) + h) * n.Keys) + j;
            mass.Value[at] += Weights[(row * n.Keys) + j];
            mass.Bound[at] += WeightError(row, j) + (SumError(n.Queries) * Weights[(row * n.Keys) + j]);
        });
        return mass;
    }

    /// <summary>Entropy of each key's weights as shares of its mass <c>[B, H, Nk]</c>, for a softmax; 0 for a key without mass.</summary>
    /// <remarks>With the mass m and the products P = sum p ln p it is ln m - P / m. In float32 a term p ln p is off by what p is off, times ln p, and by p times what ln p = s - lse is off; the division by m
    /// carries both on. Where the mass is no larger than its own error nothing can be said.</remarks>
    public Approximation KeyEntropy()
    {
        var n = _inputs;
        var mass = MassPerKey();
        var products = new Approximation(mass.Value.Length);
        n.ForEachPair((b, h, i, j) =>
        {
            var row = n.RowIndex(b, h, i);
            var at = (((b * n.Heads) + h) * n.Keys) + j;
            var pair = _pairs[(row * n.Keys) + j];
            var weight = Weights[(row * n.Keys) + j];
            if (!pair.Exists || weight == 0)
            {
                return;
            }

            var logarithm = Math.Log(weight);
            var logarithmError = pair.Error + LogSumExp.Bound[row] + (2 * Unit * (Math.Abs(pair.Score) + Math.Abs(LogSumExp.Value[row])));
            products.Value[at] += weight * logarithm;
            products.Bound[at] += (WeightError(row, j) * (Math.Abs(logarithm) + logarithmError)) + (weight * logarithmError) + ((SumError(n.Queries) + (2 * Unit)) * weight * Math.Abs(logarithm));
        });
        var entropy = new Approximation(mass.Value.Length);
        for (var at = 0; at < mass.Value.Length; at++)
        {
            var (m, error, mean) = (mass.Value[at], mass.Bound[at], mass.Value[at] > 0 ? products.Value[at] / mass.Value[at] : 0);
            entropy.Value[at] = m > 0 ? Math.Max(0, Math.Log(m) - mean) : 0;
            entropy.Bound[at] = error == 0 ? 0
                : m > error ? ((error + products.Bound[at] + (Math.Abs(mean) * error)) / (m - error)) + (4 * Unit * (Math.Abs(Math.Log(m)) + Math.Abs(mean)))
                : double.PositiveInfinity;
        }

        return entropy;
    }

    /// <summary>Row statistics; the key set is read from the problem's statistics.</summary>
    public ReferenceStatistics Statistics()
    {
        var n = _inputs;
        var rows = n.Batch * n.Heads * n.Queries;
        var result = new ReferenceStatistics(rows, n.Keys, Weights);
        for (long row = 0; row < rows; row++)
        {
            var (b, i) = (row / (n.Heads * n.Queries), row % n.Queries);
            var place = n.PlaceOf(b, i);
            for (long j = 0; j < n.Keys; j++)
            {
                var weight = Weights[(row * n.Keys) + j];
                if (!_pairs[(row * n.Keys) + j].Exists)
                {
                    continue;
                }

                var error = WeightError(row, j) + (SumError(n.Keys) * weight);
                var score = _pairs[(row * n.Keys) + j].Score;
                if (weight > 0)
                {
                    result.Entropy.Value[row] -= weight * Math.Log(weight);
                    result.Entropy.Bound[row] += error * (1 + Math.Abs(Math.Log(weight))) + (4 * Unit * weight * (Math.Abs(score) + Math.Abs(LogSumExp.Value[row])));
                }

                result.WeightBound[row] = Math.Max(result.WeightBound[row], error);
                if (result.MaximumKey[row] < 0 || weight > result.Maximum.Value[row])
                {
                    result.Maximum.Value[row] = weight;
                    result.MaximumKey[row] = (int)j;
                }

                var distance = Math.Abs(place.Position - (j - place.FirstKey));
                result.MeanDistance.Value[row] += weight * distance;
                result.MeanDistance.Bound[row] += error * distance;
                if (n.InKeySet(b, j))
                {
                    result.SetMass.Value[row] += weight;
                    result.SetMass.Bound[row] += error;
                }
            }

            result.Maximum.Bound[row] = result.WeightBound[row];
            if (SinkWeights[row] > 0)
            {
                result.Entropy.Value[row] -= SinkWeights[row] * Math.Log(SinkWeights[row]);
                result.Entropy.Bound[row] += SinkWeights[row] * (_averageError[row] + SumError(n.Keys)) * (1 + Math.Abs(Math.Log(SinkWeights[row])));
            }

            // Summing w s and subtracting from the log-sum-exp is the streaming form: it cancels.
            result.Entropy.Bound[row] += double.IsFinite(LogSumExp.Value[row]) ? LogSumExp.Bound[row] + (4 * Unit * Math.Abs(LogSumExp.Value[row])) : 0;
        }

        return result;
    }

    /// <summary>All gradients, from the gradient of the output <c>[B, H, Nq, Dv]</c> and (null: zero) of the log-sum-exp <c>[B, H, Nq]</c>.</summary>
    public ReferenceGradients Differentiate(double[] outputGradient, double[]? logSumExpGradient = null) =>
        Differentiate(outputGradient, logSumExpGradient, default(UnmodifiedScore));

    /// <summary>As <see cref="Differentiate(double[], double[])"/> with the modifier of the forward pass.</summary>
    public ReferenceGradients Differentiate<TScore>(double[] outputGradient, double[]? logSumExpGradient, TScore modifier)
        where TScore : struct, IScoreModifier
    {
        var n = _inputs;
        var g = new ReferenceGradients(n);
        var softmax = n.Arguments.Normalizer == Normalizer.Softmax;
        for (long row = 0; row < n.Batch * n.Heads * n.Queries; row++)
        {
            var (b, h, i) = (row / (n.Heads * n.Queries), row / n.Queries % n.Heads, row % n.Queries);
            var kv = h / n.Group;
            var place = n.PlaceOf(b, i);
            double delta = 0, deltaError = 0;
            for (long d = 0; softmax && d < n.ValueWidth; d++)
            {
                var at = (row * n.ValueWidth) + d;
                delta += outputGradient[at] * Output.Value[at];
                deltaError += Math.Abs(outputGradient[at]) * ((SumError(n.ValueWidth) * Math.Abs(Output.Value[at])) + Output.Bound[at]);
            }

            if (softmax && logSumExpGradient is not null && LogSumExp.Value[row] != double.NegativeInfinity)
            {
                delta -= logSumExpGradient[row];
                deltaError += 2 * Unit * Math.Abs(logSumExpGradient[row]);
            }

            if (n.Sinks is not null && SinkWeights[row] != 0)
            {
                g.Sinks.Value[h] -= SinkWeights[row] * delta;
                g.Sinks.Bound[h] += SinkWeights[row] * (deltaError + (Math.Abs(delta) * (_averageError[row] + SumError(n.Keys) + SumError(n.Batch * n.Queries))));
            }

            for (long j = 0; j < n.Keys; j++)
            {
                var pair = _pairs[(row * n.Keys) + j];
                if (!pair.Exists)
                {
                    continue;
                }

                var weight = Weights[(row * n.Keys) + j];
                var weightError = WeightError(row, j) + (softmax ? weight * 2 * Unit * Math.Abs(LogSumExp.Value[row]) : 0);
                double product = 0, productAbsolute = 0;
                for (long d = 0; d < n.ValueWidth; d++)
                {
                    var gradient = outputGradient[(row * n.ValueWidth) + d];
                    var at = n.ValueIndex(b, kv, j, d);
                    product += gradient * n.Value[at];
                    productAbsolute += Math.Abs(gradient * n.Value[at]);
                    g.Value.Value[at] += weight * gradient;
                    g.Value.Bound[at] += Math.Abs(gradient) * (weightError + (weight * SumError(n.Queries * n.Group)));
                }

                var productError = SumError(n.ValueWidth) * productAbsolute;
                double final, finalError;
                switch (n.Arguments.Normalizer)
                {
                    case Normalizer.Softmax:
                        final = weight * (product - delta);
                        finalError = (weightError * (Math.Abs(product) + Math.Abs(delta))) + (weight * (productError + deltaError));
                        break;
                    case Normalizer.ReluOverPosition:
                        var slope = 1.0 / n.ReluCount(place);
                        final = pair.Score > 0 ? product * slope : 0;
                        finalError = pair.Score < -pair.Error ? 0
                            : ((productError + (4 * Unit * Math.Abs(product))) * slope) + (Math.Abs(pair.Score) <= pair.Error ? Math.Abs(product) * slope : 0);
                        break;
                    default:
                        final = product * weight * (1 - weight);
                        finalError = (productError * weight * (1 - weight)) + (Math.Abs(product) * (weightError + (4 * Unit * weight)));
                        break;
                }

                var (biased, biasedError) = (final, finalError);
                if (typeof(TScore) != typeof(UnmodifiedScore))
                {
                    var at = new ScoreRow(place.Sequence, (int)h, (int)place.Query, (int)place.Position);
                    var local = j - place.FirstKey;
                    biased = Back(modifier, pair.Biased, final, at, local);
                    biasedError = Math.Max(
                        Math.Abs(Back(modifier, pair.Biased + pair.BiasedError, final, at, local) - biased),
                        Math.Abs(Back(modifier, pair.Biased - pair.BiasedError, final, at, local) - biased))
                        + Math.Abs(Back(modifier, pair.Biased, finalError, at, local)) + (4 * Unit * Math.Abs(biased));
                }

                g.Bias.Value[(row * n.Keys) + j] = biased;
                g.Bias.Bound[(row * n.Keys) + j] = biasedError;
                g.AlibiSlopes.Value[h] -= biased * Math.Abs(place.Position - (j - place.FirstKey));
                g.AlibiSlopes.Bound[h] += (biasedError + (SumError(n.Queries * n.Keys) * Math.Abs(biased))) * Math.Abs(place.Position - (j - place.FirstKey));
                var keyBias = (((b * n.Heads) + h) * n.Keys) + j;
                g.KeyBias.Value[keyBias] += biased;
                g.KeyBias.Bound[keyBias] += biasedError + (SumError(n.Queries) * Math.Abs(biased));

                var raw = biased * pair.CapDerivative;
                var rawError = (biasedError * pair.CapDerivative) + (Math.Abs(biased) * pair.CapDerivativeError);
                for (long d = 0; d < n.Width; d++)
                {
                    var (q, k) = (n.QueryIndex(b, h, i, d), n.KeyIndex(b, kv, j, d));
                    var scale = n.Arguments.Scale;
                    g.Query.Value[q] += scale * raw * n.Key[k];
                    g.Query.Bound[q] += Math.Abs(scale * n.Key[k]) * (rawError + (SumError(n.Keys) * Math.Abs(raw)));
                    g.Key.Value[k] += scale * raw * n.Query[q];
                    g.Key.Bound[k] += Math.Abs(scale * n.Query[q]) * (rawError + (SumError(n.Queries * n.Group) * Math.Abs(raw)));
                }

                for (long r = 0; r < n.Rank; r++)
                {
                    var (q, k) = ((row * n.Rank) + r, (keyBias * n.Rank) + r);
                    g.LowRankQuery.Value[q] += raw * n.LowRankKey![k];
                    g.LowRankQuery.Bound[q] += Math.Abs(n.LowRankKey[k]) * (rawError + (SumError(n.Keys) * Math.Abs(raw)));
                    g.LowRankKey.Value[k] += raw * n.LowRankQuery![q];
                    g.LowRankKey.Bound[k] += Math.Abs(n.LowRankQuery[q]) * (rawError + (SumError(n.Queries) * Math.Abs(raw)));
                }
            }
        }

        return g;
    }

    private static double SumError(long terms) => ((4 * Math.Sqrt(terms)) + 8) * Unit;

    private static double Back<TScore>(TScore modifier, double score, double gradient, in ScoreRow row, long key)
        where TScore : struct, IScoreModifier =>
        modifier.Gradient(Vector512.Create((float)score), Vector512.Create((float)gradient), row, Vector512.Create((int)key))[0];

    private double WeightError(long row, long j)
    {
        var pair = _pairs[(row * _inputs.Keys) + j];
        var weight = Weights[(row * _inputs.Keys) + j];
        if (!pair.Exists)
        {
            return 0;
        }

        return _inputs.Arguments.Normalizer switch
        {
            // The smallest normal number is where float32 weights may be flushed to zero.
            Normalizer.Softmax => (weight * (pair.Error + _averageError[row] + SumError(_inputs.Keys))) + 1.2e-38,
            Normalizer.ReluOverPosition => (pair.Error / _inputs.ReluCount(_inputs.PlaceOf(row / (_inputs.Heads * _inputs.Queries), row % _inputs.Queries))) + (4 * Unit * weight),
            _ => (pair.Error * Math.Max(weight * (1 - weight), pair.Error)) + (8 * Unit * weight) + 1.2e-38,
        };
    }

    private void ScoreRow<TScore, TMask>(long b, long h, long i, RowPlace place, TScore modifier, TMask predicate)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        var n = _inputs;
        var a = n.Arguments;
        var row = n.RowIndex(b, h, i);
        var at = new ScoreRow(place.Sequence, (int)h, (int)place.Query, (int)place.Position);
        for (long first = 0; first < place.Keys; first += 16)
        {
            var keys = Vector512.Create((int)first) + Vector512<int>.Indices;
            var predicted = predicate.Allows(at, keys);
            for (var j = first; j < Math.Min(first + 16, place.Keys); j++)
            {
                var key = place.FirstKey + j;
                if ((a.Causal != Causality.None && j > place.Position)
                    || (a.WindowBefore >= 0 && j < place.Position - a.WindowBefore)
                    || (a.WindowAfter >= 0 && j > place.Position + a.WindowAfter))
                {
                    continue;
                }

                var ask = true;
                double blockBias = 0;
                if (a.KeyRuns is { } runs && !runs.Allows(b, h * runs.Heads / n.Heads, i, key))
                {
                    continue;
                }

                if (a.BlockMask is { } mask)
                {
                    var listed = -1;
                    var (start, end) = mask.Row(b, h, (int)(i / mask.QueryBlock));
                    for (var entry = start; entry < end; entry++)
                    {
                        listed = mask.KeyBlockAt(entry) == key / mask.KeyBlock ? entry : listed;
                    }

                    if (listed < 0 || !mask.Allows(b, h, i, key))
                    {
                        continue;
                    }

                    ask = mask.IsPartial(listed);
                    blockBias = mask.BiasAt(listed);
                }

                if (ask && predicted[(int)(j - first)] == 0)
                {
                    continue;
                }

                _pairs[(row * n.Keys) + key] = Score(b, h, i, key, place, blockBias);
            }

            if (typeof(TScore) != typeof(UnmodifiedScore))
            {
                Vector512<float> Modified(Func<Pair, double> choose)
                {
                    var scores = Vector512<float>.Zero;
                    for (var j = first; j < Math.Min(first + 16, place.Keys); j++)
                    {
                        var pair = _pairs[(row * n.Keys) + place.FirstKey + j];
                        scores = scores.WithElement((int)(j - first), pair.Exists ? (float)choose(pair) : 0);
                    }

                    return modifier.Apply(scores, at, keys);
                }

                var middle = Modified(pair => pair.Biased);
                var (above, below) = (Modified(pair => pair.Biased + pair.BiasedError), Modified(pair => pair.Biased - pair.BiasedError));
                for (var j = first; j < Math.Min(first + 16, place.Keys); j++)
                {
                    ref var pair = ref _pairs[(row * n.Keys) + place.FirstKey + j];
                    if (pair.Exists)
                    {
                        var lane = (int)(j - first);
                        double score = middle[lane];
                        var error = Math.Max(Math.Abs(above[lane] - score), Math.Abs(below[lane] - score)) + (8 * Unit * Math.Abs(score));
                        pair = score == double.NegativeInfinity ? Pair.Absent : pair with { Score = score, Error = error };
                    }
                }
            }
        }
    }

    private Pair Score(long b, long h, long i, long key, RowPlace place, double blockBias)
    {
        var n = _inputs;
        var a = n.Arguments;
        double raw = 0, absolute = 0;
        for (long d = 0; d < n.Width; d++)
        {
            var product = a.Scale * n.Query[n.QueryIndex(b, h, i, d)] * n.Key[n.KeyIndex(b, h / n.Group, key, d)];
            raw += product;
            absolute += Math.Abs(product);
        }

        for (long r = 0; r < n.Rank; r++)
        {
            var product = n.LowRankQuery![(n.RowIndex(b, h, i) * n.Rank) + r] * n.LowRankKey![(((((b * n.Heads) + h) * n.Keys) + key) * n.Rank) + r];
            raw += product;
            absolute += Math.Abs(product);
        }

        var error = SumError(n.Width + n.Rank) * absolute;
        double score = raw, capDerivative = 1, capDerivativeError = 0;
        if (a.Softcap > 0)
        {
            var tanh = Math.Tanh(raw / a.Softcap);
            score = a.Softcap * tanh;
            capDerivative = 1 - (tanh * tanh);
            capDerivativeError = (2 * Math.Abs(tanh) * ((error / a.Softcap * capDerivative) + (16 * Unit))) + (4 * Unit);
            error = (error * capDerivative) + (16 * Unit * a.Softcap);
        }

        double[] terms =
        [
            n.Bias is null ? 0 : n.Bias[(n.RowIndex(b, h, i) * n.Keys) + key],
            n.KeyBias is null ? 0 : n.KeyBias[(((b * n.Heads) + h) * n.Keys) + key],
            n.AlibiSlopes is null ? 0 : -n.AlibiSlopes[h] * Math.Abs(place.Position - (key - place.FirstKey)),
            blockBias,
        ];
        if (terms.Contains(double.NegativeInfinity))
        {
            return Pair.Absent;
        }

        error += 4 * Unit * (Math.Abs(score) + terms.Sum(Math.Abs));
        score += terms.Sum();
        error += 4 * Unit * Math.Abs(score);
        return score == double.NegativeInfinity ? Pair.Absent : new Pair(true, score, error, score, error, capDerivative, capDerivativeError);
    }

    private void NormalizeRow(long b, long h, long i, RowPlace place)
    {
        var n = _inputs;
        var row = n.RowIndex(b, h, i);
        var pairs = _pairs.AsSpan((int)(row * n.Keys), (int)n.Keys);
        var weights = Weights.AsSpan((int)(row * n.Keys), (int)n.Keys);
        if (n.Arguments.Normalizer == Normalizer.Softmax)
        {
            var largest = double.NegativeInfinity;
            var any = false;
            foreach (var pair in pairs)
            {
                any |= pair.Exists;
                largest = pair.Exists ? Math.Max(largest, pair.Score) : largest;
            }

            if (!any)
            {
                return;
            }

            var sink = n.Sinks is null ? double.NegativeInfinity : n.Sinks[h];
            largest = Math.Max(largest, sink);
            var sum = n.Sinks is null ? 0 : Math.Exp(sink - largest);
            for (var j = 0; j < pairs.Length; j++)
            {
                weights[j] = pairs[j].Exists ? Math.Exp(pairs[j].Score - largest) : 0;
                sum += weights[j];
            }

            double averageError = 0, largestMagnitude = 0;
            for (var j = 0; j < pairs.Length; j++)
            {
                weights[j] /= sum;
                averageError += pairs[j].Exists ? weights[j] * pairs[j].Error : 0;
                largestMagnitude = pairs[j].Exists ? Math.Max(largestMagnitude, weights[j] * Math.Abs(pairs[j].Score)) : largestMagnitude;
            }

            SinkWeights[row] = n.Sinks is null ? 0 : Math.Exp(sink - largest) / sum;
            averageError += SinkWeights[row] > 0 ? SinkWeights[row] * 4 * Unit * Math.Abs(sink) : 0;
            _averageError[row] = averageError;
            LogSumExp.Value[row] = largest + Math.Log(sum);
            LogSumExp.Bound[row] = averageError + SumError(n.Keys) + (4 * Unit * (Math.Abs(LogSumExp.Value[row]) + Math.Abs(largest)));
        }
        else
        {
            for (var j = 0; j < pairs.Length; j++)
            {
                // Math.Max passes NaN on, as the plain formula does.
                weights[j] = !pairs[j].Exists ? 0
                    : n.Arguments.Normalizer == Normalizer.Sigmoid ? 1 / (1 + Math.Exp(-pairs[j].Score))
                    : Math.Max(pairs[j].Score, 0) / n.ReluCount(place);
            }
        }

        for (long j = 0; j < n.Keys; j++)
        {
            if (!pairs[(int)j].Exists)
            {
                continue;
            }

            var error = WeightError(row, j) + (SumError(n.Keys) * weights[(int)j]);
            for (long d = 0; d < n.ValueWidth; d++)
            {
                var value = n.Value[n.ValueIndex(b, h / n.Group, j, d)];
                Output.Value[(row * n.ValueWidth) + d] += weights[(int)j] * value;
                Output.Bound[(row * n.ValueWidth) + d] += error * Math.Abs(value);
            }
        }
    }

    /// <summary>A pair: its score before and after the modifier with their error bounds, and the derivative of the softcap.</summary>
    private readonly record struct Pair(bool Exists, double Score, double Error, double Biased, double BiasedError, double CapDerivative, double CapDerivativeError)
    {
        public static Pair Absent => new(false, double.NegativeInfinity, 0, 0, 0, 0, 0);
    }
}

/// <summary>Values in float64 and the absolute error allowed to a float32 computation of each.</summary>
internal sealed class Approximation(long count)
{
    /// <summary>The values.</summary>
    public double[] Value { get; } = new double[count];

    /// <summary>The error allowed to each.</summary>
    public double[] Bound { get; } = new double[count];

    /// <summary>Fails unless float32 results agree: equal infinities, NaN where NaN is expected, and the rest within the bounds.</summary>
    public void AssertClose(ReadOnlySpan<float> actual, string what)
    {
        Assert.Equal(Value.Length, actual.Length);
        for (var i = 0; i < actual.Length; i++)
        {
            AssertClose(i, actual[i], what);
        }
    }

    /// <summary>As <see cref="AssertClose(ReadOnlySpan{float}, string)"/>, reading a strided float32 view <c>[B, H, N, D]</c>.</summary>
    public unsafe void AssertClose(TensorView actual, string what)
    {
        Assert.Equal(Value.Length, actual.Batch * actual.Heads * actual.Length * actual.Width);
        var at = 0;
        for (long b = 0; b < actual.Batch; b++)
        {
            for (long h = 0; h < actual.Heads; h++)
            {
                for (long i = 0; i < actual.Length; i++)
                {
                    for (long d = 0; d < actual.Width; d++)
                    {
                        AssertClose(at++, actual.Row(b, h, i)[d], what);
                    }
                }
            }
        }
    }

    private void AssertClose(int index, float actual, string what)
    {
        var expected = Value[index];
        var close = double.IsNaN(expected) ? float.IsNaN(actual)
            : double.IsInfinity(expected) ? actual == expected
            : Math.Abs(actual - expected) <= Bound[index] + 1e-37;
        Assert.True(close, $"{what}[{index}]: {expected:R} expected, {actual:R} found, off by {Math.Abs(actual - expected):G3} where {Bound[index]:G3} is allowed.");
    }
}

/// <summary>Statistics of the rows <c>[B, H, Nq]</c> in float64.</summary>
internal sealed class ReferenceStatistics(long rows, long keys, double[] weights)
{
    public Approximation Entropy { get; } = new(rows);

    public Approximation Maximum { get; } = new(rows);

    public int[] MaximumKey { get; } = [.. Enumerable.Repeat(-1, (int)rows)];

    public Approximation MeanDistance { get; } = new(rows);

    public Approximation SetMass { get; } = new(rows);

    /// <summary>The largest error allowed to a weight of each row.</summary>
    public double[] WeightBound { get; } = new double[rows];

    /// <summary>Fails unless the keys hold the rows' largest weights; where weights are equal within the error any of them will do.</summary>
    public void AssertMaximumKeys(ReadOnlySpan<int> actual)
    {
        for (var row = 0; row < rows; row++)
        {
            if (MaximumKey[row] < 0 || double.IsNaN(Maximum.Value[row]))
            {
                Assert.True(MaximumKey[row] >= 0 || actual[row] == -1, $"The row {row} has no pair and its largest weight is said to be at {actual[row]}.");
                continue;
            }

            Assert.InRange(actual[row], 0, keys - 1);
            var weight = weights[(row * keys) + actual[row]];
            Assert.True(
                weight >= Maximum.Value[row] - (2 * WeightBound[row]),
                $"The largest weight of row {row} is {Maximum.Value[row]:R} at {MaximumKey[row]}, not {weight:R} at {actual[row]}.");
        }
    }

    /// <summary>Fails unless the top-k lists are the largest weights in descending order, padded with zeros and -1.</summary>
    public void AssertTop(ReadOnlySpan<float> topWeights, ReadOnlySpan<int> topKeys, int count)
    {
        for (var row = 0; row < rows; row++)
        {
            var sorted = weights.AsSpan((int)(row * keys), (int)keys).ToArray();
            Array.Sort(sorted, (x, y) => y.CompareTo(x));
            var seen = new HashSet<int>();
            for (var t = 0; t < count; t++)
            {
                var (weight, key) = (topWeights[(row * count) + t], topKeys[(row * count) + t]);
                var expected = t < keys ? sorted[t] : 0;
                Assert.True(Math.Abs(weight - expected) <= (2 * WeightBound[row]) + 1e-37, $"Weight {t} of the largest of row {row}: {expected:R} expected, {weight:R} found.");
                if (key == -1)
                {
                    Assert.True(expected <= 2.4e-38, $"Place {t} of the largest weights of row {row} is empty; {expected:R} belongs there.");
                    continue;
                }

                Assert.InRange(key, 0, keys - 1);
                Assert.True(seen.Add(key), $"The key {key} stands twice among the largest weights of row {row}.");
                Assert.True(Math.Abs(weights[(row * keys) + key] - weight) <= (2 * WeightBound[row]) + 1e-37, $"The weight said to be at key {key} of row {row} is not there.");
                Assert.True(t == 0 || weight <= topWeights[(row * count) + t - 1], $"The largest weights of row {row} do not descend.");
            }
        }
    }
}

/// <summary>Gradients in float64, in the expanded shapes: nothing is summed over broadcast dimensions.</summary>
internal sealed class ReferenceGradients(ReferenceInputs inputs)
{
    /// <summary><c>[B, H, Nq, D]</c>.</summary>
    public Approximation Query { get; } = new(inputs.Query.Length);

    /// <summary><c>[B, Hkv, Nk, D]</c>.</summary>
    public Approximation Key { get; } = new(inputs.Key.Length);

    /// <summary><c>[B, Hkv, Nk, Dv]</c>.</summary>
    public Approximation Value { get; } = new(inputs.Value.Length);

    /// <summary><c>[B, H, Nq, Nk]</c>: of the scores before the modifier.</summary>
    public Approximation Bias { get; } = new(inputs.Batch * inputs.Heads * inputs.Queries * inputs.Keys);

    /// <summary><c>[B, H, Nk]</c>.</summary>
    public Approximation KeyBias { get; } = new(inputs.Batch * inputs.Heads * inputs.Keys);

    /// <summary><c>[H]</c>.</summary>
    public Approximation Sinks { get; } = new(inputs.Heads);

    /// <summary><c>[H]</c>.</summary>
    public Approximation AlibiSlopes { get; } = new(inputs.Heads);

    /// <summary><c>[B, H, Nq, R]</c>.</summary>
    public Approximation LowRankQuery { get; } = new(inputs.Batch * inputs.Heads * inputs.Queries * inputs.Rank);

    /// <summary><c>[B, H, Nk, R]</c>.</summary>
    public Approximation LowRankKey { get; } = new(inputs.Batch * inputs.Heads * inputs.Keys * inputs.Rank);

    /// <summary>The dense bias's gradient summed over the dimensions of stride zero, by offset from the first element.</summary>
    public Approximation FoldBias(BiasView view) => Fold(view, Bias, inputs.Queries);

    /// <summary>The per-key bias's gradient summed over the dimensions of stride zero, by offset from the first element.</summary>
    public Approximation FoldKeyBias(BiasView view) => Fold(view, KeyBias, 1);

    private Approximation Fold(BiasView view, Approximation expanded, long queries)
    {
        long Offset(long b, long h, long i, long j) => (b * view.BatchStride) + (h * view.HeadStride) + (i * view.QueryStride) + (j * view.KeyStride);
        var folded = new Approximation(inputs.Batch * inputs.Heads * queries * inputs.Keys == 0 ? 0 : Offset(inputs.Batch - 1, inputs.Heads - 1, queries - 1, inputs.Keys - 1) + 1);
        var terms = Math.Max(1, expanded.Value.Length / Math.Max(1, folded.Value.Length));
        long at = 0;
        for (long b = 0; b < inputs.Batch; b++)
        {
            for (long h = 0; h < inputs.Heads; h++)
            {
                for (long i = 0; i < queries; i++)
                {
                    for (long j = 0; j < inputs.Keys; j++, at++)
                    {
                        folded.Value[Offset(b, h, i, j)] += expanded.Value[at];
                        folded.Bound[Offset(b, h, i, j)] += expanded.Bound[at] + (4 * Math.Sqrt(terms) / (1 << 24) * Math.Abs(expanded.Value[at]));
                    }
                }
            }
        }

        return folded;
    }
}

/// <summary>Where a row stands: its sequence, its place in it, its aligned position, and the keys of the sequence.</summary>
internal readonly record struct RowPlace(bool Exists, int Sequence, long Query, long Position, long FirstKey, long Keys);

/// <summary>The numbers of a problem read into dense float64 arrays, expanded over broadcast dimensions.</summary>
internal sealed unsafe class ReferenceInputs
{
    public ReferenceInputs(in AttentionArguments arguments)
    {
        Arguments = arguments;
        var a = arguments;
        (Batch, Heads, Queries, Width) = (a.Query.Batch, a.Query.Heads, a.Query.Length, a.Query.Width);
        (KeyHeads, Keys, ValueWidth) = (a.Key.Heads, a.Key.Length, a.Value.Width);
        Group = KeyHeads == 0 ? 1 : Heads / KeyHeads;
        Query = Read(a.Query);
        Key = Read(a.Key);
        Value = Read(a.Value);
        Rank = a.LowRankQuery.IsGiven ? a.LowRankQuery.Width : 0;
        LowRankQuery = a.LowRankQuery.IsGiven ? Read(a.LowRankQuery) : null;
        LowRankKey = a.LowRankKey.IsGiven ? Read(a.LowRankKey) : null;
        Bias = a.Bias.IsGiven ? Read(a.Bias, Queries) : null;
        KeyBias = a.KeyBias.IsGiven ? Read(a.KeyBias, 1) : null;
        Sinks = a.Sinks == null ? null : [.. new ReadOnlySpan<float>(a.Sinks, (int)Heads).ToArray()];
        AlibiSlopes = a.AlibiSlopes == null ? null : [.. new ReadOnlySpan<float>(a.AlibiSlopes, (int)Heads).ToArray()];
    }

    public AttentionArguments Arguments { get; }

    public long Batch { get; }

    public long Heads { get; }

    public long KeyHeads { get; }

    public long Group { get; }

    public long Queries { get; }

    public long Keys { get; }

    public long Width { get; }

    public long ValueWidth { get; }

    public long Rank { get; }

    public double[] Query { get; }

    public double[] Key { get; }

    public double[] Value { get; }

    public double[]? Bias { get; }

    public double[]? KeyBias { get; }

    public double[]? Sinks { get; }

    public double[]? AlibiSlopes { get; }

    public double[]? LowRankQuery { get; }

    public double[]? LowRankKey { get; }

    public long RowIndex(long b, long h, long i) => (((b * Heads) + h) * Queries) + i;

    public long QueryIndex(long b, long h, long i, long d) => (RowIndex(b, h, i) * Width) + d;

    public long KeyIndex(long b, long kv, long j, long d) => (((((b * KeyHeads) + kv) * Keys) + j) * Width) + d;

    public long ValueIndex(long b, long kv, long j, long d) => (((((b * KeyHeads) + kv) * Keys) + j) * ValueWidth) + d;

    public bool InKeySet(long b, long j) => Arguments.Statistics.KeySet != null && Arguments.Statistics.KeySet[(b * Arguments.Statistics.KeySetBatchStride) + j] != 0;

    /// <summary>What a ReLU weight is divided by.</summary>
    public double ReluCount(RowPlace place) => Arguments.Causal == Causality.None ? place.Keys : place.Position + 1;

    public RowPlace PlaceOf(long b, long i)
    {
        var a = Arguments;
        long firstQuery = 0, firstKey = 0, sequence = b, queries = Queries, keys = Keys;
        if (a.QueryOffsets != null)
        {
            sequence = -1;
            for (var s = 0; s < a.Sequences; s++)
            {
                sequence = i >= a.QueryOffsets[s] && i < a.QueryOffsets[s + 1] ? s : sequence;
            }

            if (sequence < 0)
            {
                return default;
            }

            (firstQuery, queries) = (a.QueryOffsets[sequence], a.QueryOffsets[sequence + 1] - a.QueryOffsets[sequence]);
            (firstKey, keys) = (a.KeyOffsets[sequence], a.KeyOffsets[sequence + 1] - a.KeyOffsets[sequence]);
        }
        else
        {
            queries = a.QueryLengths == null ? Queries : a.QueryLengths[b];
            keys = a.KeyLengths == null ? Keys : a.KeyLengths[b];
        }

        var query = i - firstQuery;
        var alignment = a.Causal == Causality.None ? a.Alignment : a.Causal;
        var position = a.QueryPositions != null ? a.QueryPositions[(b * Queries) + i] : alignment == Causality.AlignedToStart ? query : query + keys - queries;
        return new RowPlace(query < queries, (int)sequence, query, position, firstKey, keys);
    }

    public void ForEachPair(Action<long, long, long, long> action)
    {
        for (long b = 0; b < Batch; b++)
        {
            for (long h = 0; h < Heads; h++)
            {
                for (long i = 0; i < Queries; i++)
                {
                    for (long j = 0; j < Keys; j++)
                    {
                        action(b, h, i, j);
                    }
                }
            }
        }
    }

    /// <summary>A view of any element type, dense and in float64.</summary>
    public static double[] Read(TensorView view)
    {
        var numbers = new double[view.Batch * view.Heads * view.Length * view.Width];
        var at = 0;
        for (long b = 0; b < view.Batch; b++)
        {
            for (long h = 0; h < view.Heads; h++)
            {
                for (long i = 0; i < view.Length; i++)
                {
                    for (long d = 0; d < view.Width; d++)
                    {
                        var offset = (b * view.BatchStride) + (h * view.HeadStride) + (i * view.RowStride) + d;
                        numbers[at++] = view.Type switch
                        {
                            ElementType.Float32 => ((float*)view.Data)[offset],
                            ElementType.Float16 => (double)((Half*)view.Data)[offset],
                            _ => BitConverter.Int32BitsToSingle(((ushort*)view.Data)[offset] << 16),
                        };
                    }
                }
            }
        }

        return numbers;
    }

    private double[] Read(BiasView view, long queries)
    {
        var numbers = new double[Batch * Heads * queries * Keys];
        var at = 0;
        for (long b = 0; b < Batch; b++)
        {
            for (long h = 0; h < Heads; h++)
            {
                for (long i = 0; i < queries; i++)
                {
                    for (long j = 0; j < Keys; j++)
                    {
                        numbers[at++] = ((float*)view.Data)[(b * view.BatchStride) + (h * view.HeadStride) + (i * view.QueryStride) + (j * view.KeyStride)];
                    }
                }
            }
        }

        return numbers;
    }
}
