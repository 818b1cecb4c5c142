using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>The circuits of one head, measured.</summary>
/// <param name="Head">The head, from 0.</param>
/// <param name="Slope">ω: the mean of the query-key circuit's diagonal (of its block, where one is given).</param>
/// <param name="Spread">Standard deviation of that diagonal, over the number of its entries.</param>
/// <param name="OffDiagonal">The largest absolute entry of the block off its diagonal.</param>
/// <param name="DiagonalShare">Share of the block's squared entries that lies on the diagonal: 1 for a diagonal matrix, about 1 / size for one without order.</param>
/// <param name="Weight">μ: the entry of the value-output circuit that is asked for; the mean of its diagonal where none is.</param>
/// <param name="OtherWeight">The largest absolute entry beside it in its column; off the diagonal where none is asked for.</param>
public sealed record HeadCircuit(int Head, double Slope, double Spread, double OffDiagonal, double DiagonalShare, double Weight, double OtherWeight);

/// <summary>The circuits of all heads of a module, measured.</summary>
/// <param name="Heads">Head by head.</param>
public sealed record CircuitMeasures(IReadOnlyList<HeadCircuit> Heads)
{
    // Below a fifth of the largest weight a head hardly takes part.
    private const double ActiveShare = 0.2;

    /// <summary>Heads whose <see cref="HeadCircuit.Weight"/> is above a fifth of the largest.</summary>
    public IReadOnlyList<HeadCircuit> Active => [.. Heads.Where(head => Math.Abs(head.Weight) > ActiveShare * LargestWeight)];

    /// <summary>The largest |μ|.</summary>
    public double LargestWeight => Heads.Max(head => Math.Abs(head.Weight));

    /// <summary>The largest off-diagonal entry of an active head over its |ω|: 0 where all are diagonal.</summary>
    public double Diagonality => Active.Max(head => head.OffDiagonal / Math.Abs(head.Slope));

    /// <summary>The largest spread of an active head's diagonal over its |ω|: 0 where all are multiples of the identity.</summary>
    public double Homogeneity => Active.Max(head => head.Spread / Math.Abs(head.Slope));

    /// <summary>|Σμ| over Σ|μ|: 0 where positive and negative heads cancel, 1 where all have one sign.</summary>
    public double ZeroSum => Math.Abs(Heads.Sum(head => head.Weight)) / Heads.Sum(head => Math.Abs(head.Weight));

    /// <summary>Share of the active heads whose ω and μ have the same sign.</summary>
    public double SignAgreement => Active.Average(head => Math.Sign(head.Slope) == Math.Sign(head.Weight) ? 1.0 : 0.0);
}

/// <summary>
/// The two matrices that a head of linear projections comes to: the query-key circuit <c>KQ_h = scale Wq_h^T Wk_h</c>, whose score is <c>x^T KQ_h y</c>, and the value-output circuit <c>OV_h = (Wo_h Wv_h)^T</c>, whose contribution
/// is <c>(Σ a y)^T OV_h</c>. What a head can do is in them, whatever basis the projections chose (arXiv 2503.12734, section 3; the terms are those of transformer circuits). Biases, rotary positions and norms between the
/// projections and the scores are not part of the products: with rotary positions KQ is the score at distance 0.
/// </summary>
public sealed class CircuitProbe : IDisposable
{
    // Query, key, value, output, under the names of the house's modules and of the frameworks whose checkpoints they read.
    private static readonly string[][] s_separate =
    [
        ["q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"], ["q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight"], ["q.weight", "k.weight", "v.weight", "proj.weight"],
        ["to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"], ["query.weight", "key.weight", "value.weight", "output.weight"],
    ];

    private static readonly string[][] s_fused = [["qkv.weight", "proj.weight"], ["in_proj_weight", "out_proj.weight"]];
    private static readonly string[] s_matrices = ["w_q", "w_k", "w_v", "w_o"];

    /// <summary>Multiplies the projections of a module.</summary>
    /// <param name="query"><c>[H D, C]</c>, head by head.</param>
    /// <param name="key"><c>[Hkv D, C]</c>.</param>
    /// <param name="value"><c>[Hkv Dv, C]</c>.</param>
    /// <param name="output"><c>[outputs, H Dv]</c>.</param>
    /// <param name="heads">Query heads H.</param>
    /// <param name="keyValueHeads">Key/value heads; 0: as many.</param>
    /// <param name="scale">Factor of the scores; null: 1 / sqrt(D).</param>
    /// <exception cref="ArgumentException">The shapes do not fit together.</exception>
    public CircuitProbe(Tensor query, Tensor key, Tensor value, Tensor output, int heads, int keyValueHeads = 0, double? scale = null)
    {
        using var still = no_grad();
        QueryKey = QueryKeyCircuits(query, key, heads, keyValueHeads, scale).DetachFromDisposeScope();
        ValueOutput = ValueOutputCircuits(value, output, heads, keyValueHeads).DetachFromDisposeScope();
    }

