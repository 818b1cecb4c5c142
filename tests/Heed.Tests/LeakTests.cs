using Heed.Biases;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

/// <summary>Nothing else runs beside tests of this assembly: these watch the memory of the process.</summary>
public sealed class LeakTests
{
    private static readonly AttentionSite Site = new(0, AttentionKind.Self, "layer.0");

    [Fact]
    public void Ten_thousand_calls_leave_nothing_behind()
    {
        using var still = no_grad();
        using var mask = ones(32, 32, ScalarType.Bool).tril();
        using var lengths = tensor(new long[] { 20 });
        using var sinks = randn(4);
        using var gate = randn(1, 4, 32, 1);
        var (q, k, v) = (randn(1, 4, 32, 16), randn(1, 2, 32, 16), randn(1, 2, 32, 16));
        var options = new[]
        {
            AttentionOptions.Default,
            AttentionOptions.CausalSelf,
            new AttentionOptions { Mask = mask, Gate = gate },
            new AttentionOptions { Sinks = sinks, KeyLengths = lengths, Biases = [new AlibiBias(sinks)] },
        };
        var hooks = new AttentionHooks();
        using var probe = AttentionStatisticsProbe.OfEverything(topCount: 2);
        using var installed = hooks.Install(probe);
        StaysFlat(10, 1000, i =>
        {
            using var output = Attention.Compute(q, k, v, options[i % options.Length], Site, i % 10 == 0 ? hooks : null);
        });
        foreach (var tensor in new[] { q, k, v })
        {
            tensor.Dispose();
        }
    }

    [Fact]
    public void A_thousand_training_steps_leave_nothing_behind()
    {
        using var sinks = randn(4).requires_grad_();
        using var slopes = randn(4).requires_grad_();
        var (q, k, v) = (randn(2, 32, 4, 16).requires_grad_(), randn(2, 32, 2, 16).requires_grad_(), randn(2, 32, 2, 16).requires_grad_());
        var options = AttentionOptions.CausalSelf with { Sinks = sinks, Biases = [new AlibiBias(slopes)] };
        Tensor[] inputs = [q, k, v, sinks, slopes];
        StaysFlat(10, 100, i =>
        {
            // Half of the steps as most programs are written, half without any scope.
            using var scope = i % 2 == 0 ? NewDisposeScope() : null;
            using var tq = q.transpose(1, 2);
            using var tk = k.transpose(1, 2);
            using var tv = v.transpose(1, 2);
            using var output = Attention.Compute(tq, tk, tv, options);
            using var loss = output.sum();
            loss.backward();
            foreach (var input in inputs)
            {
                using (input.grad)
                {
                    input.grad = null;
                }
            }
        });
        foreach (var tensor in new[] { q, k, v })
        {
            tensor.Dispose();
        }
    }

    /// <summary>Live tensors and memory after the first round and after the last.</summary>
    private static void StaysFlat(int rounds, int steps, Action<int> step)
    {
        long tensors = 0, memory = 0;
        for (var round = 0; round < rounds; round++)
        {
            for (var i = 0; i < steps; i++)
            {
                step(i);
            }

            if (round == rounds / 5)
            {
                tensors = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
                memory = NativeBytes();
            }
        }

        Assert.Equal(tensors, DisposeScopeManager.Statistics.ThreadTotalLiveCount);

        // One leaked output a step would be 8 or 16 KiB: 13 to 64 MiB over the rounds that count.
        var grown = NativeBytes() - memory;
        Assert.True(grown < 6 << 20, $"the process has grown by {grown >> 10} KiB");
    }

    /// <summary>What the process holds beside the managed heap, whose size is the collector's own affair.</summary>
    private static long NativeBytes()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        GC.Collect();
        return Environment.WorkingSet - GC.GetGCMemoryInfo().TotalCommittedBytes;
    }
}
