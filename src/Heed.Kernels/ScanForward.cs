using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>The forward pass of <see cref="FusedScan"/>.</summary>
internal static class ScanForward
{
    /// <summary>Scans with vectors of a given width.</summary>
    public static unsafe void Run<TVector, TOps>(in ScanArguments arguments, SequenceView output, float* lastState)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        switch (arguments.B.IsConstant, arguments.C.IsConstant)
        {
            case (false, false):
                new ScanForwardLoop<TVector, TOps, Zero, Zero>(arguments, output, lastState).Run();
                break;
            case (true, false):
                new ScanForwardLoop<TVector, TOps, One, Zero>(arguments, output, lastState).Run();
                break;
            case (false, true):
                new ScanForwardLoop<TVector, TOps, Zero, One>(arguments, output, lastState).Run();
                break;
            default:
                new ScanForwardLoop<TVector, TOps, One, One>(arguments, output, lastState).Run();
                break;
        }
    }
}

/// <summary>One vector of channels from the first step to the last: chunk by chunk into panels, and within a chunk four states at a time, so that states and their decays stay in registers over the chunk.</summary>
internal sealed unsafe class ScanForwardLoop<TVector, TOps, TConstantB, TConstantC>(ScanArguments arguments, SequenceView output, float* lastState) : ParallelLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
    where TConstantB : struct, IConstant
    where TConstantC : struct, IConstant
{
    private readonly ScanShape _shape = new(arguments, TOps.Lanes);
    private ScanMaps _b;
    private ScanMaps _c;

    /// <summary>Computes all vectors of channels.</summary>
    public void Run()
    {
        var floats = ScanMaps.CopyFloats(arguments.B, arguments);
        var copies = Workspace.OfCall.Take(floats + ScanMaps.CopyFloats(arguments.C, arguments));
        _b = ScanMaps.Prepare(arguments.B, arguments, copies);
        _c = ScanMaps.Prepare(arguments.C, arguments, copies + floats);
        Run(checked((int)_shape.Vectors), arguments.Threads);
    }

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        var (batch, inBatch) = Math.DivRem(item, _shape.Runs * _shape.RunVectors);
        var (run, vector) = Math.DivRem(inBatch, _shape.RunVectors);
        var (first, channels) = (_shape.FirstChannel(run, vector), _shape.Held(vector));
        var (states, lanes, panel) = (arguments.States, TOps.Lanes, FusedScan.Chunk * TOps.Lanes);

        var a = Workspace.OfItem.Take((4 * _shape.StateFloats) + (5L * panel) + (2 * lanes));
        var state = a + _shape.StateFloats;
        var constantB = state + _shape.StateFloats;
        var constantC = constantB + _shape.StateFloats;
        var step = constantC + _shape.StateFloats;
        var input = step + panel;
        var weighted = input + panel;
        var sum = weighted + panel;
        var gate = sum + panel;
        var skip = gate + panel;
        var bias = skip + lanes;
        ScanPanels.States(arguments.A + (first * states), states, 1, channels, states, VectorMath.Log2E, a, lanes);
        ScanPanels.Numbers(arguments.Skip, first, channels, skip, lanes);
        ScanPanels.Numbers(arguments.DeltaBias, first, channels, bias, lanes);
        if (TConstantB.Value == 1)
        {
            _b.Constant(first, channels, states, constantB, lanes);
        }

        if (TConstantC.Value == 1)
        {
            _c.Constant(first, channels, states, constantC, lanes);
        }

        new Span<float>(state, (int)_shape.StateFloats).Clear();
        for (long chunk = 0; chunk < _shape.Chunks; chunk++)
        {
            var time = chunk * FusedScan.Chunk;
            var steps = (int)Math.Min(FusedScan.Chunk, arguments.Length - time);
            if (arguments.Checkpoints != null)
            {
                var kept = arguments.Checkpoints + (((item * _shape.Chunks) + chunk) * _shape.StateFloats);
                new ReadOnlySpan<float>(state, (int)_shape.StateFloats).CopyTo(new Span<float>(kept, (int)_shape.StateFloats));
            }

            ScanPanels.Gather<TVector, TOps>(arguments.Delta, batch, first, time, channels, steps, step, FusedScan.Chunk);
            ScanPanels.Gather<TVector, TOps>(arguments.Input, batch, first, time, channels, steps, input, FusedScan.Chunk);
            Prepare(steps, arguments.DeltaSoftplus, skip, bias, step, input, weighted, sum);
            var b = TConstantB.Value == 1 ? constantB : _b.At(batch, run, _shape.Runs, time);
            var c = TConstantC.Value == 1 ? constantC : _c.At(batch, run, _shape.Runs, time);
            var (mapB, mapC) = (TConstantB.Value == 1 ? 0 : _b.TimeStride, TConstantC.Value == 1 ? 0 : _c.TimeStride);
            var (across, down) = (TConstantB.Value == 1 ? lanes : 1, TConstantC.Value == 1 ? lanes : 1);
            var n = 0;
            for (; n + 4 <= states; n += 4)
            {
                States<Four>(steps, step, weighted, a + (n * lanes), b + (n * across), mapB, c + (n * down), mapC, state + (n * lanes), sum);
            }

            for (; n < states; n++)
            {
                States<One>(steps, step, weighted, a + (n * lanes), b + (n * across), mapB, c + (n * down), mapC, state + (n * lanes), sum);
            }

            if (arguments.Gate.IsGiven)
            {
                ScanPanels.Gather<TVector, TOps>(arguments.Gate, batch, first, time, channels, steps, gate, FusedScan.Chunk);
                Close(steps, gate, sum);
            }

            ScanPanels.Scatter<TVector, TOps>(sum, output, batch, first, time, channels, steps, FusedScan.Chunk);
        }

        if (lastState != null)
        {
            Packing.Columns<Float32Element>((byte*)state, lanes * sizeof(float), states, channels, lastState + (((batch * arguments.Channels) + first) * states), states);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Prepare(int steps, bool softplus, float* skip, float* bias, float* step, float* input, float* weighted, float* sum)
    {
        var (d, added) = (TOps.Load(skip), TOps.Load(bias));
        for (var t = 0; t < steps * TOps.Lanes; t += TOps.Lanes)
        {
            var value = TOps.Add(TOps.Load(step + t), added);
            value = softplus ? VectorMath.Softplus<TVector, TOps>(value, out _) : value;
            TOps.Store(value, step + t);
            var u = TOps.Load(input + t);
            TOps.Store(TOps.Multiply(value, u), weighted + t);
            TOps.Store(TOps.Multiply(d, u), sum + t);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void States<TCount>(
        int steps, float* step, float* weighted, float* a, float* b, nint mapB, float* c, nint mapC, float* state, float* sum)
        where TCount : struct, IConstant
    {
        var four = TCount.Value == 4;
        var (a0, h0) = (TOps.Load(a), TOps.Load(state));
        var (a1, a2, a3, h1, h2, h3) = (TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero);
        if (four)
        {
            (a1, a2, a3) = (TOps.Load(a + TOps.Lanes), TOps.Load(a + (2 * TOps.Lanes)), TOps.Load(a + (3 * TOps.Lanes)));
            (h1, h2, h3) = (TOps.Load(state + TOps.Lanes), TOps.Load(state + (2 * TOps.Lanes)), TOps.Load(state + (3 * TOps.Lanes)));
        }

        for (var t = 0; t < steps; t++)
        {
            var (dt, x) = (TOps.Load(step), TOps.Load(weighted));
            h0 = TOps.MultiplyAdd(TOps.Exp2(TOps.Multiply(dt, a0)), h0, TOps.Multiply(x, ScanMap.Load<TVector, TOps, TConstantB>(b, 0)));
            var y = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 0), h0, TOps.Load(sum));
            if (four)
            {
                h1 = TOps.MultiplyAdd(TOps.Exp2(TOps.Multiply(dt, a1)), h1, TOps.Multiply(x, ScanMap.Load<TVector, TOps, TConstantB>(b, 1)));
                h2 = TOps.MultiplyAdd(TOps.Exp2(TOps.Multiply(dt, a2)), h2, TOps.Multiply(x, ScanMap.Load<TVector, TOps, TConstantB>(b, 2)));
                h3 = TOps.MultiplyAdd(TOps.Exp2(TOps.Multiply(dt, a3)), h3, TOps.Multiply(x, ScanMap.Load<TVector, TOps, TConstantB>(b, 3)));
                var other = TOps.Multiply(ScanMap.Load<TVector, TOps, TConstantC>(c, 1), h1);
                y = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 2), h2, y);
                other = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 3), h3, other);
                y = TOps.Add(y, other);
            }

            TOps.Store(y, sum);
            step += TOps.Lanes;
            weighted += TOps.Lanes;
            sum += TOps.Lanes;
            b += mapB;
            c += mapC;
        }

        TOps.Store(h0, state);
        if (four)
        {
            TOps.Store(h1, state + TOps.Lanes);
            TOps.Store(h2, state + (2 * TOps.Lanes));
            TOps.Store(h3, state + (3 * TOps.Lanes));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Close(int steps, float* gate, float* sum)
    {
        for (var t = 0; t < steps * TOps.Lanes; t += TOps.Lanes)
        {
            var z = TOps.Load(gate + t);
            TOps.Store(TOps.Multiply(TOps.Load(sum + t), TOps.Multiply(z, VectorMath.Sigmoid<TVector, TOps>(z))), sum + t);
        }
    }
}
