using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>What does not fit together is refused with one sentence, before anything is written.</summary>
public unsafe class CheckedProblemTests
{
    private delegate void Change(ref AttentionArguments arguments);

    [Fact]
    public void Shapes_that_do_not_fit_are_refused()
    {
        Refused("same batch size", (ref a) => a.Key = a.Key with { Batch = 1 });
        Refused("same width", (ref a) => a.Key = a.Key with { Width = 3 });
        Refused("same heads and length", (ref a) => a.Value = a.Value with { Length = 6 });
        Refused("cannot share", (ref a) =>
        {
            a.Key = a.Key with { Heads = 3 };
            a.Value = a.Value with { Heads = 3 };
        });
        Refused("points to no memory", (ref a) => a.Query = a.Query with { Data = 0 });
        Refused("output must be", (ref a) => a.Output = a.Output with { Length = 4 });
        Refused("output must be float32", (ref a) => a.Output = a.Output with { Type = ElementType.Float16 });
        Refused("query must be float32", (ref a) => a.Query = a.Query with { Type = ElementType.BFloat16 });
        Refused("share memory", (ref a) => a.Output = a.Output with { HeadStride = 0 });
        Refused("out of range", (ref a) => a.Key = a.Key with { Length = -1 });
    }

    [Fact]
    public void Options_that_make_no_sense_are_refused()
    {
        Refused("scale must be finite", (ref a) => a.Scale = float.NaN);
        Refused("softcap", (ref a) => a.Softcap = -1);
        Refused("window", (ref a) => a.WindowBefore = -2);
        Refused("threads", (ref a) => a.Threads = -1);
        Refused("normalizer", (ref a) => a.Normalizer = (Normalizer)9);
        Refused("causality", (ref a) => a.Causal = (Causality)9);
        Refused("Sinks join the sum of a softmax", (ref a) =>
        {
            a.Sinks = (float*)a.Query.Data;
            a.Normalizer = Normalizer.Sigmoid;
        });
        Refused("log-sum-exp exists for softmax only", (ref a) => a.Normalizer = Normalizer.Sigmoid);
        Refused("Row statistics are defined for softmax", (ref a) =>
        {
            a.Normalizer = Normalizer.ReluOverPosition;
            a.Statistics.Entropy = a.LogSumExp;
        });
        Refused("From 0 to 64", (ref a) => a.Statistics.TopCount = 65);
        Refused("both TopWeights and TopKeys", (ref a) => a.Statistics.TopCount = 2);
        Refused("KeySet", (ref a) => a.Statistics.SetMass = a.LogSumExp);
    }

    [Fact]
    public void Biases_and_masks_that_do_not_fit_are_refused()
    {
        Refused("key stride", (ref a) => a.Bias = new(a.Query.Data, 0, 0, 0, 2));
        Refused("query stride of 0", (ref a) => a.KeyBias = new(a.Query.Data, 0, 0, 1, 1));
        Refused("one is missing", (ref a) => a.LowRankQuery = a.Query);
        Refused("Low-rank factors must be", (ref a) =>
        {
            a.LowRankQuery = a.Query;
            a.LowRankKey = a.Query;
        });
        Refused("block mask covers", (ref a) => a.BlockMask = new BlockMask(1, 1, 5, 8, 4, 4, [0, 1, 1], [0]));
        Refused("lists for 3 batch items", (ref a) => a.BlockMask = new BlockMask(3, 1, 5, 7, 5, 7, [0, 1, 1, 1], [0]));
    }

    [Fact]
    public void Lengths_and_offsets_that_do_not_fit_are_refused()
    {
        var numbers = stackalloc long[] { 0, 4, 3, 9 };
        var (start, end) = ((nint)numbers, (nint)(numbers + 3));
        Refused("lies outside 0 to 7", (ref a) => a.KeyLengths = (long*)end);
        Refused("Lengths per batch item and packed sequences", (ref a) =>
        {
            Pack(ref a, start, 1);
            a.KeyLengths = (long*)start;
        });
        Refused("one is missing", (ref a) => a.QueryOffsets = (long*)start);
        Refused("batch of one", (ref a) =>
        {
            a.QueryOffsets = (long*)start;
            a.KeyOffsets = (long*)start;
        });
        Refused("must not decrease", (ref a) => Pack(ref a, start, 2));
        Refused("lie from 0 to 5", (ref a) => Pack(ref a, start, 3));
        Refused("must not be negative", (ref a) => Pack(ref a, start, -1));
    }

    private static void Pack(ref AttentionArguments a, nint offsets, int sequences)
    {
        a.Query = a.Query with { Batch = 1 };
        a.Key = a.Key with { Batch = 1 };
        a.Value = a.Value with { Batch = 1 };
        a.Output = a.Output with { Batch = 1 };
        a.QueryOffsets = (long*)offsets;
        a.KeyOffsets = (long*)offsets;
        a.Sequences = sequences;
    }

    private static void Refused(string words, Change change)
    {
        using var problem = new AttentionProblem(new ProblemSpec { Batch = 2, KeyHeads = 2, Group = 2 });
        change(ref problem.Arguments);
        var thrown = Assert.ThrowsAny<ArgumentException>(() => FusedAttention.Forward(problem.Arguments));
        Assert.Contains(words, thrown.Message, StringComparison.Ordinal);
        Assert.True(float.IsNaN(*problem.Arguments.Output.Row(0, 0, 0)));
    }
}
