using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>A loss that a layer adds by itself: the tensor passes unchanged, and whatever the backward pass started from, the loss receives the gradient one.</summary>
internal sealed class AttachedLossFunction : autograd.MultiTensorFunction<AttachedLossFunction>
{
    /// <inheritdoc/>
    public override string Name => "HeedAttachedLoss";

    /// <summary>The tensor, carrying the loss.</summary>
    /// <param name="carrier">Any tensor that the task's loss depends on.</param>
    /// <param name="loss">A scalar.</param>
    public static Tensor Attach(Tensor carrier, Tensor loss)
    {
        if (!is_grad_enabled() || !loss.requires_grad)
        {
            return carrier.alias();
        }

        var call = new Call([carrier.requires_grad, true]);
        var result = apply(carrier, loss, call)[0];
        call.Made?.Dispose();
        return result;
    }

    /// <inheritdoc/>
    public override List<Tensor> forward(autograd.AutogradContext context, params object[] vars)
    {
        var call = (Call)vars[2];
        call.Made = ((Tensor)vars[0]).clone();
        context.save_data(nameof(Call), call);
        return [call.Made];
    }

    /// <inheritdoc/>
    public override List<Tensor> backward(autograd.AutogradContext context, List<Tensor> grad_outputs)
    {
        var call = (Call)context.get_data(nameof(Call));
        var gradients = ReturnedGradients.Of(
            call.Wanted, () => [call.Wanted[0] ? grad_outputs[0].alias() : null, ones([], dtype: grad_outputs[0].dtype, device: grad_outputs[0].device)]);
        grad_outputs.ForEach(gradient => gradient?.Dispose());
        return gradients;
    }

    private sealed class Call(bool[] wanted)
    {
        public bool[] Wanted => wanted;

        /// <summary>The handle that the forward pass made; the caller gets another.</summary>
        public Tensor? Made { get; set; }
    }
}
