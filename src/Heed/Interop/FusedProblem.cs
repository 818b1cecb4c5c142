using Heed.Biases;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>One attention call in the form the kernels take: float32 tensors with contiguous rows, masks as block masks, lengths as
/// arrays.</summary>
/// <remarks>Tensors that a gradient may flow to come first and keep their places in <see cref="Tensors"/>, in the saved variables and in
/// the list of gradients.</remarks>
internal sealed unsafe class FusedProblem
{
    /// <summary>Places in <see cref="Tensors"/>.</summary>
    public const int Query = 0, Key = 1, Value = 2, Sinks = 3, Dense = 4, PerKey = 5, Slopes = 6, LowRankQuery = 7, LowRankKey = 8, Count = 9;

    private readonly AttentionShape _shape;
    private readonly AttentionOptions _options;
    private readonly BlockMask? _mask;
    private readonly KeyRuns? _runs;
    private readonly long[]? _queryLengths;
    private readonly long[]? _keyLengths;
    private readonly long[]? _queryOffsets;
    private readonly long[]? _keyOffsets;
    private readonly long[]? _positions;
    private readonly int _threads;

    /// <summary>Prepares a call whose inputs and options have been checked. Conversions are ordinary, differentiable libtorch operations;
    /// what they create is registered with the caller's dispose scope.</summary>
    public FusedProblem(in AttentionShape shape, Tensor query, Tensor key, Tensor value, AttentionOptions options)
    {
        _shape = shape;
        _options = options;
        _threads = options.Threads > 0 ? options.Threads : get_num_threads();
        Tensors[Query] = TensorMemory.WithContiguousRows(query);
        Tensors[Key] = TensorMemory.WithContiguousRows(key);
        Tensors[Value] = TensorMemory.WithContiguousRows(value);
        if (ReferenceEquals(options, AttentionOptions.Default) || ReferenceEquals(options, AttentionOptions.CausalSelf))
        {
            return;
        }

        if (options.Sinks is { } sinks)
        {
            Tensors[Sinks] = Vector(sinks);
        }

        for (var i = 0; i < options.Biases.Count; i++)
        {
            switch (options.Biases[i])
            {
                case DenseBias dense:
                    Tensors[Dense] = Broadcast(dense.Values);
                    break;
                case KeyBias perKey:
                    Tensors[PerKey] = Broadcast(PerKeyRows(perKey.Values));
                    break;
                case AlibiBias alibi:
                    Tensors[Slopes] = Vector(alibi.Slopes);
                    break;
                case LowRankBias lowRank:
                    Tensors[LowRankQuery] = Factors(lowRank.QueryFactors, shape.Queries);
                    Tensors[LowRankKey] = Factors(lowRank.KeyFactors, shape.Keys);
                    break;
            }
        }

        (_mask, _runs) = (options.BlockMask, options.KeyRuns);
        if (options.Mask is { } mask && shape.Queries > 0 && shape.Keys > 0)
        {
            _mask = Masks.BlockMasks.FromTensor(mask, shape.Queries, shape.Keys, options.BlockMask ?? options.KeyRuns?.ToBlockMask((int)shape.Heads));
            _runs = null;
        }

        _queryLengths = options.QueryLengths is null ? null : SmallIntegers.Read(options.QueryLengths);
        _keyLengths = options.KeyLengths is null ? null : SmallIntegers.Read(options.KeyLengths);
        _queryOffsets = options.QueryOffsets is null ? null : SmallIntegers.Read(options.QueryOffsets);
        _positions = options.QueryPositions is null ? null : SmallIntegers.Read(options.QueryPositions);
        _keyOffsets = options.KeyOffsets is null ? _queryOffsets : SmallIntegers.Read(options.KeyOffsets);
    }

    /// <summary>The tensors that a gradient may flow to; null where the call has none.</summary>
    public Tensor?[] Tensors { get; } = new Tensor?[Count];

    /// <summary>Whether the rows of the call have a log-sum-exp.</summary>
    public bool IsSoftmax => _options.Normalizer == Normalizer.Softmax;

    /// <summary>Whether grad mode is on and any input wants a gradient.</summary>
    public bool NeedsGradient
    {
        get
        {
            if (is_grad_enabled())
            {
                foreach (var tensor in Tensors)
                {
                    if (tensor is not null && tensor.requires_grad)
                    {
                        return true;
                    }
                }
            }

            return false;
        }
    }

