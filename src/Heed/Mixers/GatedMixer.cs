using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>What stands in place of softmax attention in most of its successors: <c>output(gate(x) * context(x))</c>. The gate looks at a position alone, the context at its surroundings; mixers differ in
/// how the context is made (a stack of depth-wise convolutions, one convolution, a perceptron over positions, a selective scan).</summary>
public abstract class GatedMixer : nn.Module<Tensor, Tensor>, IMapSource
{
    /// <summary>Makes the base of a mixer.</summary>
    /// <param name="name">The module's name.</param>
    protected GatedMixer(string name)
        : base(name)
    {
    }

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>Gate and context of every position.</summary>
    /// <param name="input">What is mixed.</param>
    /// <returns>Two tensors of one shape.</returns>
    protected abstract (Tensor Gate, Tensor Context) Branches(Tensor input);

    /// <summary>The projection of their product.</summary>
    /// <param name="gated">Gate times context.</param>
    protected abstract Tensor Output(Tensor gated);

    /// <summary><c>output(gate(x) * context(x))</c>, in the caller's dispose scope.</summary>
    /// <param name="input">What is mixed.</param>
    protected Tensor Mix(Tensor input)
    {
        var (gate, context) = Branches(input);
        return Output(gate * context);
    }

    /// <summary>Hands the length of a vector at every position to the recorder, where there is one.</summary>
    /// <param name="name">What the vectors are.</param>
    /// <param name="vectors"><c>[B, H, W, C]</c>.</param>
    protected void RecordLength(string name, Tensor vectors)
    {
        if (Recorder is null)
        {
            return;
        }

        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        Recorder.Record(this, name, linalg.norm(vectors, dims: [3], keepdim: true).permute(0, 3, 1, 2), [$"{name} length"]);
    }

    /// <summary>The filters' side must have a middle.</summary>
    /// <exception cref="ArgumentException">It is even or not positive.</exception>
    internal static void RequireOdd(long kernel, string what)
    {
        if (kernel < 1 || kernel % 2 == 0)
        {
            throw new ArgumentException($"{what} gives a filter of side {kernel}, and only odd sides keep the size of the map: choose other numbers.");
        }
    }
}
