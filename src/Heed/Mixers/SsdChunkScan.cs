using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The scan of Mamba-2 (arXiv 2405.21060, section 6): a <see cref="SelectiveScan"/> whose A is one number per head and whose channels of a head share their step, so that a chunk of tokens is computed by matrix products.
/// <c>h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T</c>, <c>y_t = h_t C_t + D x_t</c>, times <c>SiLU(z_t)</c> where there is a gate. Time is linear in the length; how it is cut into chunks does not change the result.</summary>
public static class SsdChunkScan
{
    /// <summary>Scans sequences, with gradients for every tensor.</summary>
    /// <param name="x">Inputs <c>[B, T, H, P]</c>.</param>
    /// <param name="delta">Steps <c>[B, T, H]</c>, before <paramref name="deltaBias"/> and softplus.</param>
    /// <param name="a"><c>[H]</c>, negative.</param>
    /// <param name="b">Input maps <c>[B, T, G, N]</c>; head h uses group h / (H / G).</param>
    /// <param name="c">Output maps, shaped as <paramref name="b"/>.</param>
    /// <param name="chunk">Tokens of a chunk, at least 1. Lengths that it does not divide are padded with steps of zero, which change no state.</param>
    /// <param name="skip">D of the recurrence, <c>[H]</c> or <c>[H, P]</c>; null: none.</param>
    /// <param name="gate">z, shaped as <paramref name="x"/>; null: none.</param>
    /// <param name="deltaBias"><c>[H]</c>, added to the steps; null: none.</param>
    /// <param name="deltaSoftplus">Whether steps pass through softplus.</param>
    /// <returns>The output <c>[B, T, H, P]</c> and the state after the last step <c>[B, H, P, N]</c>. In half precision the states are computed in float32.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit, T is 0, or G does not divide H.</exception>
    public static (Tensor Output, Tensor FinalState) Apply(
        Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c, int chunk = 64, Tensor? skip = null, Tensor? gate = null, Tensor? deltaBias = null, bool deltaSoftplus = false)
    {
        Check(x, delta, a, b, c, skip, gate, deltaBias);
        ArgumentOutOfRangeException.ThrowIfLessThan(chunk, 1);
        using var scope = NewDisposeScope();
        var type = x.dtype;
        if (type is ScalarType.Float16 or ScalarType.BFloat16)
        {
            (x, delta, a, b, c) = (x.to(float32), delta.to(float32), a.to(float32), b.to(float32), c.to(float32));
            (skip, gate, deltaBias) = (skip?.to(float32), gate?.to(float32), deltaBias?.to(float32));
        }

        var (length, groups) = (x.shape[1], b.shape[2]);
        var step = deltaBias is null ? delta : delta + deltaBias;
        step = deltaSoftplus ? nn.functional.softplus(step) : step;
        var (output, state) = Chunked(x, step, a, b, c, Math.Min(chunk, length), groups);
        if (skip is not null)
        {
            output = output + (x * (skip.dim() == 1 ? skip.unsqueeze(1) : skip));
        }

        output = gate is null ? output : output * nn.functional.silu(gate);
        return (output.to(type).MoveToOuterDisposeScope(), state.MoveToOuterDisposeScope());
    }

    private static (Tensor Output, Tensor State) Chunked(Tensor x, Tensor step, Tensor a, Tensor b, Tensor c, long chunk, long groups)
    {
        var (batch, length, heads, width) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3]);
        var (states, inGroup) = (b.shape[3], heads / groups);
        var chunks = (length + chunk - 1) / chunk;
        var missing = (chunks * chunk) - length;

        // [B, chunks, G, heads of a group, L, ...]
        Tensor PerHead(Tensor tensor) => Padded(tensor, missing).reshape([batch, chunks, chunk, groups, inGroup, .. tensor.shape[3..]]);
        Tensor PerGroup(Tensor map) => Padded(map, missing).reshape(batch, chunks, chunk, groups, states).permute(0, 1, 3, 2, 4).unsqueeze(3);
        var weighted = PerHead(x * step.unsqueeze(3)).permute(0, 1, 3, 4, 2, 5);
        var sums = PerHead(step * a).permute(0, 1, 3, 4, 2).cumsum(-1);
        var (inputs, outputs) = (PerGroup(b), PerGroup(c));

        // Within a chunk: the decay from key j to query i is exp(s_i - s_j), never a quotient, which would underflow.
        using Scalar nothing = double.NegativeInfinity;
        var future = ones(chunk, chunk, dtype: ScalarType.Bool, device: x.device).triu(1);
        var decay = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(future, nothing).exp();
        var within = matmul(matmul(outputs, inputs.transpose(-1, -2)) * decay, weighted);

        // Between chunks: what a chunk adds to the state, and the state that reaches each.
        var last = sums.narrow(-1, chunk - 1, 1);
        var added = matmul((weighted * (last - sums).exp().unsqueeze(-1)).transpose(-1, -2), inputs);
        var kept = last.exp().unsqueeze(-1);
        var state = zeros([batch, groups, inGroup, width, states], x.dtype, x.device);
        var entering = new List<Tensor>();
        for (var index = 0; index < chunks; index++)
        {
            entering.Add(state);
            state = (state * kept.select(1, index)) + added.select(1, index);
        }

        var carried = matmul(outputs, stack(entering, 1).transpose(-1, -2)) * sums.exp().unsqueeze(-1);
        var output = (within + carried).permute(0, 1, 4, 2, 3, 5).reshape(batch, chunks * chunk, heads, width);
        return (missing == 0 ? output : output.narrow(1, 0, length), state.reshape(batch, heads, width, states));
    }

    private static Tensor Padded(Tensor tensor, long missing)
    {
        if (missing == 0)
        {
            return tensor;
        }

        var shape = tensor.shape;
        shape[1] = missing;
        return cat([tensor, zeros(shape, tensor.dtype, tensor.device)], 1);
    }

    private static void Check(Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? skip, Tensor? gate, Tensor? deltaBias)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(delta);
        ArgumentNullException.ThrowIfNull(a);
        ArgumentNullException.ThrowIfNull(b);
        ArgumentNullException.ThrowIfNull(c);
        if (x.dim() != 4 || x.shape[1] < 1)
        {
            throw new ArgumentException($"x must be [batch, length, heads, width] with a length from 1, not {ScanShapes.Of(x)}.", nameof(x));
        }

        var (batch, length, heads, width) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3]);
        ScanShapes.Require(delta, "delta", batch, length, heads);
        ScanShapes.Require(a, "a", heads);
        if (b.dim() != 4 || b.shape[0] != batch || b.shape[1] != length || b.shape[2] < 1 || heads % b.shape[2] != 0)
        {
            throw new ArgumentException($"b must be [{batch}, {length}, groups, states] with groups that divide {heads} heads, not {ScanShapes.Of(b)}.", nameof(b));
        }

        ScanShapes.Require(c, "c", b.shape);
        if (skip is not null && !skip.shape.SequenceEqual([heads]))
        {
            ScanShapes.Require(skip, "skip", heads, width);
        }

        ScanShapes.Require(gate, "gate", x.shape);
        ScanShapes.Require(deltaBias, "deltaBias", heads);
    }
}
