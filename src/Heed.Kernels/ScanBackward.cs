using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>The backward pass of <see cref="FusedScan"/>.</summary>
internal static class ScanBackward
{
    /// <summary>Computes the gradients with vectors of a given width.</summary>
    public static void Run<TVector, TOps>(in ScanArguments arguments, in ScanGradients gradients)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        switch (arguments.B.IsConstant, arguments.C.IsConstant)
        {
            case (false, false):
                new ScanBackwardLoop<TVector, TOps, Zero, Zero>(arguments, gradients).Run();
                break;
            case (true, false):
                new ScanBackwardLoop<TVector, TOps, One, Zero>(arguments, gradients).Run();
                break;
            case (false, true):
                new ScanBackwardLoop<TVector, TOps, Zero, One>(arguments, gradients).Run();
                break;
            default:
                new ScanBackwardLoop<TVector, TOps, One, One>(arguments, gradients).Run();
                break;
        }
    }
}

/// <summary>
/// A unit of channels from the last chunk to the first. Within a chunk, four states at a time: their values and decays are computed again from the kept state into first-level cache, then the recurrence of the gradients runs
/// back over them. What is summed over time stays in panels of the unit; what is summed over channels (the gradients of the maps) goes to a sum of the unit's own, and the units' sums are added in their order.
/// </summary>
internal sealed unsafe class ScanBackwardLoop<TVector, TOps, TConstantB, TConstantC> : ParallelLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
    where TConstantB : struct, IConstant
    where TConstantC : struct, IConstant
{
    private const int StatesAtOnce = 4;

    // Time steps whose sums over units one item adds.
    private const int ItemSteps = 1024;

    private readonly ScanArguments _arguments;
    private readonly ScanGradients _gradients;
    private readonly ScanShape _shape;
    private readonly long _units;
    private readonly long _vectorFloats;
    private ScanMaps _b;
    private ScanMaps _c;
    private float* _sumsB;
    private float* _sumsC;
    private float* _overTime;
    private bool _adding;

    /// <summary>Prepares the pass.</summary>
    public ScanBackwardLoop(in ScanArguments arguments, in ScanGradients gradients)
    {
        _arguments = arguments;
        _gradients = gradients;
        _shape = new(arguments, TOps.Lanes);
        _units = arguments.Batch * _shape.Runs * _shape.RunUnits;
        // Of a vector: A, the constant maps, skip and bias.
        _vectorFloats = ((1 + TConstantB.Value + TConstantC.Value) * _shape.StateFloats) + (2 * TOps.Lanes);
    }

    private long MapFloats => _arguments.Length * _arguments.States;

    /// <summary>Computes the gradients.</summary>
    public void Run()
    {
        var copyB = ScanMaps.CopyFloats(_arguments.B, _arguments);
        var copyC = ScanMaps.CopyFloats(_arguments.C, _arguments);
        var sumsB = TConstantB.Value == 1 || IsAlone(_arguments.B) ? 0 : Workspace.Lines(_units * MapFloats);
        var sumsC = TConstantC.Value == 1 || IsAlone(_arguments.C) ? 0 : Workspace.Lines(_units * MapFloats);
        var memory = Workspace.OfCall.Take(copyB + copyC + sumsB + sumsC + (_shape.Vectors * _vectorFloats));
        _b = ScanMaps.Prepare(_arguments.B, _arguments, memory);
        _c = ScanMaps.Prepare(_arguments.C, _arguments, memory + copyB);
        _sumsB = sumsB == 0 ? _gradients.B : memory + copyB + copyC;
        _sumsC = sumsC == 0 ? _gradients.C : memory + copyB + copyC + sumsB;
        _overTime = memory + copyB + copyC + sumsB + sumsC;
        Run(checked((int)_units), _arguments.Threads);
        _adding = true;
        if (sumsB > 0 || sumsC > 0)
        {
            Run(checked((int)((_arguments.Length + ItemSteps - 1) / ItemSteps)), _arguments.Threads);
        }

        AddOverBatch();
    }

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        if (_adding)
        {
            AddUnits(item * (long)ItemSteps);
            return;
        }

        var (batch, inBatch) = Math.DivRem(item, _shape.Runs * _shape.RunUnits);
        var (run, part) = Math.DivRem(inBatch, _shape.RunUnits);
        var from = part * _shape.UnitVectors;
        var vectors = (int)Math.Min(_shape.UnitVectors, _shape.RunVectors - from);
        var (lanes, states) = (TOps.Lanes, _arguments.States);
        var work = new Panels(_shape, vectors, Workspace.OfItem);
        for (var v = 0; v < vectors; v++)
        {
            var (first, channels) = (_shape.FirstChannel(run, from + v), _shape.Held(from + v));
            ScanPanels.States(_arguments.A + (first * states), states, 1, channels, states, VectorMath.Log2E, work.A(v), lanes);
            ScanPanels.Numbers(_arguments.Skip, first, channels, work.Skip(v), lanes);
            ScanPanels.Numbers(_arguments.DeltaBias, first, channels, work.Bias(v), lanes);
            if (TConstantB.Value == 1)
            {
                _b.Constant(first, channels, states, work.ConstantB(v), lanes);
            }

            if (TConstantC.Value == 1)
            {
                _c.Constant(first, channels, states, work.ConstantC(v), lanes);
            }

            NativeMemory.Clear(work.Carry(v), (nuint)(_shape.StateFloats * sizeof(float)));
            NativeMemory.Clear(OverTime(batch, run, from + v), (nuint)(_vectorFloats * sizeof(float)));
        }

        for (var chunk = _shape.Chunks - 1; chunk >= 0; chunk--)
        {
            var time = chunk * FusedScan.Chunk;
            var steps = (int)Math.Min(FusedScan.Chunk, _arguments.Length - time);
            if (TConstantB.Value == 0)
            {
                NativeMemory.Clear(_sumsB + (item * MapFloats) + (time * states), (nuint)((long)steps * states * sizeof(float)));
            }

            if (TConstantC.Value == 0)
            {
                NativeMemory.Clear(_sumsC + (item * MapFloats) + (time * states), (nuint)((long)steps * states * sizeof(float)));
            }

            for (var v = 0; v < vectors; v++)
            {
                Compute(item, batch, run, from + v, v, chunk, time, steps, work);
            }
        }
    }

    /// <summary>One vector of channels over one chunk.</summary>
    private void Compute(int item, long batch, long run, long vector, int v, long chunk, long time, int steps, in Panels work)
    {
        var (lanes, states) = (TOps.Lanes, _arguments.States);
        var (first, channels) = (_shape.FirstChannel(run, vector), _shape.Held(vector));
        ScanPanels.Gather<TVector, TOps>(_arguments.Delta, batch, first, time, channels, steps, work.Step, -FusedScan.Chunk);
        ScanPanels.Gather<TVector, TOps>(_arguments.Input, batch, first, time, channels, steps, work.Input, -FusedScan.Chunk);
        ScanPanels.Gather<TVector, TOps>(_gradients.Output, batch, first, time, channels, steps, work.Incoming, -FusedScan.Chunk);
        Prepare(steps, _arguments.DeltaSoftplus, work.Bias(v), work.Step, work.Slope, work.Input, work.Weighted, work.OfInput, work.OfStep);
        var gated = _arguments.Gate.IsGiven;
        if (gated)
        {
            ScanPanels.Gather<TVector, TOps>(_arguments.Gate, batch, first, time, channels, steps, work.Gate, -FusedScan.Chunk);
            OpenGate(steps, work.Skip(v), work.Input, work.Gate, work.Incoming, work.OfGate, work.Ungated);
        }

        var overTime = OverTime(batch, run, vector);
        var constantB = overTime + _shape.StateFloats;
        var constantC = constantB + (TConstantB.Value * _shape.StateFloats);
        var b = TConstantB.Value == 1 ? work.ConstantB(v) : _b.At(batch, run, _shape.Runs, time);
        var c = TConstantC.Value == 1 ? work.ConstantC(v) : _c.At(batch, run, _shape.Runs, time);
        var (mapB, mapC) = (TConstantB.Value == 1 ? 0 : _b.TimeStride, TConstantC.Value == 1 ? 0 : _c.TimeStride);
        var (across, down) = (TConstantB.Value == 1 ? lanes : 1, TConstantC.Value == 1 ? lanes : 1);
        var kept = _arguments.Checkpoints + (((((batch * _shape.Runs) + run) * _shape.RunVectors) + vector) * _shape.Chunks * _shape.StateFloats) + (chunk * _shape.StateFloats);
        for (long line = 0; line < _shape.StateFloats; line += 16)
        {
            // The state that the next chunk starts from.
            TOps.Prefetch(kept - _shape.StateFloats + line);
        }

        var sumB = TConstantB.Value == 1 ? constantB : _sumsB + (item * MapFloats) + (time * states);
        var sumC = TConstantC.Value == 1 ? constantC : _sumsC + (item * MapFloats) + (time * states);
        for (var n = 0; n < states;)
        {
            var at = n * lanes;
            if (n + StatesAtOnce <= states)
            {
                if (gated)
                {
                    Recompute<Four, One>(steps, work.Step, work.Weighted, work.A(v) + at, b + (n * across), mapB, c + (n * down), mapC, kept + at, work.Values, work.Decays, work.Ungated);
                }
                else
                {
                    Recompute<Four, Zero>(steps, work.Step, work.Weighted, work.A(v) + at, b + (n * across), mapB, c + (n * down), mapC, kept + at, work.Values, work.Decays, work.Ungated);
                }

                Reverse<Four>(
                    steps, states, work, work.A(v) + at, b + (n * across), mapB, c + (n * down), mapC, work.Carry(v) + at, overTime + at, sumB + (n * across), sumC + (n * down));
                n += StatesAtOnce;
            }
            else
            {
                if (gated)
                {
                    Recompute<One, One>(steps, work.Step, work.Weighted, work.A(v) + at, b + (n * across), mapB, c + (n * down), mapC, kept + at, work.Values, work.Decays, work.Ungated);
                }
                else
                {
                    Recompute<One, Zero>(steps, work.Step, work.Weighted, work.A(v) + at, b + (n * across), mapB, c + (n * down), mapC, kept + at, work.Values, work.Decays, work.Ungated);
                }

                Reverse<One>(
                    steps, states, work, work.A(v) + at, b + (n * across), mapB, c + (n * down), mapC, work.Carry(v) + at, overTime + at, sumB + (n * across), sumC + (n * down));
                if (TConstantB.Value == 0)
                {
                    AddLanes(steps, work.LanesB, sumB + n, states);
                }

                if (TConstantC.Value == 0)
                {
                    AddLanes(steps, work.LanesC, sumC + n, states);
                }

                n++;
            }
        }

        var single = constantC + (TConstantC.Value * _shape.StateFloats);
        Close(steps, work.Skip(v), work.Step, work.Slope, work.Input, work.Incoming, work.OfInput, work.OfStep, single, single + lanes);
        ScanPanels.Scatter<TVector, TOps>(work.OfInput, _gradients.Input, batch, first, time, channels, steps, -FusedScan.Chunk);
        ScanPanels.Scatter<TVector, TOps>(work.OfStep, _gradients.Delta, batch, first, time, channels, steps, -FusedScan.Chunk);
        if (gated)
        {
            CloseGate(steps, work.Ungated, work.OfGate);
            ScanPanels.Scatter<TVector, TOps>(work.OfGate, _gradients.Gate, batch, first, time, channels, steps, -FusedScan.Chunk);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Prepare(int steps, bool softplus, float* bias, float* step, float* slope, float* input, float* weighted, float* ofInput, float* ofStep)
    {
        var added = TOps.Load(bias);
        for (var t = 0; t < steps * TOps.Lanes; t += TOps.Lanes)
        {
            var value = TOps.Add(TOps.Load(step + t), added);
            var derivative = TOps.Create(1f);
            value = softplus ? VectorMath.Softplus<TVector, TOps>(value, out derivative) : value;
            TOps.Store(value, step + t);
            TOps.Store(derivative, slope + t);
            TOps.Store(TOps.Multiply(value, TOps.Load(input + t)), weighted + t);
            TOps.Store(TOps.Zero, ofInput + t);
            TOps.Store(TOps.Zero, ofStep + t);
        }
    }

    /// <summary>Turns the gradient of the gated output into that of the ungated one, and leaves the factor that the ungated output has in the gate's.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void OpenGate(int steps, float* skip, float* input, float* gate, float* incoming, float* ofGate, float* ungated)
    {
        var (one, d) = (TOps.Create(1f), TOps.Load(skip));
        for (var t = 0; t < steps * TOps.Lanes; t += TOps.Lanes)
        {
            var (z, g) = (TOps.Load(gate + t), TOps.Load(incoming + t));
            var sigmoid = VectorMath.Sigmoid<TVector, TOps>(z);
            TOps.Store(TOps.Multiply(g, TOps.Multiply(z, sigmoid)), incoming + t);
            TOps.Store(TOps.Multiply(TOps.Multiply(g, sigmoid), TOps.MultiplyAdd(z, TOps.Subtract(one, sigmoid), one)), ofGate + t);
            TOps.Store(TOps.Multiply(d, TOps.Load(input + t)), ungated + t);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void CloseGate(int steps, float* ungated, float* ofGate)
    {
        for (var t = 0; t < steps * TOps.Lanes; t += TOps.Lanes)
        {
            TOps.Store(TOps.Multiply(TOps.Load(ofGate + t), TOps.Load(ungated + t)), ofGate + t);
        }
    }

    /// <summary>The states before, within and after the chunk (values[0] is the kept one), their decays, and with a gate the output.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Recompute<TCount, TGated>(
        int steps, float* step, float* weighted, float* a, float* b, nint mapB, float* c, nint mapC, float* kept, float* values, float* decays, float* ungated)
        where TCount : struct, IConstant
        where TGated : struct, IConstant
    {
        var four = TCount.Value == StatesAtOnce;
        var (a0, h0) = (TOps.Load(a), TOps.Load(kept));
        var (a1, a2, a3, h1, h2, h3) = (TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero);
        TOps.Store(h0, values);
        if (four)
        {
            (a1, a2, a3) = (TOps.Load(a + TOps.Lanes), TOps.Load(a + (2 * TOps.Lanes)), TOps.Load(a + (3 * TOps.Lanes)));
            (h1, h2, h3) = (TOps.Load(kept + TOps.Lanes), TOps.Load(kept + (2 * TOps.Lanes)), TOps.Load(kept + (3 * TOps.Lanes)));
            TOps.Store(h1, values + TOps.Lanes);
            TOps.Store(h2, values + (2 * TOps.Lanes));
            TOps.Store(h3, values + (3 * TOps.Lanes));
        }

        for (var t = 0; t < steps; t++)
        {
            values += TCount.Value * TOps.Lanes;
            var (dt, x) = (TOps.Load(step), TOps.Load(weighted));
            var decay = TOps.Exp2(TOps.Multiply(dt, a0));
            h0 = TOps.MultiplyAdd(decay, h0, TOps.Multiply(x, ScanMap.Load<TVector, TOps, TConstantB>(b, 0)));
            TOps.Store(decay, decays);
            TOps.Store(h0, values);
            var y = TGated.Value == 1 ? TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 0), h0, TOps.Load(ungated)) : TOps.Zero;
            if (four)
            {
                decay = TOps.Exp2(TOps.Multiply(dt, a1));
                h1 = TOps.MultiplyAdd(decay, h1, TOps.Multiply(x, ScanMap.Load<TVector, TOps, TConstantB>(b, 1)));
                TOps.Store(decay, decays + TOps.Lanes);
                TOps.Store(h1, values + TOps.Lanes);
                decay = TOps.Exp2(TOps.Multiply(dt, a2));
                h2 = TOps.MultiplyAdd(decay, h2, TOps.Multiply(x, ScanMap.Load<TVector, TOps, TConstantB>(b, 2)));
                TOps.Store(decay, decays + (2 * TOps.Lanes));
                TOps.Store(h2, values + (2 * TOps.Lanes));
                decay = TOps.Exp2(TOps.Multiply(dt, a3));
                h3 = TOps.MultiplyAdd(decay, h3, TOps.Multiply(x, ScanMap.Load<TVector, TOps, TConstantB>(b, 3)));
                TOps.Store(decay, decays + (3 * TOps.Lanes));
                TOps.Store(h3, values + (3 * TOps.Lanes));
                if (TGated.Value == 1)
                {
                    y = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 1), h1, y);
                    y = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 2), h2, y);
                    y = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 3), h3, y);
                }
            }

            if (TGated.Value == 1)
            {
                TOps.Store(y, ungated);
            }

            step += TOps.Lanes;
            weighted += TOps.Lanes;
            ungated += TOps.Lanes;
            decays += TCount.Value * TOps.Lanes;
            b += mapB;
            c += mapC;
        }
    }

    /// <summary>The recurrence of the gradients, from the last step to the first. <c>carry</c> is what the step behind passes on: its decay times the gradient of its state.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Reverse<TCount>(
        int steps, int states, in Panels work, float* a, float* b, nint mapB, float* c, nint mapC, float* carry, float* ofA, float* sumB, float* sumC)
        where TCount : struct, IConstant
    {
        var four = TCount.Value == StatesAtOnce;
        var (a0, g0, d0) = (TOps.Load(a), TOps.Load(carry), TOps.Load(ofA));
        var (a1, a2, a3, g1, g2, g3) = (TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero);
        var (d1, d2, d3) = (TOps.Zero, TOps.Zero, TOps.Zero);
        if (four)
        {
            (a1, a2, a3) = (TOps.Load(a + TOps.Lanes), TOps.Load(a + (2 * TOps.Lanes)), TOps.Load(a + (3 * TOps.Lanes)));
            (g1, g2, g3) = (TOps.Load(carry + TOps.Lanes), TOps.Load(carry + (2 * TOps.Lanes)), TOps.Load(carry + (3 * TOps.Lanes)));
            (d1, d2, d3) = (TOps.Load(ofA + TOps.Lanes), TOps.Load(ofA + (2 * TOps.Lanes)), TOps.Load(ofA + (3 * TOps.Lanes)));
        }

        nint last = steps - 1;
        var at = last * TOps.Lanes;
        var step = work.Step + at;
        var weighted = work.Weighted + at;
        var incoming = work.Incoming + at;
        var ofInput = work.OfInput + at;
        var ofStep = work.OfStep + at;
        var lanesB = work.LanesB + at;
        var lanesC = work.LanesC + at;
        var before = work.Values + (at * TCount.Value);
        var decays = work.Decays + (at * TCount.Value);
        b += last * mapB;
        c += last * mapC;
        sumB += TConstantB.Value == 1 ? 0 : last * states;
        sumC += TConstantC.Value == 1 ? 0 : last * states;
        for (var t = last; t >= 0; t--)
        {
            var (dt, x, dy) = (TOps.Load(step), TOps.Load(weighted), TOps.Load(incoming));
            var (toInput, toStep) = (TOps.Load(ofInput), TOps.Load(ofStep));

            // dh = C dy + what was carried; then the carry to the step before, decay dh, and its product with the state before.
            var dh = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 0), dy, g0);
            var b0 = TOps.Multiply(x, dh);
            var c0 = TOps.Multiply(dy, TOps.Load(before + (TCount.Value * TOps.Lanes)));
            toInput = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantB>(b, 0), dh, toInput);
            g0 = TOps.Multiply(TOps.Load(decays), dh);
            var product = TOps.Multiply(g0, TOps.Load(before));
            toStep = TOps.MultiplyAdd(a0, product, toStep);
            d0 = TOps.MultiplyAdd(dt, product, d0);
            if (four)
            {
                dh = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 1), dy, g1);
                var b1 = TOps.Multiply(x, dh);
                var c1 = TOps.Multiply(dy, TOps.Load(before + (5 * TOps.Lanes)));
                toInput = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantB>(b, 1), dh, toInput);
                g1 = TOps.Multiply(TOps.Load(decays + TOps.Lanes), dh);
                product = TOps.Multiply(g1, TOps.Load(before + TOps.Lanes));
                toStep = TOps.MultiplyAdd(a1, product, toStep);
                d1 = TOps.MultiplyAdd(dt, product, d1);

                dh = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 2), dy, g2);
                var b2 = TOps.Multiply(x, dh);
                var c2 = TOps.Multiply(dy, TOps.Load(before + (6 * TOps.Lanes)));
                toInput = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantB>(b, 2), dh, toInput);
                g2 = TOps.Multiply(TOps.Load(decays + (2 * TOps.Lanes)), dh);
                product = TOps.Multiply(g2, TOps.Load(before + (2 * TOps.Lanes)));
                toStep = TOps.MultiplyAdd(a2, product, toStep);
                d2 = TOps.MultiplyAdd(dt, product, d2);

                dh = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantC>(c, 3), dy, g3);
                var b3 = TOps.Multiply(x, dh);
                var c3 = TOps.Multiply(dy, TOps.Load(before + (7 * TOps.Lanes)));
                toInput = TOps.MultiplyAdd(ScanMap.Load<TVector, TOps, TConstantB>(b, 3), dh, toInput);
                g3 = TOps.Multiply(TOps.Load(decays + (3 * TOps.Lanes)), dh);
                product = TOps.Multiply(g3, TOps.Load(before + (3 * TOps.Lanes)));
                toStep = TOps.MultiplyAdd(a3, product, toStep);
                d3 = TOps.MultiplyAdd(dt, product, d3);

                AddFour<TConstantB>(b0, b1, b2, b3, sumB);
                AddFour<TConstantC>(c0, c1, c2, c3, sumC);
            }
            else
            {
                AddOne<TConstantB>(b0, sumB, lanesB);
                AddOne<TConstantC>(c0, sumC, lanesC);
            }

            TOps.Store(toInput, ofInput);
            TOps.Store(toStep, ofStep);
            step -= TOps.Lanes;
            weighted -= TOps.Lanes;
            incoming -= TOps.Lanes;
            ofInput -= TOps.Lanes;
            ofStep -= TOps.Lanes;
            lanesB -= TOps.Lanes;
            lanesC -= TOps.Lanes;
            before -= TCount.Value * TOps.Lanes;
            decays -= TCount.Value * TOps.Lanes;
            b -= mapB;
            c -= mapC;
            sumB -= TConstantB.Value == 1 ? 0 : states;
            sumC -= TConstantC.Value == 1 ? 0 : states;
        }

        TOps.Store(g0, carry);
        TOps.Store(d0, ofA);
        if (four)
        {
            TOps.Store(g1, carry + TOps.Lanes);
            TOps.Store(g2, carry + (2 * TOps.Lanes));
            TOps.Store(g3, carry + (3 * TOps.Lanes));
            TOps.Store(d1, ofA + TOps.Lanes);
            TOps.Store(d2, ofA + (2 * TOps.Lanes));
            TOps.Store(d3, ofA + (3 * TOps.Lanes));
        }
    }

    /// <summary>Adds to the gradients of four states of a map: of a shared one the sums over the channels, of a constant one the channels side by side.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddFour<TConstant>(TVector v0, TVector v1, TVector v2, TVector v3, float* sum)
        where TConstant : struct, IConstant
    {
        if (TConstant.Value == 1)
        {
            TOps.Store(TOps.Add(TOps.Load(sum), v0), sum);
            TOps.Store(TOps.Add(TOps.Load(sum + TOps.Lanes), v1), sum + TOps.Lanes);
            TOps.Store(TOps.Add(TOps.Load(sum + (2 * TOps.Lanes)), v2), sum + (2 * TOps.Lanes));
            TOps.Store(TOps.Add(TOps.Load(sum + (3 * TOps.Lanes)), v3), sum + (3 * TOps.Lanes));
        }
        else
        {
            (Vector128.Load(sum) + TOps.SumEach(v0, v1, v2, v3)).Store(sum);
        }
    }

    /// <summary>As <see cref="AddFour"/> for one state; sums over the channels are left to <see cref="AddLanes"/>, which takes four steps at once.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddOne<TConstant>(TVector value, float* sum, float* lanes)
        where TConstant : struct, IConstant
    {
        if (TConstant.Value == 1)
        {
            TOps.Store(TOps.Add(TOps.Load(sum), value), sum);
        }
        else
        {
            TOps.Store(value, lanes);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void AddLanes(int steps, float* lanes, float* sum, nint states)
    {
        var t = 0;
        for (; t + 4 <= steps; t += 4)
        {
            var sums = TOps.SumEach(TOps.Load(lanes), TOps.Load(lanes + TOps.Lanes), TOps.Load(lanes + (2 * TOps.Lanes)), TOps.Load(lanes + (3 * TOps.Lanes)));
            sum[0] += sums[0];
            sum[states] += sums[1];
            sum[2 * states] += sums[2];
            sum[3 * states] += sums[3];
            sum += 4 * states;
            lanes += 4 * TOps.Lanes;
        }

        for (; t < steps; t++)
        {
            *sum += TOps.Sum(TOps.Load(lanes));
            sum += states;
            lanes += TOps.Lanes;
        }
    }

    /// <summary>From the sums over the states to the gradients of inputs and steps, and the sums over time of skip and bias.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Close(int steps, float* skip, float* step, float* slope, float* input, float* incoming, float* ofInput, float* ofStep, float* ofSkip, float* ofBias)
    {
        // The decays were powers of two, so that A was log2(e) times as large.
        const float Ln2 = 0.693147180559945f;
        var (d, ln2, skipSum, biasSum) = (TOps.Load(skip), TOps.Create(Ln2), TOps.Load(ofSkip), TOps.Load(ofBias));
        for (var t = 0; t < steps * TOps.Lanes; t += TOps.Lanes)
        {
            var (u, dy, sum) = (TOps.Load(input + t), TOps.Load(incoming + t), TOps.Load(ofInput + t));
            var toStep = TOps.Multiply(TOps.MultiplyAdd(TOps.Load(ofStep + t), ln2, TOps.Multiply(u, sum)), TOps.Load(slope + t));
            TOps.Store(TOps.MultiplyAdd(TOps.Load(step + t), sum, TOps.Multiply(d, dy)), ofInput + t);
            TOps.Store(toStep, ofStep + t);
            biasSum = TOps.Add(biasSum, toStep);
            skipSum = TOps.MultiplyAdd(dy, u, skipSum);
        }

        TOps.Store(skipSum, ofSkip);
        TOps.Store(biasSum, ofBias);
    }

    private float* OverTime(long batch, long run, long vector) => _overTime + (((((batch * _shape.Runs) + run) * _shape.RunVectors) + vector) * _vectorFloats);

    /// <summary>Whether every group of a map belongs to one unit, whose sum is then the gradient itself.</summary>
    private bool IsAlone(in StateMapView map) => map.Groups == _shape.Runs && _shape.RunUnits == 1;

    /// <summary>Adds the units' sums of the gradients of the maps, over some steps of every batch item and group.</summary>
    private void AddUnits(long time)
    {
        var steps = Math.Min(ItemSteps, _arguments.Length - time);
        if (TConstantB.Value == 0 && _sumsB != _gradients.B)
        {
            AddUnits(_arguments.B.Groups, _sumsB, _gradients.B, time, steps);
        }

        if (TConstantC.Value == 0 && _sumsC != _gradients.C)
        {
            AddUnits(_arguments.C.Groups, _sumsC, _gradients.C, time, steps);
        }
    }

    private void AddUnits(int groups, float* sums, float* gradient, long time, long steps)
    {
        var units = _shape.Runs / groups * _shape.RunUnits;
        var (offset, count) = (time * _arguments.States, checked((int)(steps * _arguments.States)));
        for (long group = 0; group < _arguments.Batch * groups; group++)
        {
            var into = new Span<float>(gradient + (group * MapFloats) + offset, count);
            new ReadOnlySpan<float>(sums + (group * units * MapFloats) + offset, count).CopyTo(into);
            for (long unit = 1; unit < units; unit++)
            {
                TensorPrimitives.Add(into, new ReadOnlySpan<float>(sums + (((group * units) + unit) * MapFloats) + offset, count), into);
            }
        }
    }

    /// <summary>Adds what belongs to channels over the batch, in its order, and lays it out.</summary>
    private void AddOverBatch()
    {
        var (lanes, states, length) = (TOps.Lanes, _arguments.States, checked((int)_vectorFloats));
        for (long inBatch = 0; inBatch < _shape.Runs * _shape.RunVectors; inBatch++)
        {
            var (run, vector) = Math.DivRem(inBatch, _shape.RunVectors);
            var (first, channels) = (_shape.FirstChannel(run, vector), _shape.Held(vector));
            var total = OverTime(0, run, vector);
            if (_arguments.Batch == 0)
            {
                total = Workspace.OfItem.Take(length);
                new Span<float>(total, length).Clear();
            }

            for (long batch = 1; batch < _arguments.Batch; batch++)
            {
                TensorPrimitives.Add(new ReadOnlySpan<float>(total, length), new ReadOnlySpan<float>(OverTime(batch, run, vector), length), new Span<float>(total, length));
            }

            LayOut(total, _gradients.A);
            var next = total + _shape.StateFloats;
            if (TConstantB.Value == 1)
            {
                LayOut(next, _gradients.B);
                next += _shape.StateFloats;
            }

            if (TConstantC.Value == 1)
            {
                LayOut(next, _gradients.C);
                next += _shape.StateFloats;
            }

            Copy(next, _gradients.Skip);
            Copy(next + lanes, _gradients.DeltaBias);

            void LayOut(float* panel, float* gradient) =>
                Packing.Columns<Float32Element>((byte*)panel, lanes * sizeof(float), states, channels, gradient + (first * states), states);

            void Copy(float* numbers, float* gradient)
            {
                if (gradient != null)
                {
                    new ReadOnlySpan<float>(numbers, channels).CopyTo(new Span<float>(gradient + first, channels));
                }
            }
        }
    }

    /// <summary>Memory of a unit: numbers of its channels, and panels of one vector over one chunk.</summary>
    private readonly struct Panels
    {
        private readonly float* _memory;
        private readonly long _stateFloats;
        private readonly long _perVector;
        private readonly long _panels;

        public Panels(in ScanShape shape, int vectors, Workspace workspace)
        {
            _stateFloats = shape.StateFloats;
            _perVector = (4 * _stateFloats) + (2L * TOps.Lanes);
            _panels = vectors * _perVector;
            _memory = workspace.Take(_panels + ((12L + StatesAtOnce + StatesAtOnce + 1) * PanelFloats));
        }

        private static int PanelFloats => FusedScan.Chunk * TOps.Lanes;

        public float* Step => Panel(0);

        public float* Weighted => Panel(1);

        public float* Incoming => Panel(2);

        public float* OfInput => Panel(3);

        public float* OfStep => Panel(4);

        public float* Input => Panel(5);

        public float* Slope => Panel(6);

        public float* Gate => Panel(7);

        public float* OfGate => Panel(8);

        public float* Ungated => Panel(9);

        public float* LanesB => Panel(10);

        public float* LanesC => Panel(11);

        public float* Decays => Panel(12);

        public float* Values => Panel(12 + StatesAtOnce);

        public float* A(int vector) => _memory + (vector * _perVector);

        public float* Carry(int vector) => A(vector) + _stateFloats;

        public float* ConstantB(int vector) => A(vector) + (2 * _stateFloats);

        public float* ConstantC(int vector) => A(vector) + (3 * _stateFloats);

        public float* Skip(int vector) => A(vector) + (4 * _stateFloats);

        public float* Bias(int vector) => Skip(vector) + TOps.Lanes;

        private float* Panel(int index) => _memory + _panels + ((long)index * PanelFloats);
    }
}
