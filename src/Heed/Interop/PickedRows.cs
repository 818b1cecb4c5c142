using System.Numerics.Tensors;
using static TorchSharp.torch;
using Tensor = TorchSharp.torch.Tensor;

namespace Heed.Interop;

/// <summary>Rows picked out of a tensor into slots, each at most once, and put back weighed: two differentiable operations on float32 rows in the CPU's memory. libtorch adds the gradient of picked rows one by one, as though
/// they could repeat.</summary>
/// <param name="source">The row of every slot; -1: none.</param>
internal sealed class PickedRows(long[] source)
{
    /// <summary>The picked rows, zeros in slots without one.</summary>
    /// <param name="rows">float32 <c>[R, D]</c>.</param>
    /// <returns><c>[slots, D]</c>.</returns>
    public Tensor Pick(Tensor rows) => is_grad_enabled() && rows.requires_grad ? PickFunction.Apply(this, rows) : PickPlain(rows);

    /// <summary>Rows put back, times their weights; zeros in rows that were not picked.</summary>
    /// <param name="slots">float32 <c>[slots, D]</c>.</param>
    /// <param name="weights">float32 <c>[R]</c>.</param>
    /// <returns><c>[R, D]</c>.</returns>
    public Tensor PutBack(Tensor slots, Tensor weights) =>
        is_grad_enabled() && (slots.requires_grad || weights.requires_grad) ? PutBackFunction.Apply(this, slots, weights) : PutBackPlain(slots, weights);

    private unsafe Tensor PickPlain(Tensor rows)
    {
        using var dense = rows.contiguous();
        var width = dense.size(1);
        var picked = empty(source.LongLength, width, ScalarType.Float32);
        var from = (float*)TensorMemory.Data(dense);
        var to = (float*)TensorMemory.Data(picked);
        for (long slot = 0; slot < source.LongLength; slot++)
        {
            var target = new Span<float>(to + (slot * width), (int)width);
            if (source[slot] < 0)
            {
                target.Clear();
            }
            else
            {
                new ReadOnlySpan<float>(from + (source[slot] * width), (int)width).CopyTo(target);
            }
        }

        return picked;
    }

    /// <summary>Rows without weights: null counts as one.</summary>
    private unsafe Tensor PutBackPlain(Tensor slots, Tensor? weights, long rows = 0)
    {
        using var dense = slots.contiguous();
        using var factors = weights?.contiguous();
        var width = dense.size(1);
        var result = zeros(weights?.size(0) ?? rows, width, ScalarType.Float32);
        var from = (float*)TensorMemory.Data(dense);
        var to = (float*)TensorMemory.Data(result);
        var factor = factors is null ? null : (float*)TensorMemory.Data(factors);
        for (long slot = 0; slot < source.LongLength; slot++)
        {
            if (source[slot] >= 0)
            {
                var values = new ReadOnlySpan<float>(from + (slot * width), (int)width);
                var target = new Span<float>(to + (source[slot] * width), (int)width);
                if (factor == null)
                {
                    values.CopyTo(target);
                }
                else
                {
                    TensorPrimitives.Multiply(values, factor[source[slot]], target);
                }
            }
        }

        return result;
    }

    /// <summary>Gradients of the slots and of the weights, from that of the rows.</summary>
    private unsafe (Tensor Slots, Tensor Weights) Gradients(Tensor slots, Tensor weights, Tensor gradient)
    {
        using var dense = slots.contiguous();
        using var outer = gradient.contiguous();
        using var factors = weights.contiguous();
        var width = (int)dense.size(1);
        var (forSlots, forWeights) = (empty(dense.size(0), width, ScalarType.Float32), zeros(weights.size(0), ScalarType.Float32));
        var value = (float*)TensorMemory.Data(dense);
        var from = (float*)TensorMemory.Data(outer);
        var factor = (float*)TensorMemory.Data(factors);
        var to = (float*)TensorMemory.Data(forSlots);
        var sums = (float*)TensorMemory.Data(forWeights);
        for (long slot = 0; slot < source.LongLength; slot++)
        {
            var target = new Span<float>(to + (slot * width), width);
            if (source[slot] < 0)
            {
                target.Clear();
                continue;
            }

            var row = new ReadOnlySpan<float>(from + (source[slot] * width), width);
            TensorPrimitives.Multiply(row, factor[source[slot]], target);
            sums[source[slot]] = TensorPrimitives.Dot(row, new ReadOnlySpan<float>(value + (slot * width), width));
        }

        return (forSlots, forWeights);
    }

