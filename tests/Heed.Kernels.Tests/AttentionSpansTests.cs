using System.Numerics.Tensors;
using Xunit;

namespace Heed.Kernels.Tests;

public unsafe class AttentionSpansTests
{
    private static readonly AttentionShape s_shape = new(Batch: 2, Heads: 4, Queries: 9, Keys: 13, Width: 6) { KeyHeads = 2, ValueWidth = 5 };

    private static readonly AttentionSpanOptions s_options = new()
    {
        Causal = Causality.AlignedToEnd, WindowBefore = 7, Softcap = 3, Scale = 0.3f, Threads = 2,
        Sinks = new[] { 0.5f, -1, 0, 2 }, AlibiSlopes = new[] { 0.1f, 0.2f, 0, -0.1f },
    };

    [Fact]
    public void Spans_agree_with_the_reference_forward_and_backward()
    {
        using var problem = Problem();
        var (q, k, v) = (Dense(problem.Arguments.Query), Dense(problem.Arguments.Key), Dense(problem.Arguments.Value));
        var (output, logSumExp) = (new float[2 * 4 * 9 * 5], new float[2 * 4 * 9]);
        AttentionSpans.Forward(q, k, v, s_shape, output, s_options, logSumExp);
        var expected = problem.Reference();
        expected.Output.AssertClose(output, "output");
        expected.LogSumExp.AssertClose(logSumExp, "log-sum-exp");

        problem.WantGradients();
        problem.Gradients.LogSumExp = null;
        var gradient = Dense(problem.Gradients.Output);
        var (gq, gk, gv, gs, ga) = (new float[q.Length], new float[k.Length], new float[v.Length], new float[4], new float[4]);
        AttentionSpans.Backward(q, k, v, output, logSumExp, gradient, s_shape, gq, gk, gv, s_options, gs, ga);
        var gradients = problem.ReferenceGradients(expected);
        gradients.Query.AssertClose(gq, "query gradient");
        gradients.Key.AssertClose(gk, "key gradient");
        gradients.Value.AssertClose(gv, "value gradient");
        gradients.Sinks.AssertClose(gs, "sink gradient");
        gradients.AlibiSlopes.AssertClose(ga, "slope gradient");
    }

    [Fact]
    public void Tensor_spans_of_any_strides_agree_with_the_reference()
    {
        using var problem = Problem();
        var (q, k, v) = (HeadsInside(problem.Arguments.Query), HeadsInside(problem.Arguments.Key), HeadsInside(problem.Arguments.Value));
        var (output, outputLengths, outputStrides) = (new float[2 * 9 * 4 * 5], (nint[])[2, 4, 9, 5], (nint[])[9 * 4 * 5, 5, 4 * 5, 1]);
        var logSumExp = new float[2 * 4 * 9];
        var result = new TensorSpan<float>(output, outputLengths, outputStrides);
        AttentionSpans.Forward(ReadOnly(q), ReadOnly(k), ReadOnly(v), result, s_options, logSumExp);
        var expected = problem.Reference();
        fixed (float* o = output)
        {
            expected.Output.AssertClose(new TensorView((nint)o, 2, 4, 9, 5, 9 * 4 * 5, 5, 4 * 5), "output");
        }

        problem.WantGradients();
        problem.Gradients.LogSumExp = null;
        var g = HeadsInside(problem.Gradients.Output);
        var (gq, gk, gv) = (new float[q.Data.Length], new float[k.Data.Length], new float[v.Data.Length]);
        AttentionSpans.Backward(
            ReadOnly(q), ReadOnly(k), ReadOnly(v), result, logSumExp, ReadOnly(g),
            new TensorSpan<float>(gq, q.Lengths, q.Strides), new TensorSpan<float>(gk, k.Lengths, k.Strides), new TensorSpan<float>(gv, v.Lengths, v.Strides), s_options);
        var gradients = problem.ReferenceGradients(expected);
        fixed (float* a = gq, b = gk, c = gv)
        {
            gradients.Query.AssertClose(View(a, q), "query gradient");
            gradients.Key.AssertClose(View(b, k), "key gradient");
            gradients.Value.AssertClose(View(c, v), "value gradient");
        }
    }

