using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>Attention over gathered blocks as a differentiable operation.</summary>
internal sealed class GatheredBlocksFunction : autograd.MultiTensorFunction<GatheredBlocksFunction>
{
    /// <inheritdoc/>
    public override string Name => "HeedGatheredBlocks";

    /// <summary>Computes the output.</summary>
    /// <param name="blocks">What is gathered.</param>
    /// <param name="again">The same attention in differentiable operations, for gradients of gradients.</param>
    /// <param name="query">float32 <c>[B, H, N, D]</c>, rows contiguous.</param>
    /// <param name="key">As many heads as the query.</param>
    /// <param name="value">As many heads as the query.</param>
    public static Tensor Compute(GatheredBlocks blocks, Func<Tensor, Tensor, Tensor, Tensor> again, Tensor query, Tensor key, Tensor value)
    {
        if (!is_grad_enabled() || !(query.requires_grad || key.requires_grad || value.requires_grad))
        {
            var output = TensorMemory.EmptyLike(query, value.size(3));
            using var logSumExp = empty(query.size(0), query.size(1), query.size(2), ScalarType.Float32);
            blocks.Forward(query, key, value, output, logSumExp);
            return output;
        }

        var call = new Call(blocks, again, [query.requires_grad, key.requires_grad, value.requires_grad]);
        var result = apply(query, key, value, call)[0];
        call.Forget();
        return result;
    }

    /// <inheritdoc/>
    public override List<Tensor> forward(autograd.AutogradContext context, params object[] vars)
    {
        var (query, key, value, call) = ((Tensor)vars[0], (Tensor)vars[1], (Tensor)vars[2], (Call)vars[3]);
        var output = TensorMemory.EmptyLike(query, value.size(3));
        var logSumExp = empty(query.size(0), query.size(1), query.size(2), ScalarType.Float32);
        call.Blocks.Forward(query, key, value, output, logSumExp);
        call.Saved.AddRange([query, key, value, output, logSumExp]);
        call.Created.AddRange([output, logSumExp]);
        context.save_for_backward(call.Saved);
        context.save_data(nameof(Call), call);
        return [output];
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
        var (query, key, value, output, logSumExp) = (saved[0], saved[1], saved[2], saved[3], saved[4]);
        if (is_grad_enabled())
        {
            (query, key, value) = (ReturnedGradients.Apart(query), ReturnedGradients.Apart(key), ReturnedGradients.Apart(value));
            List<Tensor> wanted = [.. new[] { query, key, value }.Where((_, i) => call.Wanted[i])];
            var found = new Queue<Tensor>(autograd.grad([call.Again(query, key, value)], wanted, [outputGradient.alias()], retain_graph: true, create_graph: true));
            return [.. call.Wanted.Select(isWanted => isWanted ? found.Dequeue() : null)];
        }

        Tensor[] gradients = [TensorMemory.EmptyLike(query, query.size(3)), TensorMemory.EmptyLike(key, key.size(3)), TensorMemory.EmptyLike(value, value.size(3))];
        call.Blocks.Backward(query, key, value, output, logSumExp, TensorMemory.WithContiguousRows(outputGradient), gradients[0], gradients[1], gradients[2]);
        return [.. gradients.Select((gradient, i) => call.Wanted[i] ? gradient : null)];
    }

    /// <summary>What one call carries from its forward to its backward pass beside the saved tensors.</summary>
    private sealed class Call(GatheredBlocks blocks, Func<Tensor, Tensor, Tensor, Tensor> again, bool[] wanted)
    {
        /// <summary>Which of query, key and value want a gradient.</summary>
        public bool[] Wanted => wanted;

        public GatheredBlocks Blocks => blocks;

        public Func<Tensor, Tensor, Tensor, Tensor> Again => again;

        /// <summary>The list that the context saves once the results are wrapped.</summary>
        public List<Tensor> Saved { get; } = [];

        /// <summary>The handles that the forward pass made; the caller gets others of the same tensors.</summary>
        public List<Tensor> Created { get; } = [];

        /// <summary>Lets go of everything that the native graph holds by itself by now.</summary>
        public void Forget()
        {
            Created.ForEach(tensor => tensor.Dispose());
            Created.Clear();
            Saved.Clear();
        }
    }
}
