using Heed.Lab.Reproductions;
using Heed.Models;
using Heed.Models.Decoders;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>What it costs to look into a model and to change it: probes on the shipped reader beside its plain forward pass, and the memory of a trace.</summary>
internal static class ProbeBenchmarks
{
    // The project's aim for statistics of all heads.
    private const double MostOfForward = 1.5;

    private static bool s_isUsed;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context) => [.. Traces(context), .. Statistics(context)];

    private static IEnumerable<BenchmarkResult> Statistics(BenchmarkContext context)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        if (Reader() is not { } reader)
        {
            yield break;
        }

        using var pretrained = reader;
        var model = pretrained.Model;
        var ids = Ids(model, context);
        var shape = ShapeOf(model, ids);
        void Plain() => model.forward(ids).Dispose();
        Action With(Func<IDisposable> install) => () =>
        {
            using var installed = install();
            Plain();
        };

        using var everything = AttentionStatisticsProbe.OfEverything();
        yield return context.Row("probes/statistics of all heads", shape, With(() => model.Hooks.Install(everything)), "the model without", Plain, Aim.AtMost(MostOfForward));
        using var largest = AttentionStatisticsProbe.OfEverything(topCount: 8);
        yield return context.Row("probes/statistics and the 8 largest weights of every row", shape, With(() => model.Hooks.Install(largest)), "the model without", Plain);
        var residuals = new ResidualProbe();
        yield return context.Row("probes/sinks of the residual stream", shape, With(() => model.Hooks.Install(residuals)), "the model without", Plain);
        using var extreme = new ExtremeTokenProbe();
        yield return context.Row("probes/sink attention, values and residual peaks", shape, With(() => extreme.Install(model.Hooks)), "the model without", Plain);
    }

    private static IEnumerable<BenchmarkResult> Traces(BenchmarkContext context)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        if (Reader() is not { } reader)
        {
            yield break;
        }

        using var pretrained = reader;
        var model = pretrained.Model;
        var ids = Ids(model, context);
        void Plain() => model.forward(ids).Dispose();
        Action Traced(long megabytes) => () =>
        {
            using var trace = new ModelTrace(new() { Attention = TraceParts.All, Points = Enum.GetValues<StreamPoint>(), Budget = megabytes * 1_000_000 });
            using var installed = trace.Install(model.Hooks);
            Plain();
        };

        // What the pass takes anyhow is not the trace's. The pass is not at its largest where a trace is at its, so that the difference is a lower bound.
        long? Own(long megabytes)
        {
            _ = PairedTimer.ExactPeakGrowth(Traced(megabytes));
            return PairedTimer.ExactPeakGrowth(Traced(megabytes)) - PairedTimer.ExactPeakGrowth(Plain);
        }

        // Memory before time, which leaves holes in the heap that tensors would go to instead of into pages of their own: once in a process, with its first number of threads. The trace's memory does not depend on them.
        var budgets = context.Quick ? [16L] : new long[] { 64, 256 };
        var first = Interlocked.Exchange(ref s_isUsed, true) is false;
        foreach (var (megabytes, own) in budgets.Zip(budgets.Select(megabytes => first ? Own(megabytes) : null).ToArray()))
        {
            var row = context.Row($"probes/trace of everything within {megabytes} MB", ShapeOf(model, ids), Traced(megabytes), "the model without", Plain, share: 0.5) with { PeakBytes = null };
            yield return own is { } bytes ? row with { PeakBytes = Math.Max(0, bytes), Aim = $"peak <= {megabytes} MB", Met = context.Judge(bytes <= megabytes * 1_000_000) } : row;
        }
    }

    private static PretrainedModel? Reader() => ShippedReader.Folder() is { } folder ? PretrainedModel.Load(folder) : null;

    private static Tensor Ids(Decoder model, BenchmarkContext context)
    {
        using var generator = new Generator(1);
        return randint(0, model.Configuration.VocabularySize, [1, context.Quick ? 128 : 2048], dtype: ScalarType.Int64, generator: generator);
    }

    private static string ShapeOf(Decoder model, Tensor ids) => $"reader L{model.Configuration.Layers} H{model.Configuration.Heads} N{ids.shape[1]}";
}
