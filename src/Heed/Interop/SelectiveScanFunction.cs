using Heed.Kernels;
using Heed.Mixers;
using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>The tensors of a selective scan whose shapes have been checked, all float32 on the CPU.</summary>
internal sealed class ScanTensors(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? skip, Tensor? gate, Tensor? deltaBias)
{
    public const int Count = 8;

    /// <summary>All, in the order of the arguments.</summary>
    public Tensor?[] All { get; } = [u, delta, a, b, c, skip, gate, deltaBias];
}

/// <summary>The fused scan as a differentiable operation. Gradients of gradients are computed through the plain form.</summary>
internal sealed unsafe class SelectiveScanFunction : autograd.MultiTensorFunction<SelectiveScanFunction>
{
    private const int Delta = 1;
    private const int A = 2;
    private const int B = 3;
    private const int C = 4;
    private const int Skip = 5;
    private const int Gate = 6;
    private const int Bias = 7;

    /// <inheritdoc/>
    public override string Name => "HeedSelectiveScan";

    /// <summary>Computes output and last state.</summary>
    public static (Tensor Output, Tensor LastState) Compute(ScanTensors tensors, bool softplus)
    {
        var call = new Call(softplus);
        foreach (var (i, tensor) in tensors.All.Index())
        {
            call.Wanted[i] = tensor is not null && tensor.requires_grad;
        }

        var (batch, channels, states) = (tensors.All[0]!.size(0), tensors.All[0]!.size(1), tensors.All[A]!.size(1));
        call.LastState = empty([batch, channels, states], ScalarType.Float32);
        if (!is_grad_enabled() || !call.Wanted.Contains(true))
        {
            var output = EmptyLike(tensors.All[0]!);
            Forward(tensors.All, softplus, output, call.LastState, null);
            return (output, call.LastState);
        }

        var inputs = new object?[ScanTensors.Count + 1];
        Array.Copy(tensors.All, inputs, ScanTensors.Count);
        inputs[ScanTensors.Count] = call;
        var result = apply(inputs!)[0];
        call.Forget();
        return (result, call.LastState);
    }

    /// <inheritdoc/>
    public override List<Tensor> forward(autograd.AutogradContext context, params object[] vars)
    {
        var call = (Call)vars[ScanTensors.Count];
        var tensors = vars[..ScanTensors.Count].Select(tensor => (Tensor?)tensor).ToArray();
        var output = EmptyLike(tensors[0]!);
        var checkpoints = empty([CheckpointFloats(tensors)], ScalarType.Float32);
        Forward(tensors, call.Softplus, output, call.LastState!, checkpoints);
        call.Saved.AddRange(tensors!);
        call.Saved.Add(checkpoints);
        call.Created.AddRange([output, checkpoints]);
        context.save_for_backward(call.Saved);
        context.save_data(nameof(Call), call);
        return [output];
    }

    /// <inheritdoc/>
    public override List<Tensor> backward(autograd.AutogradContext context, List<Tensor> grad_outputs)
    {
        var call = (Call)context.get_data(nameof(Call));
        var gradients = ReturnedGradients.Of(call.Wanted, () =>
        {
            Tensor?[] saved = [.. context.get_saved_variables()];
            return is_grad_enabled() ? Again(call, saved, grad_outputs[0]) : Backward(call, saved, grad_outputs[0]);
        });
        grad_outputs.ForEach(gradient => gradient?.Dispose());
        return gradients;
    }

    private static void Forward(Tensor?[] tensors, bool softplus, Tensor output, Tensor lastState, Tensor? checkpoints)
    {
        if (tensors[0]!.size(0) == 0)
        {
            return;
        }

        using var numbers = new Numbers(tensors);
        FusedScan.Forward(Arguments(tensors, numbers, softplus, checkpoints), View(output), (float*)TensorMemory.Data(lastState));
        GC.KeepAlive((tensors, output, lastState, checkpoints));
    }

    private static Tensor?[] Backward(Call call, Tensor?[] saved, Tensor outputGradient)
    {
        var (u, b, c) = (saved[0]!, saved[B]!, saved[C]!);
        var checkpoints = saved[ScanTensors.Count]!;
        var (ofU, ofDelta, ofGate) = (EmptyLike(u), EmptyLike(saved[Delta]!), saved[Gate] is { } gate ? EmptyLike(gate) : null);
        var (ofA, ofB, ofC) = (empty(saved[A]!.shape, ScalarType.Float32), EmptyMap(b), EmptyMap(c));
        var (ofSkip, ofBias) = (saved[Skip] is null ? null : empty([u.size(1)], ScalarType.Float32), saved[Bias] is null ? null : empty([u.size(1)], ScalarType.Float32));
        if (u.size(0) == 0)
        {
            // Nothing was read: the sums are empty.
            foreach (var sum in new[] { ofA, ofB, ofC, ofSkip, ofBias })
            {
                sum?.zero_();
            }
        }
        else
        {
            using var numbers = new Numbers(saved);
            FusedScan.Backward(Arguments(saved, numbers, call.Softplus, checkpoints), new()
            {
                Output = View(outputGradient), Input = View(ofU), Delta = View(ofDelta), Gate = ofGate is null ? default : View(ofGate),
                A = (float*)TensorMemory.Data(ofA), B = (float*)TensorMemory.Data(ofB), C = (float*)TensorMemory.Data(ofC),
                Skip = Data(ofSkip), DeltaBias = Data(ofBias),
            });
        }

        GC.KeepAlive((saved, outputGradient, (ofU, ofDelta, ofGate, ofA, ofB, ofC, ofSkip, ofBias)));
        Tensor?[] all = [ofU, ofDelta, ofA, AsMap(ofB), AsMap(ofC), ofSkip, ofGate, ofBias];
        return [.. all.Select((gradient, i) => call.Wanted[i] ? gradient : null)];
    }