    [Fact]
    public void Unwanted_gradients_may_be_empty()
    {
        using var problem = Problem();
        var (q, k, v) = (Dense(problem.Arguments.Query), Dense(problem.Arguments.Key), Dense(problem.Arguments.Value));
        var (output, logSumExp, gradient) = (new float[2 * 4 * 9 * 5], new float[2 * 4 * 9], new float[2 * 4 * 9 * 5]);
        Array.Fill(gradient, 1);
        AttentionSpans.Forward(q, k, v, s_shape, output, s_options, logSumExp);
        var (all, only) = (new float[v.Length], new float[v.Length]);
        AttentionSpans.Backward(q, k, v, output, logSumExp, gradient, s_shape, new float[q.Length], new float[k.Length], all, s_options);
        AttentionSpans.Backward(q, k, v, output, logSumExp, gradient, s_shape, default, default, only, s_options);
        Assert.Equal(all, only);
        Assert.Contains(all, number => number != 0);
    }

    [Fact]
    public void No_queries_or_no_keys_are_legal()
    {
        float[] query = [1, 2], output = [float.NaN, float.NaN];
        AttentionSpans.Forward(query, [], [], new(1, 1, 1, 0, 2), output);
        Assert.Equal([0, 0], output);
        AttentionSpans.Forward([], query, query, new(1, 1, 0, 1, 2), []);
    }

    [Fact]
    public void A_call_allocates_no_more_than_the_kernel_itself()
    {
        // A collection gives back what is left of the thread's allocation context, 8 KB, which then counts or does not: less than the smallest object in every call.
        const int Calls = 1000, AllocationContext = 8192;
        var shape = new AttentionShape(1, 2, 64, 64, 16);
        var (q, output) = (new float[2 * 64 * 16], new float[2 * 64 * 16]);
        var options = new AttentionSpanOptions { Threads = 1 };
        long Allocated(Action call)
        {
            call();
            var before = GC.GetAllocatedBytesForCurrentThread();
            for (var i = 0; i < Calls; i++)
            {
                call();
            }

            return GC.GetAllocatedBytesForCurrentThread() - before;
        }

        fixed (float* numbers = q, result = output)
        {
            var view = new TensorView(numbers, 1, 2, 64, 16);
            var arguments = new AttentionArguments(view, view, view, view with { Data = (nint)result }) { Threads = 1 };
            var kernel = Allocated(() => FusedAttention.Forward(arguments));
            var spans = Allocated(() => AttentionSpans.Forward(q, q, q, shape, output, options));
            Assert.InRange(spans, kernel - AllocationContext, kernel + AllocationContext);
        }
    }

    public static TheoryData<string, Action> Mistakes()
    {
        var (q, k, v, o) = (new float[12], new float[12], new float[12], new float[12]);
        var shape = new AttentionShape(1, 2, 3, 3, 2);
        return new()
        {
            { "The query must hold 12 numbers, [1, 2, 3, 2], but holds 11.", () => AttentionSpans.Forward(q.AsSpan(1), k, v, shape, o) },
            { "The value must hold 18 numbers, [1, 2, 3, 3], but holds 12.", () => AttentionSpans.Forward(q, k, v, shape with { ValueWidth = 3 }, o) },
            { "The output must hold 12 numbers, [1, 2, 3, 2], but holds 6.", () => AttentionSpans.Forward(q, k, v, shape, o.AsSpan(6)) },
            { "The output shares memory with the query, key or value", () => AttentionSpans.Forward(q, k, v, shape, v) },
            { "The log-sum-exp must hold one number per row, 6, or none, but holds 5.", () => AttentionSpans.Forward(q, k, v, shape, o, null, new float[5]) },
            { "The sinks must hold one number per query head, 2, or none, but hold 3.", () => AttentionSpans.Forward(q, k, v, shape, o, new() { Sinks = new float[3] }) },
            { "A window counts keys and cannot be negative", () => AttentionSpans.Forward(q, k, v, shape, o, new() { WindowBefore = -1 }) },
            { "cannot be negative: AttentionShape", () => AttentionSpans.Forward(q, k, v, shape with { Batch = -1 }, o) },
            { "The query must have four dimensions [batch, heads, length, width] but has 3.", () => OnTensors(q, [2, 3, 2], [6, 2, 1]) },
            { "The last dimension of the query must be contiguous (stride 1) but has a stride of 2", () => OnTensors(new float[24], [1, 2, 3, 2], [0, 12, 4, 2]) },
            { "The keyGradient must hold 12 numbers, or none where it is not wanted, but holds 5.", () => AttentionSpans.Backward(q, k, v, o, new float[6], new float[12], shape, default, new float[5], default) },
            { "The valueGradient shares memory with the output or its gradient", () => AttentionSpans.Backward(q, k, v, o, new float[6], new float[12], shape, default, default, o) },
            { "The gradient of the sinks must hold as many numbers as there are sinks, 0, or none, but holds 2.", () => AttentionSpans.Backward(q, k, v, o, new float[6], new float[12], shape, default, default, default, null, new float[2]) },
        };
    }

