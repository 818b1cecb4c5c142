using Heed.Interop;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The selective scan S6 (arXiv 2312.00752, section 3): a linear recurrence per channel whose step, input and output maps depend on the input. <c>h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t</c>,
/// <c>y_t = C_t h_t + D u_t</c>, times <c>SiLU(z_t)</c> where there is a gate. The input map is discretised by Euler's rule, as every implementation does.</summary>
/// <remarks>float32 on the CPU goes through <see cref="Kernels.FusedScan"/>: time and memory linear in the length, the same bits for any number of threads, either memory order of the sequences without a copy
/// (<c>[B, D, T]</c> dense, or the transposed view of <c>[B, T, D]</c>). Everything else is computed step by step in libtorch operations. Gradients of gradients take that way, too.</remarks>
public static class SelectiveScan
{
    /// <summary>Scans sequences, with gradients for every tensor (none through the last state).</summary>
    /// <param name="u">Inputs <c>[B, D, T]</c>.</param>
    /// <param name="delta">Steps <c>[B, D, T]</c>, before <paramref name="deltaBias"/> and softplus.</param>
    /// <param name="a"><c>[D, N]</c>, negative.</param>
    /// <param name="b">Input maps: <c>[D, N]</c> constant, <c>[B, N, T]</c>, or <c>[B, G, N, T]</c> where channel d uses group d / (D / G).</param>
    /// <param name="c">Output maps, shaped as <paramref name="b"/> may be.</param>
    /// <param name="skip">D of the recurrence, <c>[D]</c>; null: none.</param>
    /// <param name="gate">z, <c>[B, D, T]</c>; null: none.</param>
    /// <param name="deltaBias"><c>[D]</c>, added to the steps; null: none.</param>
    /// <param name="deltaSoftplus">Whether steps pass through softplus.</param>
    /// <returns>The output <c>[B, D, T]</c>, in the memory order of <paramref name="u"/>, and the state after the last step <c>[B, D, N]</c> (without gradient). In half precision, steps and states are float32, and so is
    /// the last state.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit, T is 0, or G does not divide D.</exception>
    public static (Tensor Output, Tensor LastState) Apply(
        Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? skip = null, Tensor? gate = null, Tensor? deltaBias = null, bool deltaSoftplus = false)
    {
        Check(u, delta, a, b, c, skip, gate, deltaBias);
        var type = u.dtype;
        if (type == ScalarType.Float32 && u.device_type == TorchSharp.DeviceType.CPU && IsFloat32(delta, a, b, c, skip, gate, deltaBias))
        {
            return SelectiveScanFunction.Compute(new(u, delta, a, b, c, skip, gate, deltaBias), deltaSoftplus);
        }

        if (type is not (ScalarType.Float16 or ScalarType.BFloat16))
        {
            return PlainSelectiveScan.Apply(u, delta, a, b, c, skip, gate, deltaBias, deltaSoftplus);
        }

        // Steps and states would lose what they accumulate in half precision.
        using var scope = NewDisposeScope();
        var (output, state) = Apply(
            u.to(float32), delta.to(float32), a.to(float32), b.to(float32), c.to(float32), skip?.to(float32), gate?.to(float32), deltaBias?.to(float32), deltaSoftplus);
        return (output.to(type).MoveToOuterDisposeScope(), state.MoveToOuterDisposeScope());
    }

    private static bool IsFloat32(params ReadOnlySpan<Tensor?> tensors)
    {
        foreach (var tensor in tensors)
        {
            if (tensor is not null && tensor.dtype != ScalarType.Float32)
            {
                return false;
            }
        }

        return true;
    }

