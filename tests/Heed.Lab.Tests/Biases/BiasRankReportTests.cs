using Heed.Lab.Biases;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Biases;

public sealed class BiasRankReportTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-rank-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void A_bias_of_known_rank_is_told_as_such()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var bias = matmul(randn(2, 24, 4), randn(2, 4, 30)) + 50;

        var report = BiasRankReport.Of(bias, cancellation: TestContext.Current.CancellationToken);

        Assert.Equal((2, 24L, 30L), (report.Heads, report.Queries, report.Keys));
        // The constant holds nearly all the energy, and none of the attention.
        Assert.Equal(1, report.Thresholds[^1].Rank);
        Assert.InRange(report.Thresholds[^1].RankWithoutRowMeans, 2, 4);
        Assert.True(report.Ranks[0].OutputError > 0.05);
        Assert.True(report.Ranks.Single(row => row.Rank == 4).OutputErrorWithoutRowMeans < 1e-4);
        Assert.Equal(report.Ranks.First(row => row.OutputErrorWithoutRowMeans <= 1e-4).Rank, report.RankWithin(1e-4));
        Assert.Equal(report.Ranks.Select(row => row.Rank).Order(), report.Ranks.Select(row => row.Rank));
        Assert.NotEmpty(report.Figure("errors").Png());
    }

    [Fact]
    public void A_file_is_read_by_the_name_of_its_tensor()
    {
        using var scope = NewDisposeScope();
        var (one, two) = (Path.Combine(_folder, "one.safetensors"), Path.Combine(_folder, "two.safetensors"));
        SafetensorsWriter.Write(one, new Dictionary<string, Tensor> { ["bias"] = eye(6) });
        SafetensorsWriter.Write(two, new Dictionary<string, Tensor> { ["a"] = eye(6), ["b"] = ones(3) });

        Assert.Equal(6, BiasRankReport.OfFile(one, null, cancellation: TestContext.Current.CancellationToken).Keys);
        Assert.Equal(1, BiasRankReport.OfFile(two, "a", cancellation: TestContext.Current.CancellationToken).Heads);
        Assert.Contains("say which one", Assert.Throws<ArgumentException>(() => BiasRankReport.OfFile(two, null, cancellation: TestContext.Current.CancellationToken)).Message, StringComparison.Ordinal);
        Assert.Contains("no tensor 'c'", Assert.Throws<ArgumentException>(() => BiasRankReport.OfFile(two, "c", cancellation: TestContext.Current.CancellationToken)).Message, StringComparison.Ordinal);
        Assert.Contains("[H, Nq, Nk]", Assert.Throws<ArgumentException>(() => BiasRankReport.OfFile(two, "b", cancellation: TestContext.Current.CancellationToken)).Message, StringComparison.Ordinal);
    }
}
