using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>A sparse mechanism to be measured over lengths.</summary>
/// <param name="Family">The family's name, first part of the rows' names.</param>
/// <param name="Selector">A new selector for a length.</param>
/// <param name="Lengths">Numbers of tokens, ascending.</param>
/// <param name="Heads">Heads.</param>
/// <param name="Width">Width of a head.</param>
/// <param name="Causal">Whether the mechanism and its peers are causal.</param>
/// <param name="Inputs">Queries, keys and values <c>[1, H, N, D]</c> of a length where random ones would be no fair test; null: random ones.</param>
internal sealed record SelectorProblem(
    string Family, Func<long, AttentionSelector> Selector, IReadOnlyList<long> Lengths, long Heads = 4, long Width = 64, bool Causal = true,
    Func<long, (Tensor Query, Tensor Key, Tensor Value)>? Inputs = null)
{
    /// <summary>The longest problem that dense peers are run on: beyond it a single dense run takes minutes.</summary>
    public long LongestDense { get; init; } = 16384;

    /// <summary>The longest problem that libtorch is given a boolean mask for, N x N bytes.</summary>
    public long LongestMasked { get; init; } = 8192;

    /// <summary>The aim on the whole call beside dense Heed at the longest length where that is run; null: none.</summary>
    public Aim? WholeAim { get; init; }

    /// <summary>The largest share of the whole call that selection may take at the longest length; null: none.</summary>
    public double? SelectionShare { get; init; }

    /// <summary>The largest growth exponent of the whole call; null: none.</summary>
    public double? Exponent { get; init; }

    /// <summary>The shortest length that counts for the exponent.</summary>
    public long ExponentFrom { get; init; } = 8192;
}

/// <summary>What all sparse mechanisms are asked: selection and attention apart, beside dense Heed and beside libtorch with the same pairs as a mask, and how the whole grows.</summary>
internal static class SelectorBenchmarks
{
    /// <summary>The rows <c>family/selection</c>, <c>family/attention</c>, <c>family/whole</c> (beside dense Heed), <c>family/masked</c> (beside libtorch with a boolean mask) of each length, and
    /// <c>family/growth</c>.</summary>
    public static IEnumerable<BenchmarkResult> Rows(BenchmarkContext context, SelectorProblem problem)
    {
        var lengths = context.Quick ? problem.Lengths.Take(1).ToList() : problem.Lengths;
        var times = new List<(long Length, double Milliseconds)>();
        foreach (var length in lengths)
        {
            using var scope = NewDisposeScope();
            using var quiet = no_grad();
            var (query, key, value) = problem.Inputs?.Invoke(length) ?? RandomInputs(problem, length);
            var dense = problem.Causal ? AttentionOptions.CausalSelf : AttentionOptions.Default;
            var selector = problem.Selector(length);
            var selected = selector.Select(query, key, value, dense);
            var shape = DenseBenchmarks.Shape(problem.Heads, length, problem.Width, problem.Causal);
            void Whole() => Attention.Compute(query, key, value, dense with { Selector = selector }).Dispose();
            var whole = context.Row(
                $"{problem.Family}/whole", shape, Whole, "Heed dense", length <= problem.LongestDense ? () => Attention.Compute(query, key, value, dense).Dispose() : null,
                length == lengths.Where(some => some <= problem.LongestDense).DefaultIfEmpty().Max() ? problem.WholeAim : null);
            yield return whole;
            times.Add((length, whole.Milliseconds));
            var selection = context.Row($"{problem.Family}/selection", shape, () =>
            {
                using var inner = NewDisposeScope();
                selector.Select(query, key, value, dense);
            }, "the whole call", Whole, length == lengths[^1] && problem.SelectionShare is { } share ? new(1 / share) : null);
            yield return selection;
            yield return context.Row(
                $"{problem.Family}/attention", shape, () => Attention.Compute(selected.Query, selected.Key, selected.Value, selected.Options).Dispose(), "the whole call", Whole);
            if (length <= problem.LongestMasked && selected.Key.shape[2] == length)
            {
                using var mask = selected.Pairs();
                yield return context.Row(
                    $"{problem.Family}/masked", shape, Whole, "libtorch with the same pairs as a boolean mask",
                    () => nn.functional.scaled_dot_product_attention(query, key, value, mask).Dispose());
            }
        }

        if (times.Where(time => time.Length >= problem.ExponentFrom).ToList() is { Count: > 1 } points)
        {
            var exponent = Slope(points);
            yield return new(
                $"{problem.Family}/growth", $"N {points[0].Length} to {points[^1].Length}", context.Threads, points[^1].Milliseconds, "none", null, null, null, null,
                problem.Exponent is { } most ? $"exponent <= {most:0.##}" : null, problem.Exponent is { } limit ? exponent <= limit : null, Math.Round(exponent, 3));
        }
    }

    /// <summary>The exponent of growth: the slope of log time over log length, by least squares.</summary>
    public static double Slope(IReadOnlyList<(long Length, double Milliseconds)> times)
    {
        var points = times.Select(time => (X: Math.Log(time.Length), Y: Math.Log(time.Milliseconds))).ToList();
        var (x, y) = (points.Average(point => point.X), points.Average(point => point.Y));
        return points.Sum(point => (point.X - x) * (point.Y - y)) / points.Sum(point => (point.X - x) * (point.X - x));
    }

    private static (Tensor Query, Tensor Key, Tensor Value) RandomInputs(SelectorProblem problem, long length)
    {
        using var generator = new Generator(1);
        Tensor Make() => randn([1, problem.Heads, length, problem.Width], generator: generator);
        return (Make(), Make(), Make());
    }
}