    /// <summary>An uninitialized output.</summary>
    public Tensor NewOutput() => TensorMemory.EmptyLike(Tensors[Query]!, _shape.ValueWidth);

    /// <summary>An uninitialized log-sum-exp.</summary>
    public Tensor NewLogSumExp() => empty(_shape.Batch, _shape.Heads, _shape.Queries, ScalarType.Float32);

    /// <summary>Computes the output, and what else is given.</summary>
    /// <param name="output">Receives the output.</param>
    /// <param name="logSumExp">Receives the log-sum-exp; null: not wanted.</param>
    /// <param name="statistics">Receives the row statistics; null: none.</param>
    public void Forward(Tensor output, Tensor? logSumExp, StatisticsBuffers? statistics = null)
    {
        fixed (long* queryLengths = _queryLengths, keyLengths = _keyLengths, queryOffsets = _queryOffsets, keyOffsets = _keyOffsets, positions = _positions)
        {
            var arguments = Arguments(Tensors, output, logSumExp, queryLengths, keyLengths, queryOffsets, keyOffsets, positions);
            if (statistics is not null)
            {
                arguments.Statistics = statistics.Rows();
            }

            FusedAttention.Forward(arguments);
            if (statistics?.MassPerKey is { } mass)
            {
                FusedAttention.MassPerKey(arguments, (float*)TensorMemory.Data(mass), statistics.KeyEntropy is { } entropy ? (float*)TensorMemory.Data(entropy) : null);
            }
        }

        GC.KeepAlive(this);
        GC.KeepAlive(output);
        GC.KeepAlive(logSumExp);
        GC.KeepAlive(statistics);
    }

    /// <summary>Computes gradients of the tensors given.</summary>
    /// <param name="inputs">The tensors of the forward pass.</param>
    /// <param name="output">Its output.</param>
    /// <param name="logSumExp">Its log-sum-exp; null where there is none.</param>
    /// <param name="outputGradient">The gradient of the output, rows contiguous.</param>
    /// <param name="logSumExpGradient">The gradient of the log-sum-exp, contiguous; null: zero.</param>
    /// <param name="gradients">Receive the gradients; null where not wanted.</param>
    public void Backward(Tensor?[] inputs, Tensor output, Tensor? logSumExp, Tensor outputGradient, Tensor? logSumExpGradient, Tensor?[] gradients)
    {
        fixed (long* queryLengths = _queryLengths, keyLengths = _keyLengths, queryOffsets = _queryOffsets, keyOffsets = _keyOffsets, positions = _positions)
        {
            var arguments = Arguments(inputs, output, logSumExp, queryLengths, keyLengths, queryOffsets, keyOffsets, positions);
            var targets = new AttentionGradients
            {
                Output = TensorMemory.View(outputGradient),
                LogSumExp = Pointer(logSumExpGradient),
                Query = View(gradients[Query]),
                Key = View(gradients[Key]),
                Value = View(gradients[Value]),
                Sinks = Pointer(gradients[Sinks]),
                Bias = TensorMemory.Bias(gradients[Dense]),
                KeyBias = TensorMemory.Bias(gradients[PerKey]),
                AlibiSlopes = Pointer(gradients[Slopes]),
                LowRankQuery = View(gradients[LowRankQuery]),
                LowRankKey = View(gradients[LowRankKey]),
            };
            FusedAttention.Backward(arguments, targets);
        }

        GC.KeepAlive(inputs);
        GC.KeepAlive(output);
        GC.KeepAlive(logSumExp);
        GC.KeepAlive(outputGradient);
        GC.KeepAlive(logSumExpGradient);
        GC.KeepAlive(gradients);
    }

