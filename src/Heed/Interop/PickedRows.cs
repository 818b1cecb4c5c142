using System.Numerics.Tensors;
using static TorchSharp.torch;
using Tensor = TorchSharp.torch.Tensor;

namespace Heed.Interop;

/// <summary>Rows picked out of a tensor <c>[B, H, N, D]</c> into slots, each at most once, and put back weighed: two differentiable operations on float32 rows in the CPU's memory, whatever their strides. libtorch adds the
/// gradient of picked rows one by one, as though they could repeat.</summary>
/// <param name="source">The row of every slot, (item N + token) H + head; -1: none. Every batch item has as many slots.</param>
/// <param name="token">The token of every slot.</param>
/// <param name="shape">B, H and N.</param>
/// <param name="like">The tensor whose order of heads and tokens in memory rows that are put back take.</param>
internal sealed class PickedRows(long[] source, long[] token, (long Batch, long Heads, long Tokens) shape, Tensor like)
{
    private readonly bool _headsWithinTokens = like.stride(1) < like.stride(2);

    /// <summary>The picked rows, zeros in slots without one.</summary>
    /// <param name="rows">float32 <c>[B, H, N, D]</c>.</param>
    /// <returns><c>[slots, D]</c>.</returns>
    public Tensor Pick(Tensor rows) => is_grad_enabled() && rows.requires_grad ? PickFunction.Apply(this, rows) : PickPlain(rows);

    /// <summary>Rows put back, times their weights; zeros in rows that were not picked.</summary>
    /// <param name="slots">float32 <c>[slots, D]</c>.</param>
    /// <param name="weights">float32 <c>[B, N, H]</c>.</param>
    /// <returns><c>[B, H, N, D]</c>.</returns>
    public Tensor PutBack(Tensor slots, Tensor weights) =>
        is_grad_enabled() && (slots.requires_grad || weights.requires_grad) ? PutBackFunction.Apply(this, slots, weights) : PutBackPlain(slots, weights);

    private unsafe Tensor PickPlain(Tensor rows)
    {
        var dense = TensorMemory.WithContiguousRows(rows);
        var width = (int)dense.size(3);
        var picked = empty(source.LongLength, width, ScalarType.Float32);
        var from = new Rows(dense);
        var to = (float*)TensorMemory.Data(picked);
        for (long slot = 0, item = 0; item < shape.Batch; item++)
        {
            for (var end = SlotsUntil(item); slot < end; slot++)
            {
                var target = new Span<float>(to + (slot * width), width);
                if (source[slot] < 0)
                {
                    target.Clear();
                }
                else
                {
                    new ReadOnlySpan<float>(from.At(item, Head(slot, item), token[slot]), width).CopyTo(target);
                }
            }
        }

        GC.KeepAlive(dense);
        return picked;
    }

    /// <summary>Weights: null counts as one.</summary>
    private unsafe Tensor PutBackPlain(Tensor slots, Tensor? weights)
    {
        using var dense = slots.contiguous();
        using var factors = weights?.contiguous();
        var width = (int)dense.size(1);
        var result = _headsWithinTokens
            ? zeros([shape.Batch, shape.Tokens, shape.Heads, width], ScalarType.Float32).transpose_(1, 2) : zeros([shape.Batch, shape.Heads, shape.Tokens, width], ScalarType.Float32);
        var from = (float*)TensorMemory.Data(dense);
        var to = new Rows(result);
        var factor = factors is null ? null : (float*)TensorMemory.Data(factors);
        for (long slot = 0, item = 0; item < shape.Batch; item++)
        {
            for (var end = SlotsUntil(item); slot < end; slot++)
            {
                if (source[slot] >= 0)
                {
                    var values = new ReadOnlySpan<float>(from + (slot * width), width);
                    var target = new Span<float>(to.At(item, Head(slot, item), token[slot]), width);
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
        }

        return result;
    }

    /// <summary>Gradients of the slots and of the weights, from that of the rows.</summary>
    private unsafe (Tensor Slots, Tensor? Weights) Gradients(Tensor slots, Tensor weights, Tensor gradient, bool ofWeights)
    {
        using var dense = slots.contiguous();
        using var factors = weights.contiguous();
        var outer = TensorMemory.WithContiguousRows(gradient);
        var width = (int)dense.size(1);
        var (forSlots, forWeights) = (empty(dense.size(0), width, ScalarType.Float32), ofWeights ? zeros(weights.shape, ScalarType.Float32) : null);
        var from = new Rows(outer);
        var value = (float*)TensorMemory.Data(dense);
        var factor = (float*)TensorMemory.Data(factors);
        var to = (float*)TensorMemory.Data(forSlots);
        var sums = forWeights is null ? null : (float*)TensorMemory.Data(forWeights);
        for (long slot = 0, item = 0; item < shape.Batch; item++)
        {
            for (var end = SlotsUntil(item); slot < end; slot++)
            {
                var target = new Span<float>(to + (slot * width), width);
                if (source[slot] < 0)
                {
                    target.Clear();
                    continue;
                }

                var row = new ReadOnlySpan<float>(from.At(item, Head(slot, item), token[slot]), width);
                TensorPrimitives.Multiply(row, factor[source[slot]], target);
                if (sums != null)
                {
                    sums[source[slot]] = TensorPrimitives.Dot(row, new ReadOnlySpan<float>(value + (slot * width), width));
                }
            }
        }

        GC.KeepAlive(outer);
        return (forSlots, forWeights);
    }

    private long SlotsUntil(long item) => source.LongLength / shape.Batch * (item + 1);

    private long Head(long slot, long item) => source[slot] - (((item * shape.Tokens) + token[slot]) * shape.Heads);

    /// <summary>Where the rows of <c>[B, H, N, D]</c> lie.</summary>
    private readonly unsafe struct Rows(Tensor tensor)
    {
        private readonly float* _data = (float*)TensorMemory.Data(tensor);
        private readonly long _perItem = tensor.stride(0);
        private readonly long _perHead = tensor.stride(1);
        private readonly long _perToken = tensor.stride(2);

        public float* At(long item, long head, long place) => _data + (item * _perItem) + (head * _perHead) + (place * _perToken);
    }

    private sealed class PickFunction : autograd.MultiTensorFunction<PickFunction>
    {
        public override string Name => "HeedPickedRows";

        public static Tensor Apply(PickedRows picked, Tensor rows)
        {
            var call = new Call(picked, [true]);
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
            var call = new Call(picked, [slots.requires_grad, weights.requires_grad]);
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
                    call.Wanted[0] ? call.Picked.Pick(gradient * saved[1].transpose(1, 2).unsqueeze(-1)) : null,
                    call.Wanted[1] ? (gradient * call.PutBack(saved[0])).sum(-1).transpose(1, 2) : null,
                ];
            }

            var (slots, weights) = call.Picked.Gradients(saved[0], saved[1], gradient, call.Wanted[1]);
            return [call.Wanted[0] ? slots : null, weights];
        }
    }

    private sealed class Call(PickedRows picked, bool[] wanted)
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
                return picked.PutBackPlain(slots, null);
            }

            using var scope = NewDisposeScope();
            return picked.PutBack(slots, picked.Ones()).MoveToOuterDisposeScope();
        }
    }

    private Tensor Ones() => ones([shape.Batch, shape.Tokens, shape.Heads], ScalarType.Float32);
}
