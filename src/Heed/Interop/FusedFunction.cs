using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>The fused kernels as a differentiable operation. Gradients of gradients are computed through the plain form.</summary>
internal sealed class FusedFunction : autograd.MultiTensorFunction<FusedFunction>
{
    /// <inheritdoc/>
    public override string Name => "HeedAttention";

    /// <summary>Computes the output and, where asked for, the log-sum-exp, both differentiable.</summary>
    /// <param name="problem">The call.</param>
    /// <param name="statistics">Receives statistics in the same pass; null: none.</param>
    /// <param name="withLogSumExp">Whether the log-sum-exp is wanted. Softmax only.</param>
    public static (Tensor Output, Tensor? LogSumExp) Compute(FusedProblem problem, StatisticsBuffers? statistics, bool withLogSumExp)
    {
        var call = new Call(problem, statistics, withLogSumExp);
        foreach (var (i, tensor) in problem.Tensors.Index())
        {
            call.Wanted[i] = tensor is not null && tensor.requires_grad;
        }

        var inputs = new object?[FusedProblem.Count + 1];
        Array.Copy(problem.Tensors, inputs, FusedProblem.Count);
        inputs[FusedProblem.Count] = call;
        var results = apply(inputs!);
        call.Forget();
        return (results[0], results.Count > 1 ? results[1] : null);
    }

    /// <inheritdoc/>
    public override List<Tensor> forward(autograd.AutogradContext context, params object[] vars)
    {
        var call = (Call)vars[FusedProblem.Count];
        var output = call.Problem.NewOutput();
        var logSumExp = call.Problem.IsSoftmax ? call.Problem.NewLogSumExp() : null;
        call.Problem.Forward(output, logSumExp, call.Statistics);
        if (call.Statistics is not null)
        {
            call.Statistics.LogSumExp.copy_(logSumExp!);
        }

        call.Saved.AddRange(call.Problem.Tensors!);
        call.Saved.Add(output);
        call.Created.Add(output);
        if (logSumExp is not null)
        {
            call.Saved.Add(logSumExp);
            call.Created.Add(logSumExp);
        }

        context.save_for_backward(call.Saved);
        context.save_data(nameof(Call), call);
        context.set_materialize_grads(false);
        return call.WithLogSumExp ? [output, logSumExp!] : [output];
    }

    /// <inheritdoc/>
    public override List<Tensor> backward(autograd.AutogradContext context, List<Tensor> grad_outputs)
    {
        var call = (Call)context.get_data(nameof(Call));
        return ReturnedGradients.Of(call.Wanted, () => Gradients(call, context, grad_outputs));
    }

    private static Tensor?[] Gradients(Call call, autograd.AutogradContext context, List<Tensor> grad_outputs)
    {
        var saved = context.get_saved_variables().ToArray();
        var gradients = is_grad_enabled() ? DifferentiablyAgain(call, saved, grad_outputs) : Fused(call, saved, grad_outputs);
        foreach (var gradient in grad_outputs)
        {
            gradient?.Dispose();
        }

        return gradients;
    }

    private static Tensor?[] Fused(Call call, Tensor?[] saved, List<Tensor> outer)
    {
        var gradients = new Tensor?[FusedProblem.Count];
        for (var i = 0; i < gradients.Length; i++)
        {
            if (call.Wanted[i])
            {
                var input = saved[i]!;
                gradients[i] = i switch
                {
                    FusedProblem.Query or FusedProblem.Key or FusedProblem.Value => TensorMemory.EmptyLike(input, input.size(3)),
                    _ => empty(input.shape, ScalarType.Float32),
                };
            }
        }

        var output = saved[FusedProblem.Count]!;
        var logSumExp = saved.Length > FusedProblem.Count + 1 ? saved[FusedProblem.Count + 1] : null;
        var outputGradient = Given(outer[0]) is { } first ? TensorMemory.WithContiguousRows(first) : zeros_like(output);
        var logSumExpGradient = outer.Count > 1 ? Given(outer[1])?.contiguous() : null;
        call.Problem.Backward(saved[..FusedProblem.Count], output, logSumExp, outputGradient, logSumExpGradient, gradients);
        return gradients;
    }

    /// <summary>Under create_graph the gradients must themselves be differentiable: the call is written out again in libtorch's
    /// operations.</summary>
    private static Tensor?[] DifferentiablyAgain(Call call, Tensor?[] saved, List<Tensor> outer)
    {
        Tensor?[] inputs = [.. saved[..FusedProblem.Count].Select(input => input is null ? null : ReturnedGradients.Apart(input))];
        var options = call.Problem.OptionsOver(inputs);
        List<Tensor> outputs = [], outputGradients = [], wanted = [];
        if (Given(outer[0]) is { } first)
        {
            outputs.Add(PlainAttention.Compute(new(default, inputs[FusedProblem.Query]!, inputs[FusedProblem.Key]!, inputs[FusedProblem.Value]!, options)));
            outputGradients.Add(first.alias());
        }

        if (outer.Count > 1 && Given(outer[1]) is { } second)
        {
            outputs.Add(PlainAttention.LogSumExp(inputs[FusedProblem.Query]!, inputs[FusedProblem.Key]!, options));
            outputGradients.Add(second.alias());
        }

        for (var i = 0; i < inputs.Length; i++)
        {
            if (call.Wanted[i])
            {
                wanted.Add(inputs[i]!);
            }
        }

        var found = autograd.grad(outputs, wanted, outputGradients, retain_graph: true, create_graph: true, allow_unused: true);
        var gradients = new Tensor?[FusedProblem.Count];
        for (int i = 0, next = 0; i < gradients.Length; i++)
        {
            if (call.Wanted[i])
            {
                gradients[i] = found[next++];
            }
        }

        return gradients;
    }

    private static Tensor? Given(Tensor? gradient) => gradient is null || gradient.IsInvalid ? null : gradient;

    /// <summary>What one call carries from its forward to its backward pass beside the saved tensors.</summary>
    private sealed class Call(FusedProblem problem, StatisticsBuffers? statistics, bool withLogSumExp)
    {
        public bool WithLogSumExp => withLogSumExp;

        public FusedProblem Problem => problem;

        public StatisticsBuffers? Statistics { get; private set; } = statistics;

        /// <summary>Which inputs want a gradient.</summary>
        public bool[] Wanted { get; } = new bool[FusedProblem.Count];

        /// <summary>The list that the context saves once the results are wrapped.</summary>
        public List<Tensor> Saved { get; } = [];

        /// <summary>The handles that the forward pass made; the caller gets others of the same tensors.</summary>
        public List<Tensor> Created { get; } = [];

        /// <summary>Lets go of everything that the native graph holds by itself by now.</summary>
        public void Forget()
        {
            foreach (var tensor in Created)
            {
                tensor.Dispose();
            }

            Created.Clear();
            Saved.Clear();
            Statistics = null;
            problem.Release();
        }
    }
}
