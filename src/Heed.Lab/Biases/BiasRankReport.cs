using Heed.Biases;
using Heed.Lab.Figures;
using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Biases;

/// <summary>How much of a bias a rank keeps, and what it does to the output.</summary>
/// <param name="Rank">The rank.</param>
/// <param name="Energy">The least share of its energy that a head keeps.</param>
/// <param name="EnergyWithoutRowMeans">The same of the bias without its row means, which is what a softmax can see.</param>
/// <param name="OutputError">Relative error of the attention output with the bias cut as it is: the norm of the difference over that of the output.</param>
/// <param name="OutputErrorWithoutRowMeans">The same, the row means removed first.</param>
public sealed record RankRow(int Rank, double Energy, double EnergyWithoutRowMeans, double OutputError, double OutputErrorWithoutRowMeans);

/// <summary>The rank at which every head keeps a share of its energy.</summary>
/// <param name="Share">The share.</param>
/// <param name="Rank">The rank.</param>
/// <param name="RankWithoutRowMeans">The rank of the bias without its row means.</param>
public sealed record RankAt(double Share, int Rank, int RankWithoutRowMeans);

/// <summary>Which rank a stored bias needs (arXiv 2505.12044, section 3.3): energy per rank, with and without the part that a softmax cannot see, and the error of the output itself.</summary>
public sealed record BiasRankReport
{
    /// <summary>Number of heads.</summary>
    public required int Heads { get; init; }

    /// <summary>Number of queries.</summary>
    public required long Queries { get; init; }

    /// <summary>Number of keys.</summary>
    public required long Keys { get; init; }

    /// <summary>Ranks that keep the paper's shares of energy.</summary>
    public required IReadOnlyList<RankAt> Thresholds { get; init; }

    /// <summary>Energy and error of some ranks, ascending.</summary>
    public required IReadOnlyList<RankRow> Ranks { get; init; }

    /// <summary>The shares of energy that the paper takes.</summary>
    public static IReadOnlyList<double> Shares { get; } = [0.95, 0.99, 0.995];

    /// <summary>The smallest measured rank whose output error is at most a tolerance; null: none is.</summary>
    public int? RankWithin(double error) => Ranks.FirstOrDefault(row => row.OutputErrorWithoutRowMeans <= error)?.Rank;

    /// <summary>Measures a bias against normally distributed queries, keys and values.</summary>
    /// <param name="bias"><c>[H, Nq, Nk]</c> or <c>[Nq, Nk]</c>.</param>
    /// <param name="width">Width of the heads.</param>
    /// <param name="seed">Seed of queries, keys and values.</param>
    /// <param name="cancellation">Stops between two ranks.</param>
    /// <exception cref="ArgumentException">The bias has another shape, or is not finite.</exception>
    public static BiasRankReport Of(Tensor bias, int width = 32, int seed = 1, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(bias);
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var whole = SvdBias.Decompose(bias);
        using var centred = SvdBias.Decompose(bias, removeRowMeans: true);
        using var generator = new Generator((ulong)seed);
        var (queries, keys) = (bias.shape[^2], bias.shape[^1]);
        Tensor Make(long length) => randn([1, whole.Heads, length, width], generator: generator);
        var (query, key, value) = (Make(queries), Make(keys), Make(keys));
        var exact = Attention.Compute(query, key, value, new AttentionOptions { Biases = [new DenseBias(bias.to(ScalarType.Float32))] });
        var norm = exact.norm().item<float>();
        double Error(SvdBias decomposition, int rank)
        {
            using var inner = NewDisposeScope();
            return (Attention.Compute(query, key, value, new AttentionOptions { Biases = [decomposition.Truncate(rank)] }) - exact).norm().item<float>() / norm;
        }

        double Least(SvdBias decomposition, int rank) => Enumerable.Range(0, decomposition.Heads).Min(head => decomposition.Energy(head, rank));
        var thresholds = Shares.Select(share => new RankAt(share, whole.RankFor(share), centred.RankFor(share))).ToList();
        var ranks = new[] { 1, 2, 4, 8, 16, 32, 64, 128 }.Concat(thresholds.SelectMany(at => new[] { at.Rank, at.RankWithoutRowMeans })).Where(rank => rank <= whole.FullRank).Distinct().Order();
        var rows = new List<RankRow>();
        foreach (var rank in ranks)
        {
            cancellation.ThrowIfCancellationRequested();
            rows.Add(new(rank, Least(whole, rank), Least(centred, rank), Error(whole, rank), Error(centred, rank)));
        }

        return new() { Heads = whole.Heads, Queries = queries, Keys = keys, Thresholds = thresholds, Ranks = rows };
    }

    /// <summary>Reads a bias from a safetensors file and measures it.</summary>
    /// <param name="file">The file.</param>
    /// <param name="tensor">Name of its tensor; null: its only one.</param>
    /// <param name="width">Width of the heads.</param>
    /// <param name="cancellation">Stops between two ranks.</param>
    /// <exception cref="ArgumentException">There is no such tensor, or it is no bias.</exception>
    public static BiasRankReport OfFile(string file, string? tensor, int width = 32, CancellationToken cancellation = default)
    {
        using var scope = NewDisposeScope();
        using var reader = new SafetensorsReader(file);
        if (tensor is null && reader.Entries.Count != 1)
        {
            throw new ArgumentException($"'{file}' holds {reader.Entries.Count} tensors: say which one by --tensor ({string.Join(", ", reader.Entries.Keys.Take(5))} ...).");
        }

        var name = tensor ?? reader.Entries.Keys.Single();
        return reader.Entries.ContainsKey(name)
            ? Of(reader.Read(name), width, cancellation: cancellation)
            : throw new ArgumentException($"'{file}' has no tensor '{name}'; it has: {string.Join(", ", reader.Entries.Keys.Take(10))}.");
    }

    /// <summary>The errors over the rank, for a report.</summary>
    /// <param name="title">The figure's title.</param>
    public LineFigure Figure(string title)
    {
        double[] ranks = [.. Ranks.Select(row => Math.Log2(row.Rank))];
        static double Decades(double value) => Math.Log10(Math.Max(value, 1e-8));
        return new LineFigure(title, "log2 of the rank", "log10 of the relative output error",
        [
            new("bias as it is", ranks, [.. Ranks.Select(row => Decades(row.OutputError))], true),
            new("row means removed", ranks, [.. Ranks.Select(row => Decades(row.OutputErrorWithoutRowMeans))], true),
        ])
        {
            Width = 800, Height = 480,
        };
    }
}
