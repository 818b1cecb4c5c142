using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>How sequences lie in memory.</summary>
internal enum ScanLayout
{
    TimesSideBySide,
    ChannelsSideBySide,
    Scattered,
}

/// <summary>A scan to draw.</summary>
internal sealed record ScanSpec(
    int Batch, int RunChannels, int Length, int States, int GroupsB, int GroupsC, bool Skip, bool Gate, bool Bias, bool Softplus, ScanLayout Layout, bool StatesSideBySide, double Stiffness, int Seed)
{
    public int Channels => RunChannels * Math.Max(1, GroupsB) * Math.Max(1, GroupsC);

    public static Gen<ScanSpec> Any(int mostLength) =>
        from sizes in Gen.Select(Gen.Int[1, 2], Gen.Int[1, 40], Gen.Int[1, mostLength], Gen.Int[1, 9])
        from groups in Gen.Select(Gen.Int[0, 3], Gen.Int[0, 2])
        from parts in Gen.Select(Gen.Bool, Gen.Bool, Gen.Bool, Gen.Bool)
        from memory in Gen.Select(Gen.Int[0, 2], Gen.Bool, Gen.Int[0, 3], Gen.Int)
        select new ScanSpec(
            sizes.Item1, sizes.Item2, sizes.Item3, sizes.Item4, groups.Item1, groups.Item2, parts.Item1, parts.Item2, parts.Item3, parts.Item4, (ScanLayout)memory.Item1, memory.Item2,
            memory.Item3 == 0 ? 50 : 1, memory.Item4);
}

/// <summary>A random scan in memory of its own, with places for everything that is computed and the definition in float64 beside it.</summary>
internal sealed unsafe class ScanProblem : IDisposable
{
    private readonly ScanSpec _spec;
    private readonly List<Pinned> _memory = [];
    private readonly Random _random;
    private readonly Pinned _u;
    private readonly Pinned _delta;
    private readonly Pinned _a;
    private readonly Pinned _b;
    private readonly Pinned _c;
    private readonly Pinned _skip;
    private readonly Pinned _gate;
    private readonly Pinned _bias;
    private readonly Pinned _incoming;

    public ScanProblem(ScanSpec spec)
    {
        _spec = spec;
        _random = new(spec.Seed);
        long sequence = (long)spec.Batch * spec.Channels * spec.Length;
        _u = Draw(sequence, 1);
        _delta = Draw(sequence, 1);
        _a = Draw((long)spec.Channels * spec.States, 1);
        for (var i = 0; i < _a.Length; i++)
        {
            _a.Data[i] = (float)(-(0.2 + Math.Abs(_a.Data[i])) * spec.Stiffness);
        }

        // Without softplus a negative step would let states grow without end.
        for (var i = 0; !spec.Softplus && i < _delta.Length; i++)
        {
            _delta.Data[i] = Math.Abs(_delta.Data[i]) + 1.1f;
        }

        _b = Draw(MapFloats(spec.GroupsB), 1);
        _c = Draw(MapFloats(spec.GroupsC), 1);
        _skip = Draw(spec.Channels, 1);
        _gate = Draw(sequence, 3);
        _bias = Draw(spec.Channels, 1);
        _incoming = Draw(sequence, 1);
        Output = Empty(sequence);
        LastState = Empty((long)spec.Batch * spec.Channels * spec.States);
        (OfInput, OfDelta, OfGate) = (Empty(sequence), Empty(sequence), Empty(sequence));
        (OfA, OfB, OfC) = (Empty(_a.Length), Empty(_b.Length), Empty(_c.Length));
        (OfSkip, OfBias) = (Empty(spec.Channels), Empty(spec.Channels));
        Checkpoints = Empty(Math.Max(Math.Max(FusedScan.FloatsKept(Arguments(1, null), 4), FusedScan.FloatsKept(Arguments(1, null), 8)), FusedScan.FloatsKept(Arguments(1, null), 16)));
    }

    public Pinned Output { get; }

    public Pinned LastState { get; }

    public Pinned OfInput { get; }

    public Pinned OfDelta { get; }

    public Pinned OfGate { get; }

    public Pinned OfA { get; }

    public Pinned OfB { get; }

    public Pinned OfC { get; }

    public Pinned OfSkip { get; }

    public Pinned OfBias { get; }

    private Pinned Checkpoints { get; }

    /// <summary>Everything that is computed, with its name.</summary>
    public IEnumerable<(string Name, Pinned Values)> Results =>
    [
        ("output", Output), ("last state", LastState), ("gradient of u", OfInput), ("gradient of delta", OfDelta), ("gradient of the gate", OfGate), ("gradient of A", OfA),
        ("gradient of B", OfB), ("gradient of C", OfC), ("gradient of the skip", OfSkip), ("gradient of the bias", OfBias),
    ];

