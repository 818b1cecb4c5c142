using Heed.Kernels;
using Heed.Mixers;
using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>Dynamic convolution on the CPU in float32 as a differentiable operation.</summary>
internal sealed unsafe class DynamicConvolutionFunction : autograd.MultiTensorFunction<DynamicConvolutionFunction>
{
    /// <inheritdoc/>
    public override string Name => "HeedDynamicConvolution";

    /// <summary>Computes the output from contiguous float32 tensors.</summary>
    public static Tensor Compute(DynamicConvolutionShape shape, Tensor logits, Tensor smallBias, Tensor largeBias, Tensor value)
    {
        Tensor[] inputs = [logits, smallBias, largeBias, value];
        if (!is_grad_enabled() || !inputs.Any(input => input.requires_grad))
        {
            return Forward(shape, inputs);
        }

        var call = new Call(shape, [.. inputs.Select(input => input.requires_grad)]);
        var result = apply(logits, smallBias, largeBias, value, call)[0];
        call.Forget();
        return result;
    }

    /// <inheritdoc/>
    public override List<Tensor> forward(autograd.AutogradContext context, params object[] vars)
    {
        var call = (Call)vars[4];
        call.Saved.AddRange(vars.Take(4).Cast<Tensor>());
        call.Output = Forward(call.Shape, call.Saved);
        context.save_for_backward(call.Saved);
        context.save_data(nameof(Call), call);
        return [call.Output];
    }

    /// <inheritdoc/>
    public override List<Tensor> backward(autograd.AutogradContext context, List<Tensor> grad_outputs)
    {
        var call = (Call)context.get_data(nameof(Call));
        var gradients = ReturnedGradients.Of(call.Wanted, () => Gradients(call, context.get_saved_variables().ToArray(), grad_outputs[0]));
        grad_outputs.ForEach(gradient => gradient?.Dispose());
        return gradients;
    }

    private static Tensor?[] Gradients(Call call, Tensor[] saved, Tensor outputGradient)
    {
        if (is_grad_enabled())
        {
            // Gradients of gradients: the plain form is differentiable again.
            Tensor[] inputs = [.. saved.Select(ReturnedGradients.Apart)];
            List<Tensor> wanted = [.. inputs.Where((_, i) => call.Wanted[i])];
            var output = PlainDynamicConvolution.Apply(call.Shape, inputs[0], inputs[1], inputs[2], inputs[3]);
            var found = new Queue<Tensor>(autograd.grad([output], wanted, [outputGradient.alias()], retain_graph: true, create_graph: true));
            return [.. call.Wanted.Select(isWanted => isWanted ? found.Dequeue() : null)];
        }

        var arriving = outputGradient.contiguous();
        Tensor[] gradients = [.. saved.Select(input => empty(input.shape, dtype: float32))];
        DynamicKernels.Backward(
            Arguments(call.Shape, saved), Pointer(arriving), Pointer(gradients[0]), Pointer(gradients[1]), Pointer(gradients[2]), Pointer(gradients[3]));
        return [.. gradients.Select((gradient, i) => call.Wanted[i] ? gradient : null)];
    }

    private static Tensor Forward(DynamicConvolutionShape shape, IReadOnlyList<Tensor> inputs)
    {
        var output = empty(inputs[3].shape, dtype: float32);
        if (output.numel() > 0)
        {
            DynamicKernels.Forward(Arguments(shape, inputs), Pointer(output));
        }

        return output;
    }

    private static float* Pointer(Tensor tensor) => (float*)TensorMemory.Data(tensor);

    private static DynamicKernelArguments Arguments(DynamicConvolutionShape shape, IReadOnlyList<Tensor> inputs) => new()
    {
        Batch = checked((int)shape.Batch),
        Groups = checked((int)shape.Groups),
        Channels = checked((int)shape.Channels),
        Height = checked((int)shape.Height),
        Width = checked((int)shape.Width),
        Small = checked((int)shape.Small),
        Large = checked((int)shape.Large),
        Logits = TensorMemory.Data(inputs[0]),
        SmallBias = TensorMemory.Data(inputs[1]),
        LargeBias = TensorMemory.Data(inputs[2]),
        Value = TensorMemory.Data(inputs[3]),
        Threads = get_num_threads(),
    };

    /// <summary>What one call carries from its forward to its backward pass beside the saved tensors.</summary>
    private sealed class Call(DynamicConvolutionShape shape, bool[] wanted)
    {
        public DynamicConvolutionShape Shape => shape;

        /// <summary>Which inputs want a gradient.</summary>
        public bool[] Wanted => wanted;

        /// <summary>The list that the context saves once the results are wrapped.</summary>
        public List<Tensor> Saved { get; } = [];

        /// <summary>The handle that the forward pass made; the caller gets another of the same tensor.</summary>
        public Tensor? Output { get; set; }

        /// <summary>Lets go of everything that the native graph holds by itself by now.</summary>
        public void Forget()
        {
            Output?.Dispose();
            Output = null;
            Saved.Clear();
        }
    }
}
