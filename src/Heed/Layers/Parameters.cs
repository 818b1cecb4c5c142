using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Makes parameters that outlive the dispose scope in which a module happens to be built.</summary>
public static class Parameters
{
    /// <summary>A float32 parameter.</summary>
    /// <param name="shape">Its shape.</param>
    /// <param name="fill">Sets its initial values in place; null leaves them as memory comes.</param>
    public static Parameter Make(long[] shape, Action<Tensor>? fill)
    {
        var data = empty(shape, dtype: float32);
        fill?.Invoke(data);
        var parameter = new Parameter(data);
        parameter.DetachFromDisposeScope();
        return parameter;
    }

    /// <summary>Takes the parameters and buffers of a module out of the dispose scope in which libtorch's layers made them: the last line of a constructor that holds such layers.</summary>
    public static void Keep(nn.Module module)
    {
        ArgumentNullException.ThrowIfNull(module);
        foreach (var parameter in module.parameters())
        {
            parameter.DetachFromDisposeScope();
        }

        foreach (var buffer in module.buffers())
        {
            buffer.DetachFromDisposeScope();
        }
    }

    /// <summary>Draws from a normal distribution of mean 0, in place. The usual initialisation of vision models, which cut it off at 2: at a standard deviation of 0.02 that cuts nothing off.</summary>
    /// <remarks>Stands in place of TorchSharp's <c>nn.init.trunc_normal_</c>, whose temporary scalars the collector may free while libtorch reads them, so that now and then a model starts with weights that are no numbers.</remarks>
    /// <param name="tensor">What to fill.</param>
    /// <param name="deviation">Standard deviation.</param>
    public static Tensor DrawNormal(Tensor tensor, double deviation = 0.02)
    {
        ArgumentNullException.ThrowIfNull(tensor);
        using var still = no_grad();
        return tensor.normal_(0, deviation);
    }

    /// <summary>Initialises as vision transformers do: weights of linear layers (and convolutions, where asked) from a normal distribution of standard deviation 0.02, their biases zero.</summary>
    /// <param name="module">The module; all within it are visited.</param>
    /// <param name="convolutions">Whether convolutions are initialised, too, or keep libtorch's initialisation.</param>
    public static void InitializeNormal(nn.Module module, bool convolutions)
    {
        ArgumentNullException.ThrowIfNull(module);
        foreach (var part in module.modules())
        {
            var (weight, bias) = part switch
            {
                Linear linear => (linear.weight, linear.bias),
                Conv2d convolution when convolutions => (convolution.weight, convolution.bias),
                Conv1d convolution when convolutions => (convolution.weight, convolution.bias),
                DepthwiseConvolution2d convolution when convolutions => (convolution.Weight, convolution.Bias),
                _ => (null, null),
            };
            if (weight is not null)
            {
                DrawNormal(weight);
            }

            if (bias is not null)
            {
                using var still = no_grad();
                bias.zero_();
            }
        }
    }

    /// <summary>Draws the weights of all linear layers and convolutions uniformly within one over the root of what enters an output, and sets their biases to zero: a start that suits any width. A standard deviation of 0.02 is
    /// made for widths of hundreds; a narrow model starts slowly from it.</summary>
    /// <param name="module">The module; all within it are visited but projections of steps (<c>dt_proj</c>), whose start is part of their meaning.</param>
    public static void InitializeByFan(nn.Module module)
    {
        ArgumentNullException.ThrowIfNull(module);
        using var still = no_grad();
        foreach (var (name, part) in module.named_modules())
        {
            var (weight, bias) = part switch
            {
                Linear linear => (linear.weight, linear.bias),
                Projection projection => (projection.Weight, projection.Bias),
                Conv2d convolution => (convolution.weight, convolution.bias),
                Conv1d convolution => (convolution.weight, convolution.bias),
                DepthwiseConvolution2d convolution => (convolution.Weight, convolution.Bias),
                _ => (null, null),
            };
            if (weight is null || name.Contains("dt_proj", StringComparison.Ordinal))
            {
                continue;
            }

            var bound = 1 / Math.Sqrt((double)weight.numel() / weight.shape[0]);
            weight.uniform_(-bound, bound);
            bias?.zero_();
        }
    }
}