    /// <summary>The options that mean the same to the plain path, over other handles of the same tensors.</summary>
    public AttentionOptions OptionsOver(Tensor?[] inputs)
    {
        List<AttentionBias> biases = [];
        if (inputs[Dense] is { } dense)
        {
            biases.Add(new DenseBias(dense));
        }

        if (inputs[PerKey] is { } perKey)
        {
            biases.Add(new KeyBias(perKey.squeeze(2)));
        }

        if (inputs[Slopes] is { } slopes)
        {
            biases.Add(new AlibiBias(slopes));
        }

        if (inputs[LowRankQuery] is { } factors)
        {
            biases.Add(new LowRankBias(factors, inputs[LowRankKey]!));
        }

        return _options with
        {
            Sinks = inputs[Sinks],
            Biases = biases,
            Mask = null,
            BlockMask = _mask,
            KeyRuns = _runs,
            Gate = null,
            QueryLengths = Integers(_queryLengths),
            KeyLengths = Integers(_keyLengths),
            QueryOffsets = Integers(_queryOffsets),
            KeyOffsets = Integers(_keyOffsets),
            QueryPositions = Integers(_positions)?.view(_shape.Batch, _shape.Queries),
        };
    }

    /// <summary>Lets go of the tensors, so that a problem that a graph holds on to does not hold on to them as well.</summary>
    public void Release() => Array.Clear(Tensors);

    private static Tensor? Integers(long[]? values) => values is null ? null : tensor(values);

    private static float* Pointer(Tensor? tensor) => tensor is null ? null : (float*)TensorMemory.Data(tensor);

    private static TensorView View(Tensor? tensor) => tensor is null ? default : TensorMemory.View(tensor);

    private static Tensor Vector(Tensor values) => TensorMemory.As(ScalarType.Float32, values).contiguous();

    /// <summary>Query and batch dimensions for a bias per key.</summary>
    private Tensor PerKeyRows(Tensor values)
    {
        while (values.dim() < 3)
        {
            values = values.unsqueeze(0);
        }

        // The kernel wants one value per key.
        return (values.size(2) == _shape.Keys ? values : values.expand(values.size(0), values.size(1), _shape.Keys)).unsqueeze(2);
    }

    /// <summary>A bias as the kernel reads it: float32, four dimensions, keys side by side (or one value for all).</summary>
    private static Tensor Broadcast(Tensor values)
    {
        var bias = TensorMemory.As(ScalarType.Float32, values);
        while (bias.dim() < 4)
        {
            bias = bias.unsqueeze(0);
        }

        // The gradient has the strides of the bias, which only makes sense where they tell elements apart.
        var isRead = bias.size(3) == 1 || bias.stride(3) == 1;
        return isRead && !(bias.requires_grad && is_grad_enabled()) ? bias : bias.contiguous();
    }

    private Tensor Factors(Tensor values, long length)
    {
        var factors = TensorMemory.As(ScalarType.Float32, values);
        return TensorMemory.WithContiguousRows(factors.expand(_shape.Batch, _shape.Heads, length, factors.dim() == 0 ? 1 : factors.size((int)factors.dim() - 1)));
    }

    private AttentionArguments Arguments(
        Tensor?[] inputs, Tensor output, Tensor? logSumExp, long* queryLengths, long* keyLengths, long* queryOffsets, long* keyOffsets, long* positions)
    {
        var arguments = new AttentionArguments(
            TensorMemory.View(inputs[Query]!), TensorMemory.View(inputs[Key]!), TensorMemory.View(inputs[Value]!), TensorMemory.View(output))
        {
            LogSumExp = Pointer(logSumExp),
            Softcap = (float)(_options.Softcap ?? 0),
            Normalizer = _options.Normalizer,
            Causal = _options.Causal,
            WindowBefore = _options.WindowBefore ?? -1,
            WindowAfter = _options.WindowAfter ?? -1,
            QueryLengths = queryLengths,
            KeyLengths = keyLengths,
            QueryOffsets = queryOffsets,
            KeyOffsets = keyOffsets,
            QueryPositions = positions,
            Sequences = _queryOffsets is null ? 0 : _queryOffsets.Length - 1,
            BlockMask = _mask,
            KeyRuns = _runs,
            Sinks = Pointer(inputs[Sinks]),
            Bias = TensorMemory.Bias(inputs[Dense]),
            KeyBias = TensorMemory.Bias(inputs[PerKey]),
            AlibiSlopes = Pointer(inputs[Slopes]),
            LowRankQuery = View(inputs[LowRankQuery]),
            LowRankKey = View(inputs[LowRankKey]),
            Threads = _threads,
        };
        if (_options.Scale is { } scale)
        {
            arguments.Scale = (float)scale;
        }

        return arguments;
    }
}