    /// <summary>KQ, <c>[H, C, C]</c>, rows for the token that asks.</summary>
    public Tensor QueryKey { get; }

    /// <summary>OV, <c>[H, C, outputs]</c>.</summary>
    public Tensor ValueOutput { get; }

    /// <summary>The circuits of an attention module with linear projections: separate ones, or fused ones in the order query, key, value.</summary>
    /// <param name="attention">The module, for example a layer's <c>self_attn</c>.</param>
    /// <param name="heads">Query heads.</param>
    /// <param name="keyValueHeads">Key/value heads; 0: as many.</param>
    /// <param name="scale">Factor of the scores; null: 1 / sqrt(D).</param>
    /// <exception cref="ArgumentException">The module keeps its projections under none of the known names, or their shapes do not fit the heads.</exception>
    public static CircuitProbe Of(nn.Module attention, int heads, int keyValueHeads = 0, double? scale = null)
    {
        ArgumentNullException.ThrowIfNull(attention);
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var parameters = attention.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal);
        bool Has(string[] names) => names.All(parameters.ContainsKey);
        if (Array.Find(s_separate, Has) is { } names)
        {
            return new(parameters[names[0]], parameters[names[1]], parameters[names[2]], parameters[names[3]], heads, keyValueHeads, scale);
        }

        if (Has(s_matrices))
        {
            Tensor Turned(int index) => parameters[s_matrices[index]].t();
            return new(Turned(0), Turned(1), Turned(2), Turned(3), heads, keyValueHeads, scale);
        }

        if (Array.Find(s_fused, Has) is not { } fused)
        {
            throw new ArgumentException(
                $"The module {attention.GetName()} has no projections of queries, keys, values and outputs that are known here: it needs {string.Join(" or ", s_separate.Append(s_matrices).Concat(s_fused).Select(known => string.Join("/", known)))}; "
                + "give the matrices themselves.", nameof(attention));
        }

        var (all, output) = (parameters[fused[0]], parameters[fused[1]]);
        long groups = keyValueHeads == 0 ? heads : keyValueHeads;
        if (heads < 1 || groups < 1 || all.shape[0] % (heads + (2 * groups)) != 0)
        {
            throw new ArgumentException($"The fused projection has {all.shape[0]} rows, which do not divide into {heads} query heads and {groups} heads each of keys and values.", nameof(heads));
        }

