using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>Attention on the CPU without the map. Half precision is converted as it is read and computed in float32, which measures 1.2 to
/// 4 times as fast as libtorch's own fused attention in bfloat16, even on processors with instructions for it.</summary>
internal static class FusedPath
{
    /// <summary>Whether a call with such a query goes this way.</summary>
    public static bool Takes(Tensor query) =>
        query.device_type == TorchSharp.DeviceType.CPU && query.dtype is ScalarType.Float32 or ScalarType.BFloat16 or ScalarType.Float16;

    /// <summary>Computes a call without hooks whose inputs and options have been checked.</summary>
    public static Tensor Compute(in AttentionShape shape, Tensor query, Tensor key, Tensor value, AttentionOptions options)
    {
        if (query.dtype == ScalarType.Float32 && key.dtype == ScalarType.Float32 && ReferenceEquals(query, TensorMemory.WithContiguousRows(query))
            && HasNoTensors(options) && TensorMemory.HasContiguousRows(key) && TensorMemory.HasContiguousRows(value))
        {
            // Nothing is converted: nothing needs a scope.
            return Run(new(shape, query, key, value, options), null).Output;
        }

        using var scope = NewDisposeScope();
        return Converted(shape, query, key, value, options, null).MoveToOuterDisposeScope();
    }

    /// <summary>Computes a call with hooks, up to the stage statistics.</summary>
    public static Tensor Compute(in AttentionShape shape, AttentionCall call, AttentionHooks hooks, List<ObserverStages.StatisticsPass> passes)
    {
        using var scope = NewDisposeScope();
        ObserverStages.ShowMap(call, hooks);
        var first = passes.Count > 0 ? new StatisticsBuffers(shape, passes[0].Request) : null;
        var output = Converted(shape, call.Query, call.Key, call.Value, call.Options, first);
        for (var i = 0; i < passes.Count; i++)
        {
            var buffers = first!;
            if (i > 0)
            {
                using var still = no_grad();
                buffers = new StatisticsBuffers(shape, passes[i].Request);
                Converted(shape, call.Query, call.Key, call.Value, call.Options, buffers);
            }

            ObserverStages.Deliver(call, buffers.Result(), passes[i]);
        }

        call.LogSumExp = first?.LogSumExp.MoveToOuterDisposeScope();
        return output.MoveToOuterDisposeScope();
    }

    /// <summary>Computes output and log-sum-exp of a checked softmax call without hooks.</summary>
    public static (Tensor Output, Tensor LogSumExp) ComputePart(in AttentionShape shape, Tensor query, Tensor key, Tensor value, AttentionOptions options)
    {
        using var scope = NewDisposeScope();
        var problem = new FusedProblem(shape, TensorMemory.As(ScalarType.Float32, query), Readable(key), Readable(value), options);
        var (output, logSumExp) = Run(problem, null, withLogSumExp: true);
        output = TensorMemory.As(query.dtype, Gated(output, options));
        return (output.MoveToOuterDisposeScope(), logSumExp!.MoveToOuterDisposeScope());
    }

    private static bool HasNoTensors(AttentionOptions options) =>
        ReferenceEquals(options, AttentionOptions.Default) || ReferenceEquals(options, AttentionOptions.CausalSelf)
        || (options.Gate is null && options.Sinks is null && options.Mask is null && options.Biases.Count == 0);

    private static Tensor Converted(in AttentionShape shape, Tensor query, Tensor key, Tensor value, AttentionOptions options, StatisticsBuffers? statistics)
    {
        var (output, _) = Run(new(shape, TensorMemory.As(ScalarType.Float32, query), Readable(key), Readable(value), options), statistics);
        return TensorMemory.As(query.dtype, Gated(output, options));
    }

    private static Tensor Gated(Tensor output, AttentionOptions options) => options.Gate is { } gate ? output * TensorMemory.As(output.dtype, gate) : output;

    /// <summary>The kernels read half precision but have no gradients in it.</summary>
    private static Tensor Readable(Tensor keyOrValue) => keyOrValue.requires_grad && is_grad_enabled() ? TensorMemory.As(ScalarType.Float32, keyOrValue) : keyOrValue;

    private static (Tensor Output, Tensor? LogSumExp) Run(FusedProblem problem, StatisticsBuffers? statistics, bool withLogSumExp = false)
    {
        if (problem.NeedsGradient)
        {
            // A half-precision key beside another input that wants a gradient is converted here: the backward kernel reads float32 only.
            problem.Tensors[FusedProblem.Key] = TensorMemory.As(ScalarType.Float32, problem.Tensors[FusedProblem.Key]!);
            problem.Tensors[FusedProblem.Value] = TensorMemory.As(ScalarType.Float32, problem.Tensors[FusedProblem.Value]!);
            return FusedFunction.Compute(problem, statistics, withLogSumExp);
        }

        var output = problem.NewOutput();
        var logSumExp = statistics?.LogSumExp ?? (withLogSumExp ? problem.NewLogSumExp() : null);
        problem.Forward(output, logSumExp, statistics);
        return (output, logSumExp);
    }
}