    /// <summary>Under create_graph the gradients must themselves be differentiable.</summary>
    private static Tensor?[] Again(Call call, Tensor?[] saved, Tensor outputGradient)
    {
        Tensor?[] inputs = [.. saved[..ScanTensors.Count].Select(input => input is null ? null : ReturnedGradients.Apart(input))];
        var (output, _) = PlainSelectiveScan.Apply(inputs[0]!, inputs[Delta]!, inputs[A]!, inputs[B]!, inputs[C]!, inputs[Skip], inputs[Gate], inputs[Bias], call.Softplus);
        var wanted = inputs.Where((_, i) => call.Wanted[i]).Select(tensor => tensor!).ToList();
        var found = new Queue<Tensor>(autograd.grad([output], wanted, [outputGradient.alias()], retain_graph: true, create_graph: true));
        return [.. call.Wanted.Select(isWanted => isWanted ? found.Dequeue() : null)];
    }

    private static long CheckpointFloats(Tensor?[] tensors)
    {
        if (tensors[0]!.size(0) == 0)
        {
            return 0;
        }

        using var numbers = new Numbers(tensors);
        return FusedScan.CheckpointFloats(Arguments(tensors, numbers, false, null));
    }

    private static ScanArguments Arguments(Tensor?[] tensors, Numbers numbers, bool softplus, Tensor? checkpoints) => new()
    {
        Batch = tensors[0]!.size(0), Channels = tensors[0]!.size(1), Length = tensors[0]!.size(2), States = (int)tensors[A]!.size(1),
        Input = View(tensors[0]!), Delta = View(tensors[Delta]!), Gate = tensors[Gate] is { } gate ? View(gate) : default,
        A = numbers.At(0), B = Map(tensors[B]!), C = Map(tensors[C]!), Skip = numbers.At(1), DeltaBias = numbers.At(2),
        DeltaSoftplus = softplus, Checkpoints = Data(checkpoints), Threads = get_num_threads(),
    };

    private static float* Data(Tensor? tensor) => tensor is null ? null : (float*)TensorMemory.Data(tensor);

    private static SequenceView View(Tensor tensor) => new(TensorMemory.Data(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2));

    private static StateMapView Map(Tensor map) => map.dim() switch
    {
        2 => new(TensorMemory.Data(map), 0, 0, map.stride(0), map.stride(1), 0),
        3 => new(TensorMemory.Data(map), 1, map.stride(0), 0, map.stride(1), map.stride(2)),
        _ => new(TensorMemory.Data(map), (int)map.size(1), map.stride(0), map.stride(1), map.stride(2), map.stride(3)),
    };

    /// <summary>An uninitialized <c>[B, D, T]</c> that lies in memory as another does: with channels inside tokens where that one has them so.</summary>
    private static Tensor EmptyLike(Tensor like)
    {
        var (batch, channels, length) = (like.size(0), like.size(1), like.size(2));
        return like.stride(1) == 1 && channels > 1 && length > 1
            ? empty_strided([batch, channels, length], [length * channels, 1, channels], ScalarType.Float32)
            : empty([batch, channels, length], ScalarType.Float32);
    }

    /// <summary>Room for the gradient of a map, states side by side.</summary>
    private static Tensor EmptyMap(Tensor map) => map.dim() switch
    {
        2 => empty(map.shape, ScalarType.Float32),
        3 => empty([map.size(0), map.size(2), map.size(1)], ScalarType.Float32),
        _ => empty([map.size(0), map.size(1), map.size(3), map.size(2)], ScalarType.Float32),
    };

    private static Tensor AsMap(Tensor gradient) => gradient.dim() == 2 ? gradient : gradient.transpose(-1, -2);

    /// <summary>The small tensors side by side, copied where they do not lie so.</summary>
    private sealed class Numbers(Tensor?[] tensors) : IDisposable
    {
        private readonly Tensor?[] _given = [tensors[A], tensors[Skip], tensors[Bias]];
        private readonly Tensor?[] _dense = [.. new[] { A, Skip, Bias }.Select(i => tensors[i] is { } given && !given.is_contiguous() ? given.contiguous() : null)];

        public float* At(int index) => Data(_dense[index] ?? _given[index]);

        public void Dispose()
        {
            foreach (var copy in _dense)
            {
                copy?.Dispose();
            }
        }
    }

    /// <summary>What one call carries from its forward to its backward pass beside the saved tensors.</summary>
    private sealed class Call(bool softplus)
    {
        public bool Softplus => softplus;

        /// <summary>Which tensors want a gradient.</summary>
        public bool[] Wanted { get; } = new bool[ScanTensors.Count];

        public Tensor? LastState { get; set; }

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