    private sealed class PickFunction : autograd.MultiTensorFunction<PickFunction>
    {
        public override string Name => "HeedPickedRows";

        public static Tensor Apply(PickedRows picked, Tensor rows)
        {
            var call = new Call(picked, rows.size(0), [true]);
            var result = apply(rows, call)[0];
            call.Made?.Dispose();
            return result;
        }

        public override List<Tensor> forward(autograd.AutogradContext context, params object[] vars)
        {
            var call = (Call)vars[1];
            call.Made = call.Picked.PickPlain((Tensor)vars[0]);
            context.save_data(nameof(Call), call);
            return [call.Made];
        }

        public override List<Tensor> backward(autograd.AutogradContext context, List<Tensor> grad_outputs)
        {
            var call = (Call)context.get_data(nameof(Call));
            var gradients = ReturnedGradients.Of(call.Wanted, () => [call.PutBack(grad_outputs[0])]);
            grad_outputs.ForEach(gradient => gradient?.Dispose());
            return gradients;
        }
    }

    private sealed class PutBackFunction : autograd.MultiTensorFunction<PutBackFunction>
    {
        public override string Name => "HeedRowsPutBack";

        public static Tensor Apply(PickedRows picked, Tensor slots, Tensor weights)
        {
            var call = new Call(picked, weights.size(0), [slots.requires_grad, weights.requires_grad]);
            var result = apply(slots, weights, call)[0];
            call.Made?.Dispose();
            call.Saved.Clear();
            return result;
        }

        public override List<Tensor> forward(autograd.AutogradContext context, params object[] vars)
        {
            var call = (Call)vars[2];
            call.Made = call.Picked.PutBackPlain((Tensor)vars[0], (Tensor)vars[1]);
            call.Saved.AddRange([(Tensor)vars[0], (Tensor)vars[1]]);
            context.save_for_backward(call.Saved);
            context.save_data(nameof(Call), call);
            return [call.Made];
        }

        public override List<Tensor> backward(autograd.AutogradContext context, List<Tensor> grad_outputs)
        {
            var call = (Call)context.get_data(nameof(Call));
            var gradients = ReturnedGradients.Of(call.Wanted, () => Gradients(call, context.get_saved_variables().ToArray(), grad_outputs[0]));
            grad_outputs.ForEach(gradient => gradient?.Dispose());
            return gradients;
        }

        private static Tensor?[] Gradients(Call call, Tensor[] saved, Tensor gradient)
        {
            if (is_grad_enabled())
            {
                return
                [
                    call.Wanted[0] ? call.Picked.Pick(gradient * saved[1].unsqueeze(-1)) : null,
                    call.Wanted[1] ? (gradient * call.PutBack(saved[0])).sum(-1) : null,
                ];
            }

            var (slots, weights) = call.Picked.Gradients(saved[0], saved[1], gradient);
            return [call.Wanted[0] ? slots : null, call.Wanted[1] ? weights : null];
        }
    }

    private sealed class Call(PickedRows picked, long rows, bool[] wanted)
    {
        public PickedRows Picked => picked;

        public bool[] Wanted => wanted;

        /// <summary>The list that the context saves once the results are wrapped.</summary>
        public List<Tensor> Saved { get; } = [];

        /// <summary>The handle that the forward pass made; the caller gets another.</summary>
        public Tensor? Made { get; set; }

        public Tensor PutBack(Tensor slots)
        {
            if (!is_grad_enabled() || !slots.requires_grad)
            {
                return picked.PutBackPlain(slots, null, rows);
            }

            using var scope = NewDisposeScope();
            return picked.PutBack(slots, ones(rows, dtype: slots.dtype)).MoveToOuterDisposeScope();
        }
    }
}
