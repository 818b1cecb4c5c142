using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>The depth-wise kernel as a differentiable operation. Gradients of gradients are computed through libtorch's operations.</summary>
internal sealed class DepthwiseFunction : autograd.MultiTensorFunction<DepthwiseFunction>
{
    /// <inheritdoc/>
    public override string Name => "HeedDepthwiseConvolution";

    /// <summary>Convolves.</summary>
    /// <param name="input">float32 <c>[B, C, H, W]</c> on the CPU, any strides.</param>
    /// <param name="weight">float32 <c>[C, 1, kh, kw]</c>.</param>
    /// <param name="bias">float32 <c>[C]</c>; null: none.</param>
    /// <param name="top">Rows of zeros above.</param>
    /// <param name="left">Columns of zeros to the left.</param>
    /// <param name="again">The same in libtorch's operations.</param>
    public static Tensor Compute(Tensor input, Tensor weight, Tensor? bias, int top, int left, Func<Tensor, Tensor, Tensor?, Tensor> again)
    {
        if (!is_grad_enabled() || !(input.requires_grad || weight.requires_grad || bias is { requires_grad: true }))
        {
            return Forward(input, weight, bias, top, left);
        }

        var call = new Call(top, left, again, [input.requires_grad, weight.requires_grad, bias is { requires_grad: true }]);
        var result = bias is null ? apply(input, weight, call)[0] : apply(input, weight, bias, call)[0];
        call.Forget();
        return result;
    }

    /// <inheritdoc/>
    public override List<Tensor> forward(autograd.AutogradContext context, params object[] vars)
    {
        var (input, weight, bias, call) = ((Tensor)vars[0], (Tensor)vars[1], vars.Length > 3 ? (Tensor)vars[2] : null, (Call)vars[^1]);
        var output = Forward(input, weight, bias, call.Top, call.Left);
        call.Saved.AddRange(bias is null ? [input, weight] : [input, weight, bias]);
        call.Created = output;
        context.save_for_backward(call.Saved);
        context.save_data(nameof(Call), call);
        return [output];
    }

    /// <inheritdoc/>
    public override List<Tensor> backward(autograd.AutogradContext context, List<Tensor> grad_outputs)
    {
        var call = (Call)context.get_data(nameof(Call));
        var saved = context.get_saved_variables().ToArray();
        var gradients = ReturnedGradients.Of(call.Wanted.Take(saved.Length), () => Gradients(call, saved, grad_outputs[0]));
        // New handles of the saved tensors, made outside the scope of the gradients.
        Array.ForEach(saved, tensor => tensor.Dispose());
        grad_outputs.ForEach(gradient => gradient?.Dispose());
        return gradients;
    }

    private static Tensor Forward(Tensor input, Tensor weight, Tensor? bias, int top, int left)
    {
        var output = EmptyLike(input);
        using var filters = weight.contiguous();
        using var offsets = bias?.contiguous();
        DepthwiseKernel.Forward(Arguments(input, filters, offsets, top, left), TensorMemory.Maps(output));
        GC.KeepAlive(input);
        return output;
    }

    private static Tensor?[] Gradients(Call call, Tensor[] saved, Tensor outputGradient)
    {
        if (is_grad_enabled())
        {
            Tensor[] inputs = [.. saved.Select(ReturnedGradients.Apart)];
            List<Tensor> wanted = [.. inputs.Where((_, i) => call.Wanted[i])];
            var output = call.Again(inputs[0], inputs[1], inputs.Length > 2 ? inputs[2] : null);
            var found = new Queue<Tensor>(autograd.grad([output], wanted, [outputGradient.alias()], retain_graph: true, create_graph: true));
            return [.. saved.Select((_, i) => call.Wanted[i] ? found.Dequeue() : null)];
        }

        var input = call.Wanted[0] ? EmptyLike(saved[0]) : null;
        var weight = call.Wanted[1] ? empty(saved[1].shape) : null;
        var bias = call.Wanted[2] ? empty(saved[0].shape[1]) : null;
        using var filters = saved[1].contiguous();
        DepthwiseKernel.Backward(
            Arguments(saved[0], filters, null, call.Top, call.Left), TensorMemory.Maps(outputGradient), input is null ? null : TensorMemory.Maps(input),
            weight is null ? 0 : TensorMemory.Data(weight), bias is null ? 0 : TensorMemory.Data(bias));
        GC.KeepAlive((saved[0], outputGradient, input, weight, bias));
        return saved.Length > 2 ? [input, weight, bias] : [input, weight];
    }

    private static DepthwiseArguments Arguments(Tensor input, Tensor filters, Tensor? bias, int top, int left) => new()
    {
        Input = TensorMemory.Maps(input), Weight = TensorMemory.Data(filters), Bias = bias is null ? 0 : TensorMemory.Data(bias), KernelHeight = (int)filters.size(2), KernelWidth = (int)filters.size(3),
        Top = top, Left = left, Threads = get_num_threads(),
    };

    /// <summary>Maps without gaps that lie as others do: channels-last where those have their channels side by side.</summary>
    private static Tensor EmptyLike(Tensor maps)
    {
        var (batch, channels, height, width) = (maps.size(0), maps.size(1), maps.size(2), maps.size(3));
        return channels > 1 && maps.stride(1) == 1 && (height > 1 || width > 1)
            ? empty_strided([batch, channels, height, width], [height * width * channels, 1, width * channels, channels], ScalarType.Float32)
            : empty(batch, channels, height, width, ScalarType.Float32);
    }

    /// <summary>What one call carries from its forward to its backward pass beside the saved tensors.</summary>
    private sealed class Call(int top, int left, Func<Tensor, Tensor, Tensor?, Tensor> again, bool[] wanted)
    {
        public int Top => top;

        public int Left => left;

        public Func<Tensor, Tensor, Tensor?, Tensor> Again => again;

        /// <summary>Which of input, weight and bias want a gradient.</summary>
        public bool[] Wanted => wanted;

        /// <summary>The list that the context saves once the results are wrapped.</summary>
        public List<Tensor> Saved { get; } = [];

        /// <summary>The handle that the forward pass made; the caller gets another of the same tensor.</summary>
        public Tensor? Created { get; set; }

        /// <summary>Lets go of everything that the native graph holds by itself by now.</summary>
        public void Forget()
        {
            Created?.Dispose();
            Created = null;
            Saved.Clear();
        }
    }
}