        var width = all.shape[0] / (heads + (2 * groups));
        return new(all.narrow(0, 0, heads * width), all.narrow(0, heads * width, groups * width), all.narrow(0, (heads + groups) * width, groups * width), output, heads, keyValueHeads, scale);
    }

    /// <summary>KQ of every head, <c>[H, C, C]</c>; differentiable.</summary>
    /// <param name="query"><c>[H D, C]</c>.</param>
    /// <param name="key"><c>[Hkv D, C]</c>.</param>
    /// <param name="heads">Query heads H.</param>
    /// <param name="keyValueHeads">Key/value heads; 0: as many.</param>
    /// <param name="scale">Factor of the scores; null: 1 / sqrt(D).</param>
    /// <exception cref="ArgumentException">The shapes do not fit together.</exception>
    public static Tensor QueryKeyCircuits(Tensor query, Tensor key, int heads, int keyValueHeads = 0, double? scale = null)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        var groups = Groups(heads, keyValueHeads);
        if (query.dim() != 2 || key.dim() != 2 || query.shape[0] % heads != 0 || key.shape[0] * heads != query.shape[0] * groups)
        {
            throw new ArgumentException(
                $"The projections of {heads} heads of queries and {groups} of keys must be [heads * width, C] of one width, not {AttentionShape.Text(query)} and {AttentionShape.Text(key)}: a gate within the query projection, for example, has to be taken off.", nameof(query));
        }

        using var scope = NewDisposeScope();
        using Scalar factor = scale ?? 1 / Math.Sqrt((double)query.shape[0] / heads);
        var (queries, keys) = (query.view(heads, -1, query.shape[1]), Repeat(key.view(groups, -1, key.shape[1]), heads / groups));
        return matmul(queries.transpose(1, 2), keys).mul(factor).MoveToOuterDisposeScope();
    }

    /// <summary>OV of every head, <c>[H, C, outputs]</c>; differentiable.</summary>
    /// <param name="value"><c>[Hkv Dv, C]</c>.</param>
    /// <param name="output"><c>[outputs, H Dv]</c>.</param>
    /// <param name="heads">Query heads H.</param>
    /// <param name="keyValueHeads">Key/value heads; 0: as many.</param>
    /// <exception cref="ArgumentException">The shapes do not fit together.</exception>
    public static Tensor ValueOutputCircuits(Tensor value, Tensor output, int heads, int keyValueHeads = 0)
    {
        ArgumentNullException.ThrowIfNull(value);
        ArgumentNullException.ThrowIfNull(output);
        var groups = Groups(heads, keyValueHeads);
        if (value.dim() != 2 || output.dim() != 2 || value.shape[0] % groups != 0 || output.shape[1] * groups != value.shape[0] * heads)
        {
            throw new ArgumentException(
                $"The projections of values and outputs must be [{groups} * width, C] and [outputs, {heads} * width] of one width, not {AttentionShape.Text(value)} and {AttentionShape.Text(output)}.", nameof(value));
        }

        using var scope = NewDisposeScope();
        var values = Repeat(value.view(groups, -1, value.shape[1]), heads / groups);
        var outputs = output.view(output.shape[0], heads, -1).permute(1, 2, 0);
        return matmul(values.transpose(1, 2), outputs).MoveToOuterDisposeScope();
    }

    /// <summary>Measures every head.</summary>
    /// <param name="block">How many of the first inputs the query-key circuit is looked at in: the covariates of (x, y), for example; 0: all.</param>
    /// <param name="weight">Which entry (input, output) of the value-output circuit is μ; null: the mean of its diagonal.</param>
    /// <exception cref="ArgumentException">There is no such block or entry.</exception>
    public CircuitMeasures Measure(int block = 0, (int Input, int Output)? weight = null)
    {
        var (inputs, outputs) = (QueryKey.shape[1], ValueOutput.shape[2]);
        var size = block == 0 ? inputs : block;
        if (size < 1 || size > inputs || weight is { } entry && (entry.Input < 0 || entry.Input >= inputs || entry.Output < 0 || entry.Output >= outputs))
        {
            throw new ArgumentException($"The circuits have {inputs} inputs and {outputs} outputs; a block of {block} and the entry {weight} were asked for.", nameof(block));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        using Scalar zero = 0;
        var square = QueryKey.narrow(1, 0, size).narrow(2, 0, size).to(float64);
        var outer = eye(size, dtype: ScalarType.Bool, device: square.device).logical_not();
        var diagonal = square.diagonal(0, 1, 2);
        var rest = square.masked_fill(outer.logical_not(), zero);
        var (slopes, spreads) = (Numbers(diagonal.mean([1L])), Numbers((diagonal - diagonal.mean([1L], keepdim: true)).square().mean([1L]).sqrt()));
        var offs = Numbers(rest.abs().amax([1L, 2L]));
        var shares = Numbers(diagonal.square().sum(1) / square.square().sum([1L, 2L]));
        var values = ValueOutput.to(float64);
        double[] weights, others;
        if (weight is { } wanted)
        {
            var column = values.select(2, wanted.Output);
            weights = Numbers(column.select(1, wanted.Input));
            var beside = column.clone();
            beside.select(1, wanted.Input).zero_();
            others = Numbers(beside.abs().amax([1L]));
        }
        else
        {
            weights = Numbers(values.diagonal(0, 1, 2).mean([1L]));
            var beside = values.clone();
            beside.diagonal(0, 1, 2).zero_();
            others = Numbers(beside.abs().amax([1L, 2L]));
        }

        return new([.. Enumerable.Range(0, slopes.Length).Select(head => new HeadCircuit(head, slopes[head], spreads[head], offs[head], shares[head], weights[head], others[head]))]);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        QueryKey.Dispose();
        ValueOutput.Dispose();
    }

    private static int Groups(int heads, int keyValueHeads)
    {
        var groups = keyValueHeads == 0 ? heads : keyValueHeads;
        return heads > 0 && groups > 0 && heads % groups == 0 ? groups
            : throw new ArgumentException($"The number of key/value heads must divide that of query heads; {heads} heads and {keyValueHeads} key/value heads were given.", nameof(heads));
    }

    private static Tensor Repeat(Tensor groups, long times) => times == 1 ? groups : groups.repeat_interleave(times, 0);

    private static double[] Numbers(Tensor values) => values.cpu().contiguous().data<double>().ToArray();
}
