using Heed.Layers;
using Heed.Probes;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models.Regression;

/// <summary>What the query and key weights of an <see cref="IclAttention"/> start from.</summary>
public enum IclStart
{
    /// <summary>Uniform within one over the root of the width, as all linear layers: the authors' usual start.</summary>
    Default,

    /// <summary><c>small_id_qk</c>: 1e-4 times the identity in every head, queries and keys.</summary>
    SmallIdentity,

    /// <summary><c>oppo_small_id</c>: keys 1e-6 times the identity, queries as much in the first half of the heads and its negative in the others.</summary>
    OpposedSmallIdentity,

    /// <summary>The default plus 0.3 times the identity: on the keys, on the queries of the first half of the heads, and taken off the queries of the others. Two heads that start so always part; from the default some seeds do not.</summary>
    Opposed,
}

/// <summary>One attention layer that predicts y of a query from pairs (x, y) in its context (arXiv 2503.12734): H heads of the full width n, no biases, the query not among the keys. What the heads are applied by is left to the kind.</summary>
/// <remarks>Parameters are the reference's: <c>q_proj</c>, <c>k_proj</c>, <c>v_proj</c> <c>[H n, n]</c>, <c>o_proj</c> <c>[outputs, H n]</c>, heads one after the other.</remarks>
public abstract class IclAttention : nn.Module<Tensor, Tensor, Tensor>
{
    private readonly Projection q_proj;
    private readonly Projection k_proj;
    private readonly Projection v_proj;
    private readonly Projection o_proj;

    private protected IclAttention(string name, int d, int numHeads, int numOutputs, IclStart start)
        : base(name)
    {
        if (d < 1 || numHeads < 1 || numOutputs < 1)
        {
            throw new ArgumentException($"Covariates, heads and outputs must be at least 1, not {d}, {numHeads} and {numOutputs}.", nameof(d));
        }

        (Dimensions, HeadCount, OutputCount, Width) = (d, numHeads, numOutputs, d + numOutputs);
        (q_proj, k_proj, v_proj) = (Make(Width, numHeads * Width), Make(Width, numHeads * Width), Make(Width, numHeads * Width));
        o_proj = Make(numHeads * Width, numOutputs);
        // By name: the fields of a base class are not found by themselves.
        register_module("q_proj", q_proj);
        register_module("k_proj", k_proj);
        register_module("v_proj", v_proj);
        register_module("o_proj", o_proj);
        Begin(start);
    }

    /// <summary>Number d of covariates.</summary>
    public int Dimensions { get; }

    /// <summary>Number H of heads.</summary>
    public int HeadCount { get; }

    /// <summary>Number of predicted values.</summary>
    public int OutputCount { get; }

    /// <summary>Width n of a token and of a head: covariates and outputs.</summary>
    public int Width { get; }

    /// <summary>The hooks of the layer's attention call.</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>Where the call stands: the layer is its own model.</summary>
    public static AttentionSite Site { get; } = new(0, AttentionKind.Cross, "attn");

    /// <summary>The predictions.</summary>
    /// <param name="zQuery">Queries (x, 0), <c>[B, 1, n]</c> (or several of the same context, <c>[B, N, n]</c>).</param>
    /// <param name="z">Contexts (x, y), <c>[B, L, n]</c>.</param>
    /// <returns><c>[B, 1, outputs]</c>.</returns>
    /// <exception cref="ArgumentException">A shape is another, or the context is empty.</exception>
    public override Tensor forward(Tensor zQuery, Tensor z)
    {
        ArgumentNullException.ThrowIfNull(zQuery);
        ArgumentNullException.ThrowIfNull(z);
        if (zQuery.dim() != 3 || z.dim() != 3 || zQuery.shape[2] != Width || z.shape[2] != Width || zQuery.shape[0] != z.shape[0])
        {
            throw new ArgumentException(
                $"Queries must be [batch, 1, {Width}] and contexts [batch, length, {Width}] ({Dimensions} covariates and {OutputCount} output{(OutputCount == 1 ? "" : "s")}), not {Shape(zQuery)} and {Shape(z)}.", nameof(z));
        }

        if (z.shape[1] == 0)
        {
            throw new ArgumentException("The context holds no pair (x, y): give at least one.", nameof(z));
        }

        using var scope = NewDisposeScope();
        var mixed = Attend(Split(q_proj.forward(zQuery)), Split(k_proj.forward(z)), Split(v_proj.forward(z)));
        return o_proj.forward(mixed.transpose(1, 2).reshape(zQuery.shape[0], zQuery.shape[1], -1)).MoveToOuterDisposeScope();
    }

    /// <summary>KQ of every head, <c>[H, n, n]</c>: the score is <c>z_q^T KQ z_l</c> (the paper's KQ is its transpose). Differentiable.</summary>
    public Tensor KqCircuits() => CircuitProbe.QueryKeyCircuits(q_proj.Weight, k_proj.Weight, HeadCount);