    public void Compute(int threads)
    {
        FusedScan.Forward(Arguments(threads, Checkpoints), Sequence(Output), LastState.Data);
        FusedScan.Backward(Arguments(threads, Checkpoints), Gradients());
    }

    public void Compute<TVector, TOps>(int threads)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        ScanForward.Run<TVector, TOps>(Arguments(threads, Checkpoints), Sequence(Output), LastState.Data);
        ScanBackward.Run<TVector, TOps>(Arguments(threads, Checkpoints), Gradients());
    }

    /// <summary>Fails unless everything is what the definition gives.</summary>
    public void AssertMatches()
    {
        var expected = Reference();
        foreach (var ((name, values), wanted) in Results.Zip(expected))
        {
            if (wanted is null)
            {
                continue;
            }

            // Sums of so many products of numbers of order one, one rounding each.
            var largest = 1 + wanted.Max(Math.Abs);
            for (var i = 0; i < wanted.Length; i++)
            {
                Assert.True(Math.Abs(wanted[i] - values.Data[i]) <= 2e-5 * largest, $"{_spec}: {name}[{i}] is {values.Data[i]}, not {wanted[i]} (of up to {largest})");
            }
        }
    }

    public void Dispose()
    {
        foreach (var memory in _memory)
        {
            memory.Dispose();
        }
    }

    private long MapFloats(int groups) => groups == 0 ? (long)_spec.Channels * _spec.States : (long)_spec.Batch * groups * _spec.States * _spec.Length;

    private Pinned Draw(long count, double range)
    {
        var pinned = Empty(count);
        for (var i = 0; i < count; i++)
        {
            pinned.Data[i] = (float)(((2 * _random.NextDouble()) - 1) * range);
        }

        return pinned;
    }

    private Pinned Empty(long count)
    {
        var pinned = new Pinned(count);
        _memory.Add(pinned);
        return pinned;
    }

    private long At(int batch, int channel, int time) => _spec.Layout switch
    {
        ScanLayout.TimesSideBySide => (((batch * (long)_spec.Channels) + channel) * _spec.Length) + time,
        ScanLayout.ChannelsSideBySide => (((batch * (long)_spec.Length) + time) * _spec.Channels) + channel,
        _ => (((channel * (long)_spec.Length) + time) * _spec.Batch) + batch,
    };

    private SequenceView Sequence(Pinned values) => _spec.Layout switch
    {
        ScanLayout.TimesSideBySide => new(values.Data, _spec.Channels, _spec.Length),
        ScanLayout.ChannelsSideBySide => new((nint)values.Data, (long)_spec.Channels * _spec.Length, 1, _spec.Channels),
        _ => new((nint)values.Data, 1, (long)_spec.Length * _spec.Batch, _spec.Batch),
    };

    private StateMapView Map(Pinned values, int groups) => groups == 0 ? new(values.Data, _spec.States)
        : _spec.StatesSideBySide ? new((nint)values.Data, groups, (long)groups * _spec.States * _spec.Length, (long)_spec.States * _spec.Length, 1, _spec.States)
        : new(values.Data, groups, _spec.States, _spec.Length);

    private long MapAt(int groups, bool statesSideBySide, int batch, int channel, int state, int time)
    {
        if (groups == 0)
        {
            return ((long)channel * _spec.States) + state;
        }

        var first = (((long)batch * groups) + (channel / (_spec.Channels / groups))) * _spec.States * _spec.Length;
        return first + (statesSideBySide ? ((long)time * _spec.States) + state : ((long)state * _spec.Length) + time);
    }

    private ScanArguments Arguments(int threads, Pinned? checkpoints) => new()
    {
        Batch = _spec.Batch, Channels = _spec.Channels, Length = _spec.Length, States = _spec.States, Input = Sequence(_u), Delta = Sequence(_delta), A = _a.Data,
        B = Map(_b, _spec.GroupsB), C = Map(_c, _spec.GroupsC), Skip = _spec.Skip ? _skip.Data : null, Gate = _spec.Gate ? Sequence(_gate) : default, DeltaBias = _spec.Bias ? _bias.Data : null,
        DeltaSoftplus = _spec.Softplus, Checkpoints = checkpoints is null ? null : checkpoints.Data, Threads = threads,
    };

    private ScanGradients Gradients() => new()
    {
        Output = Sequence(_incoming), Input = Sequence(OfInput), Delta = Sequence(OfDelta), Gate = _spec.Gate ? Sequence(OfGate) : default, A = OfA.Data, B = OfB.Data, C = OfC.Data,
        Skip = _spec.Skip ? OfSkip.Data : null, DeltaBias = _spec.Bias ? OfBias.Data : null,
    };

    /// <summary>The recurrence and its gradients by hand, step by step, in the order of <see cref="Results"/>; null where there is nothing.</summary>
    private double[]?[] Reference()
    {
        var (s, u) = (_spec, _u);
        var (y, state) = (new double[Output.Length], new double[LastState.Length]);
        var (du, ddelta, dz) = (new double[y.Length], new double[y.Length], new double[y.Length]);
        var (da, db, dc, dskip, dbias) = (new double[OfA.Length], new double[OfB.Length], new double[OfC.Length], new double[s.Channels], new double[s.Channels]);
        for (var batch = 0; batch < s.Batch; batch++)
        {
            for (var d = 0; d < s.Channels; d++)
            {
                var (steps, slopes) = (new double[s.Length], new double[s.Length]);
                var ungated = new double[s.Length];
                var h = new double[s.Length + 1, s.States];
                for (var t = 0; t < s.Length; t++)
                {
                    var raw = _delta.Data[At(batch, d, t)] + (s.Bias ? _bias.Data[d] : 0.0);
                    (steps[t], slopes[t]) = s.Softplus ? (Math.Log(1 + Math.Exp(raw)), 1 / (1 + Math.Exp(-raw))) : (raw, 1);
                    ungated[t] = s.Skip ? _skip.Data[d] * (double)u.Data[At(batch, d, t)] : 0;
                    for (var n = 0; n < s.States; n++)
                    {
                        h[t + 1, n] = (Math.Exp(steps[t] * _a.Data[(d * s.States) + n]) * h[t, n])
                            + (steps[t] * _b.Data[MapAt(s.GroupsB, s.StatesSideBySide, batch, d, n, t)] * u.Data[At(batch, d, t)]);
                        ungated[t] += h[t + 1, n] * _c.Data[MapAt(s.GroupsC, s.StatesSideBySide, batch, d, n, t)];
                    }

                    var z = s.Gate ? _gate.Data[At(batch, d, t)] : 0.0;
                    y[At(batch, d, t)] = ungated[t] * (s.Gate ? z / (1 + Math.Exp(-z)) : 1);
                }

                var dh = new double[s.States];
                for (var t = s.Length - 1; t >= 0; t--)
                {
                    var at = At(batch, d, t);
                    double dy = _incoming.Data[at];
                    if (s.Gate)
                    {
                        double z = _gate.Data[at];
                        var sigmoid = 1 / (1 + Math.Exp(-z));
                        dz[at] = dy * ungated[t] * sigmoid * (1 + (z * (1 - sigmoid)));
                        dy *= z * sigmoid;
                    }

                    du[at] = s.Skip ? _skip.Data[d] * dy : 0;
                    dskip[d] += dy * u.Data[at];
                    var toStep = 0.0;
                    for (var n = 0; n < s.States; n++)
                    {
                        double a = _a.Data[(d * s.States) + n];
                        double b = _b.Data[MapAt(s.GroupsB, s.StatesSideBySide, batch, d, n, t)];
                        var decay = Math.Exp(steps[t] * a);
                        dh[n] += _c.Data[MapAt(s.GroupsC, s.StatesSideBySide, batch, d, n, t)] * dy;
                        // The gradients of maps have states side by side.
                        dc[MapAt(s.GroupsC, true, batch, d, n, t)] += dy * h[t + 1, n];
                        db[MapAt(s.GroupsB, true, batch, d, n, t)] += steps[t] * u.Data[at] * dh[n];
                        du[at] += steps[t] * b * dh[n];
                        toStep += dh[n] * ((a * decay * h[t, n]) + (b * u.Data[at]));
                        da[(d * s.States) + n] += dh[n] * steps[t] * decay * h[t, n];
                        dh[n] *= decay;
                    }

                    ddelta[at] = toStep * slopes[t];
                    dbias[d] += ddelta[at];
                }

                for (var n = 0; n < s.States; n++)
                {
                    state[(((batch * s.Channels) + d) * s.States) + n] = h[s.Length, n];
                }
            }
        }

        return [y, state, du, ddelta, s.Gate ? dz : null, da, db, dc, s.Skip ? dskip : null, s.Bias ? dbias : null];
    }

    /// <summary>Numbers that the garbage collector does not move.</summary>
    internal sealed class Pinned(long count) : IDisposable
    {
        public long Length => count;

        public float* Data { get; } = (float*)System.Runtime.InteropServices.NativeMemory.AllocZeroed((nuint)count, sizeof(float));

        public ReadOnlySpan<float> Span => new(Data, checked((int)count));

        public void Dispose() => System.Runtime.InteropServices.NativeMemory.Free(Data);
    }
}