    private static void Check(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? skip, Tensor? gate, Tensor? deltaBias)
    {
        ArgumentNullException.ThrowIfNull(u);
        ArgumentNullException.ThrowIfNull(delta);
        ArgumentNullException.ThrowIfNull(a);
        ArgumentNullException.ThrowIfNull(b);
        ArgumentNullException.ThrowIfNull(c);
        if (u.dim() != 3 || u.shape[1] < 1 || u.shape[2] < 1)
        {
            throw new ArgumentException($"u must be [batch, channels, length] with channels and a length from 1, not {ScanShapes.Of(u)}.", nameof(u));
        }

        var (channels, length) = (u.shape[1], u.shape[2]);
        ScanShapes.Require(delta, nameof(delta), u.shape);
        if (a.dim() != 2 || a.shape[0] != channels || a.shape[1] < 1)
        {
            throw new ArgumentException($"a must be [{channels}, states] with states from 1, not {ScanShapes.Of(a)}.", nameof(a));
        }

        CheckMap(b, nameof(b), u.shape[0], channels, a.shape[1], length);
        CheckMap(c, nameof(c), u.shape[0], channels, a.shape[1], length);
        ScanShapes.Require(skip, nameof(skip), channels);
        ScanShapes.Require(gate, nameof(gate), u.shape);
        ScanShapes.Require(deltaBias, nameof(deltaBias), channels);
    }

    private static void CheckMap(Tensor map, string name, long batch, long channels, long states, long length)
    {
        var fits = map.dim() switch
        {
            2 => map.shape.AsSpan().SequenceEqual([channels, states]),
            3 => map.shape.AsSpan().SequenceEqual([batch, states, length]),
            4 => map.shape[1] >= 1 && map.shape.AsSpan().SequenceEqual([batch, map.shape[1], states, length]),
            _ => false,
        };
        if (!fits)
        {
            throw new ArgumentException(
                $"{name} must be [{channels}, {states}] (constant), [{batch}, {states}, {length}] or [{batch}, groups, {states}, {length}], not {ScanShapes.Of(map)}.", name);
        }

        if (map.dim() == 4 && channels % map.shape[1] != 0)
        {
            throw new ArgumentException($"{name} has {map.shape[1]} groups, which do not divide {channels} channels: every group serves as many.", name);
        }
    }
}

/// <summary>The selective scan step by step in libtorch operations: any type, differentiable, obviously right; the oracle of the fast one.</summary>
internal static class PlainSelectiveScan
{
    public static (Tensor Output, Tensor LastState) Apply(
        Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? skip, Tensor? gate, Tensor? deltaBias, bool deltaSoftplus)
    {
        using var scope = NewDisposeScope();
        var (batch, channels, length) = (u.shape[0], u.shape[1], u.shape[2]);
        var step = deltaBias is null ? delta : delta + deltaBias.unsqueeze(1);
        step = deltaSoftplus ? nn.functional.softplus(step) : step;
        var (inputs, outputs) = (PerChannel(b, batch, channels, length), PerChannel(c, batch, channels, length));
        var state = zeros(batch, channels, a.shape[1], dtype: u.dtype, device: u.device);
        var rows = new List<Tensor>();
        for (var t = 0; t < length; t++)
        {
            var now = step.select(2, t).unsqueeze(2);
            state = ((now * a).exp() * state) + (now * inputs.select(3, t) * u.select(2, t).unsqueeze(2));
            rows.Add((state * outputs.select(3, t)).sum(2));
        }

        var result = stack(rows, 2);
        result = skip is null ? result : result + (u * skip.unsqueeze(1));
        result = gate is null ? result : result * nn.functional.silu(gate);
        return (result.MoveToOuterDisposeScope(), state.detach().MoveToOuterDisposeScope());
    }

    // [B, D, N, T]
    private static Tensor PerChannel(Tensor map, long batch, long channels, long length) => map.dim() switch
    {
        2 => map.view(1, channels, -1, 1).expand(batch, -1, -1, length),
        3 => map.unsqueeze(1).expand(-1, channels, -1, -1),
        _ => map.repeat_interleave(channels / map.shape[1], 1),
    };
}