    /// <summary>OV of every head, <c>[H, n, outputs]</c>: the prediction is the sum over heads of <c>(Σ a_l z_l)^T OV</c>. Differentiable.</summary>
    public Tensor OvCircuits() => CircuitProbe.ValueOutputCircuits(v_proj.Weight, o_proj.Weight, HeadCount);

    /// <summary>ω and μ of every head with what departs from the emergent form, for one output.</summary>
    /// <param name="output">The output, from 0; its values stand at place d + output of a token.</param>
    public CircuitMeasures Measure(int output = 0)
    {
        using var probe = CircuitProbe.Of(this, HeadCount);
        return probe.Measure(Dimensions, (Dimensions + output, output));
    }

    /// <summary>What a head gathers.</summary>
    /// <param name="query"><c>[B, H, 1, n]</c>.</param>
    /// <param name="key"><c>[B, H, L, n]</c>.</param>
    /// <param name="value"><c>[B, H, L, n]</c>.</param>
    /// <returns><c>[B, H, 1, n]</c>.</returns>
    private protected abstract Tensor Attend(Tensor query, Tensor key, Tensor value);

    private static string Shape(Tensor tensor) => $"[{string.Join(", ", tensor.shape)}]";

    private static Projection Make(int inputs, int outputs)
    {
        var projection = new Projection(inputs, outputs, hasBias: false, initialize: false);
        using var still = no_grad();
        var bound = 1 / Math.Sqrt(inputs);
        projection.Weight.uniform_(-bound, bound);
        return projection;
    }

    private Tensor Split(Tensor tokens) => tokens.view(tokens.shape[0], tokens.shape[1], HeadCount, Width).transpose(1, 2);

    private void Begin(IclStart start)
    {
        if (start == IclStart.Default)
        {
            return;
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        var size = start switch { IclStart.SmallIdentity => 1e-4, IclStart.OpposedSmallIdentity => 1e-6, IclStart.Opposed => 0.3, _ => throw new ArgumentOutOfRangeException(nameof(start), start, "There is no such start.") };
        using Scalar factor = size;
        var identity = eye(Width).mul(factor);
        for (var head = 0; head < HeadCount; head++)
        {
            var isNegative = start != IclStart.SmallIdentity && head >= (HeadCount + 1) / 2;
            var (query, key) = (q_proj.Weight.narrow(0, head * Width, Width), k_proj.Weight.narrow(0, head * Width, Width));
            if (start != IclStart.Opposed)
            {
                query.zero_();
                key.zero_();
            }

            query.add_(isNegative ? identity.neg() : identity);
            key.add_(identity);
        }
    }
}

/// <summary>Softmax attention on linear regression in context, the object of arXiv 2503.12734. Trained, every head is a multiple ω of the identity between covariates and reads y with a weight μ; together they descend one gradient step.</summary>
public sealed class IclSoftmaxAttention : IclAttention
{
    /// <summary>Makes a layer, from libtorch's own generator.</summary>
    /// <param name="d">Number of covariates, from 1.</param>
    /// <param name="numHeads">Heads, from 1.</param>
    /// <param name="numOutputs">Predicted values, from 1.</param>
    /// <param name="start">What queries and keys start from.</param>
    /// <exception cref="ArgumentException">A number is below 1.</exception>
    public IclSoftmaxAttention(int d, int numHeads, int numOutputs = 1, IclStart start = IclStart.Default)
        : base(nameof(IclSoftmaxAttention), d, numHeads, numOutputs, start)
    {
    }

    private protected override Tensor Attend(Tensor query, Tensor key, Tensor value) => Attention.Compute(query, key, value, null, Site, Hooks);
}

/// <summary>The same layer without softmax: what it gathers is <c>Σ_l s_l v_l</c> with the scores s themselves. The baseline; it depends on the length of the context unless it is divided by it.</summary>
public sealed class IclLinearAttention : IclAttention
{
    private readonly bool _dividesByLength;

    /// <summary>Makes a layer, from libtorch's own generator.</summary>
    /// <param name="d">Number of covariates, from 1.</param>
    /// <param name="numHeads">Heads, from 1.</param>
    /// <param name="numOutputs">Predicted values, from 1.</param>
    /// <param name="dividesByLength">Whether the sum is divided by the length of the context.</param>
    /// <param name="start">What queries and keys start from.</param>
    /// <exception cref="ArgumentException">A number is below 1.</exception>
    public IclLinearAttention(int d, int numHeads, int numOutputs = 1, bool dividesByLength = false, IclStart start = IclStart.Default)
        : base(nameof(IclLinearAttention), d, numHeads, numOutputs, start) => _dividesByLength = dividesByLength;

    private protected override Tensor Attend(Tensor query, Tensor key, Tensor value)
    {
        using Scalar factor = 1 / (Math.Sqrt(Width) * (_dividesByLength ? key.shape[2] : 1));
        return matmul(query, matmul(key.transpose(-1, -2), value)).mul(factor);
    }
}
