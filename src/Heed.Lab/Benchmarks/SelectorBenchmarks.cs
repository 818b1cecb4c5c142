using Heed.Lab.Mechanisms;
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
    /// <summary>The longest problem that dense peers are run on: beyond it a single dense run takes many seconds.</summary>
    public long LongestDense { get; init; } = 16384;

    /// <summary>The longest problem that libtorch is given a mask for: it reads H x N x N booleans and makes as many floats of them.</summary>
    public long LongestMasked { get; init; } = 4096;

    /// <summary>The aim on the whole call beside dense Heed at the longest length where that is run; null: none.</summary>
    public Aim? WholeAim { get; init; }

    /// <summary>The largest share of the whole call that selection may take at <see cref="SelectionShareAt"/>; null: none.</summary>
    public double? SelectionShare { get; init; }

    /// <summary>The length at which that is asked; null: the longest.</summary>
    public long? SelectionShareAt { get; init; }

    /// <summary>The largest growth exponent of the whole call; null: none.</summary>
    public double? Exponent { get; init; }

    /// <summary>The shortest length that counts for the exponent.</summary>
    public long ExponentFrom { get; init; } = 8192;
}

/// <summary>What all sparse mechanisms are asked: selection and attention apart, beside dense Heed and beside libtorch with the same pairs as a mask, and how the whole grows.</summary>
internal static class SelectorBenchmarks
{
    private const double ShareOfTime = 0.35;

    /// <summary>The rows <c>family/whole</c> (beside dense Heed), <c>family/selection</c> and <c>family/attention</c> (beside the whole call), <c>family/masked</c> (beside libtorch with the same pairs as a
    /// boolean mask) of each length, and <c>family/growth</c>.</summary>
    /// <param name="context">The run.</param>
    /// <param name="problem">What is measured.</param>
    public static IEnumerable<BenchmarkResult> Rows(BenchmarkContext context, SelectorProblem problem)
    {
        var lengths = context.Quick ? problem.Lengths.Take(1).ToList() : problem.Lengths;
        var longestDense = lengths.Where(length => length <= problem.LongestDense).DefaultIfEmpty().Max();
        var times = new List<(long Length, double Milliseconds)>();
        foreach (var length in lengths)
        {
            // The rows are made by one method that returns them all: a dispose scope must not stay open while the caller works.
            var rows = RowsOf(context, problem, length, length == longestDense, length == (problem.SelectionShareAt ?? lengths[^1]));
            times.Add((length, rows[0].Milliseconds));
            foreach (var row in rows)
            {
                yield return row;
            }
        }

        if (Growth(context, problem.Family, times, problem.ExponentFrom, problem.Exponent) is { } growth)
        {
            yield return growth;
        }
    }

    /// <summary>The row <c>family/growth</c>: the exponent fitted to the times of the longer problems. Null where fewer than two count.</summary>
    /// <param name="context">The run.</param>
    /// <param name="family">The family's name.</param>
    /// <param name="times">Measured times by length.</param>
    /// <param name="from">The shortest length that counts.</param>
    /// <param name="most">The aim; null: none.</param>
    public static BenchmarkResult? Growth(BenchmarkContext context, string family, IEnumerable<(long Length, double Milliseconds)> times, long from, double? most)
    {
        if (times.Where(time => time.Length >= from).ToList() is not { Count: > 1 } points)
        {
            return null;
        }

        var exponent = Math.Round(Slope(points), 3);
        return new(
            $"{family}/growth", $"N{points[0].Length} to N{points[^1].Length}", context.Threads, points[^1].Milliseconds, "none", null, null, null, null,
            most is { } limit ? $"exponent <= {limit:0.##}" : null, most is null ? null : context.Judge(exponent <= most), exponent);
    }