    [Theory]
    [MemberData(nameof(Mistakes))]
    public void A_mistake_is_refused_with_a_sentence_that_names_it(string sentence, Action mistake) =>
        Assert.Contains(sentence, Assert.Throws<ArgumentException>(mistake).Message, StringComparison.Ordinal);

    private static void OnTensors(float[] numbers, nint[] lengths, nint[] strides)
    {
        nint[] four = [1, 2, 3, 2];
        var other = new ReadOnlyTensorSpan<float>(new float[12], four, []);
        AttentionSpans.Forward(new ReadOnlyTensorSpan<float>(numbers, lengths, strides), other, other, new TensorSpan<float>(new float[12], four, []));
    }

    private static AttentionProblem Problem()
    {
        var problem = new AttentionProblem(new ProblemSpec
        {
            Batch = 2, KeyHeads = 2, Group = 2, Queries = 9, Keys = 13, Width = 6, ValueWidth = 5, Causal = Causality.AlignedToEnd, WindowBefore = 7, Softcap = 3, Sinks = true, Alibi = true,
        });
        problem.Arguments.Scale = 0.3f;
        s_options.Sinks.Span.CopyTo(new Span<float>(problem.Arguments.Sinks, 4));
        s_options.AlibiSlopes.Span.CopyTo(new Span<float>(problem.Arguments.AlibiSlopes, 4));
        return problem;
    }

    private static float[] Dense(TensorView view) => [.. ReferenceInputs.Read(view).Select(number => (float)number)];

    /// <summary>The same tensor, <c>[B, N, H, D]</c> in memory.</summary>
    private static (float[] Data, nint[] Lengths, nint[] Strides) HeadsInside(TensorView view)
    {
        var (batch, heads, length, width) = ((int)view.Batch, (int)view.Heads, (int)view.Length, (int)view.Width);
        var data = new float[batch * heads * length * width];
        for (var b = 0; b < batch; b++)
        {
            for (var h = 0; h < heads; h++)
            {
                for (var i = 0; i < length; i++)
                {
                    new Span<float>(view.Row(b, h, i), width).CopyTo(data.AsSpan((((b * length) + i) * heads + h) * width));
                }
            }
        }

        return (data, [batch, heads, length, width], [length * heads * width, width, heads * width, 1]);
    }

    private static ReadOnlyTensorSpan<float> ReadOnly((float[] Data, nint[] Lengths, nint[] Strides) tensor) => new(tensor.Data, tensor.Lengths, tensor.Strides);

    private static TensorView View(float* data, (float[] Data, nint[] Lengths, nint[] Strides) tensor) => new(
        (nint)data, tensor.Lengths[0], tensor.Lengths[1], tensor.Lengths[2], tensor.Lengths[3], tensor.Strides[0], tensor.Strides[1], tensor.Strides[2]);
}
