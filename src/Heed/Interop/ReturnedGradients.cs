using System.Diagnostics;
using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>Gradients on their way from a managed backward callback to libtorch.</summary>
internal static class ReturnedGradients
{
    // libtorch copies the handles of returned gradients after the managed callback has returned, and nobody disposes the managed ones: they
    // are kept until the thread's next backward pass, which also keeps the finalizer from running in between.
    [ThreadStatic]
    private static List<Tensor>? s_returned;

    /// <summary>A saved input with a place of its own in the graph, for a call that is written out again under create_graph: where one input is another or was computed from it (a key that is the value, a step that
    /// follows from what it steps over), a gradient asked for the saved tensors themselves would hold the paths through each other, too.</summary>
    /// <param name="saved">The input.</param>
    public static Tensor Apart(Tensor saved) => saved.view_as(saved);

    /// <summary>Computes the gradients in a dispose scope of their own and keeps their handles.</summary>
    /// <param name="wanted">Which inputs want a gradient.</param>
    /// <param name="compute">Computes a gradient for each input; null where none is wanted.</param>
    /// <returns>What the callback returns: the gradients, and nothing for the call's own data, which stands last.</returns>
    public static List<Tensor> Of(IEnumerable<bool> wanted, Func<Tensor?[]> compute)
    {
        var returned = s_returned ??= [];
        foreach (var tensor in returned)
        {
            tensor.Dispose();
        }

        returned.Clear();
        using var scope = NewDisposeScope();
        Tensor?[] gradients;
        try
        {
            gradients = compute();
        }
#pragma warning disable CA1031 // An exception that left the callback would end the process: native frames lie between here and the caller of backward().
        catch (Exception error)
#pragma warning restore CA1031
        {
            // A gradient of the wrong shape makes libtorch itself refuse, with an exception that reaches that caller.
            Trace.TraceError($"Heed: the gradients of attention could not be computed: {error.Message}");
            gradients = [.. wanted.Select(isWanted => isWanted ? zeros(0) : null)];
        }

        foreach (var gradient in gradients)
        {
            if (gradient is not null)
            {
                returned.Add(gradient.DetachFromDisposeScope());
            }
        }

        return [.. gradients.Select(gradient => gradient!), null!];
    }
}