    /// <summary>The exponent of growth: the slope of log time over log length, by least squares.</summary>
    public static double Slope(IReadOnlyList<(long Length, double Milliseconds)> times)
    {
        var points = times.Select(time => (X: Math.Log(time.Length), Y: Math.Log(time.Milliseconds))).ToList();
        var (x, y) = (points.Average(point => point.X), points.Average(point => point.Y));
        return points.Sum(point => (point.X - x) * (point.Y - y)) / points.Sum(point => (point.X - x) * (point.X - x));
    }

    private static List<BenchmarkResult> RowsOf(BenchmarkContext context, SelectorProblem problem, long length, bool judged, bool longest)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (query, key, value) = problem.Inputs?.Invoke(length) ?? RandomInputs(problem, length);
        var dense = problem.Causal ? AttentionOptions.CausalSelf : AttentionOptions.Default;
        var selector = problem.Selector(length);
        var sparse = dense with { Selector = selector };
        var selected = selector.Select(query, key, value, dense);
        var shape = DenseBenchmarks.Shape(problem.Heads, length, problem.Width, problem.Causal);
        var hasDense = length <= problem.LongestDense;
        List<BenchmarkResult> rows =
        [
            context.Row(
                $"{problem.Family}/whole", shape, Whole, hasDense ? "Heed dense" : $"none (Heed dense is run up to {problem.LongestDense} tokens)", hasDense ? Dense : null,
                judged ? problem.WholeAim : null, share: ShareOfTime),
            context.Row(
                $"{problem.Family}/selection", shape, Select, "the whole call", Whole, longest && problem.SelectionShare is { } most ? Aim.ShareOfPeer(most) : null, share: ShareOfTime),
            context.Row($"{problem.Family}/attention", shape, Attend, "the whole call", Whole, share: ShareOfTime),
        ];
        if (length <= problem.LongestMasked && selected.Key.size(2) == length)
        {
            rows.Add(Masked());
        }

        return rows;

        void Whole() => Attention.Compute(query, key, value, sparse).Dispose();

        void Dense() => Attention.Compute(query, key, value, dense).Dispose();

        void Attend() => Attention.Compute(selected.Query, selected.Key, selected.Value, selected.Options).Dispose();

        void Select()
        {
            using var inner = NewDisposeScope();
            selector.Select(query, key, value, dense);
        }

        BenchmarkResult Masked()
        {
            var name = $"{problem.Family}/masked";
            // The booleans and the floats that libtorch makes of them.
            var needed = problem.Heads * length * length * (sizeof(bool) + sizeof(float));
            if (needed > MachineMemory.Available() / 2)
            {
                return context.Row(name, shape, Whole, $"none (libtorch with a mask needs {needed / 1e9:0.0} GB)", null, share: ShareOfTime);
            }

            using var mask = PairsOf(selected);
            return context.Row(
                name, shape, Whole, "libtorch with the same pairs as a boolean mask", () => nn.functional.scaled_dot_product_attention(query, key, value, mask).Dispose(), share: ShareOfTime);
        }
    }

    /// <summary>The pairs as libtorch takes them, boolean <c>[1, H, Nq, Nk]</c>.</summary>
    private static Tensor PairsOf(AttentionCall call)
    {
        var (heads, queries, keys) = ((int)call.Query.size(1), call.Query.size(2), call.Key.size(2));
        var allowed = new bool[heads * queries * keys];
        for (var head = 0; head < heads; head++)
        {
            var start = head * queries * keys;
            ComputedPairs.Tell(call, 0, head, (query, first, last) => allowed.AsSpan((int)(start + (query * keys) + first), (int)(last - first + 1)).Fill(true));
        }

        return tensor(allowed, [1, heads, queries, keys]);
    }

    private static (Tensor Query, Tensor Key, Tensor Value) RandomInputs(SelectorProblem problem, long length)
    {
        using var generator = new Generator(1);
        Tensor Make() => randn([1, problem.Heads, length, problem.Width], generator: generator);
        return (Make(), Make(), Make());
    }
}
