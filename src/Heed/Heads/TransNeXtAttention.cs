using Heed.Biases;
using Heed.Layers;
using Heed.Probes;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>The shape of a <see cref="TransNeXtAttention"/> or an <see cref="AggregatedAttention"/>.</summary>
public sealed record TransNeXtAttentionOptions
{
    /// <summary>Width C of the module's input and output.</summary>
    public required int Width { get; init; }

    /// <summary>Number H of heads, a divisor of <see cref="Width"/>.</summary>
    public required int Heads { get; init; }

    /// <summary>Rows of the picture that the tokens are.</summary>
    public required int Rows { get; init; }

    /// <summary>Columns of the picture.</summary>
    public required int Columns { get; init; }

    /// <summary>How many heads, the first ones, every token uses. Null: all heads are used alike, without a router (TransNeXt itself).</summary>
    public int? SharedHeads { get; init; }

    /// <summary>How many of the other heads a token uses.</summary>
    public int RoutedHeads { get; init; }

    /// <summary>Whether the query, key and value projections have biases.</summary>
    public bool QueryKeyValueBias { get; init; } = true;

    /// <summary>Times which the load-balance loss is attached to the output in training; see <see cref="MixtureOfHeadAttentionOptions.BalanceWeight"/>.</summary>
    public double BalanceWeight { get; init; }

    /// <summary>Rows of the pooled picture of aggregated attention; 0: <see cref="Rows"/> / <see cref="Reduction"/>.</summary>
    public int PooledRows { get; init; }

    /// <summary>Columns of the pooled picture; 0: <see cref="Columns"/> / <see cref="Reduction"/>.</summary>
    public int PooledColumns { get; init; }

    /// <summary>How many times smaller the pooled picture is along each side.</summary>
    public int Reduction { get; init; } = 1;

    /// <summary>Side of the neighbourhood of aggregated attention, odd.</summary>
    public int Window { get; init; } = 3;

    /// <summary>Epsilon of the norm of the pooled tokens.</summary>
    public double PooledNormEpsilon { get; init; } = 1e-5;

    /// <summary>Relative positions of queries and keys; null: computed for the picture. Give those of the size that a checkpoint was trained at where it differs.</summary>
    public RelativePositions? Positions { get; init; }

    internal int HeadWidth => Width / Heads;

    internal (int Rows, int Columns) Pooled => (PooledRows == 0 ? Rows / Reduction : PooledRows, PooledColumns == 0 ? Columns / Reduction : PooledColumns);

    internal RelativePositions PositionsTo(int keyRows, int keyColumns)
    {
        var positions = Positions ?? RelativePositions.Of(Rows, Columns, keyRows, keyColumns);
        return positions.Queries == (long)Rows * Columns && positions.Keys == (long)keyRows * keyColumns ? positions
            : throw new ArgumentException(
                $"The relative positions are of {positions.Queries} queries and {positions.Keys} keys; {Rows * Columns} and {keyRows * keyColumns} were expected.");
    }

    internal void Check()
    {
        if (Width < 1 || Heads < 1 || Width % Heads != 0 || Rows < 1 || Columns < 1)
        {
            throw new ArgumentException($"Width, heads, rows and columns must be positive and the heads divide the width, not {Width}, {Heads}, {Rows} and {Columns}.", "options");
        }
    }
}

/// <summary>What the two forms of TransNeXt's attention are to their callers: attention over the tokens of a picture whose heads may be routed. Parameter names: <c>wg</c>, <c>wg_0</c>, <c>wg_1</c>.</summary>
public abstract class RoutedPictureAttention : nn.Module<Tensor, Tensor>, IMapSource
{
    private readonly Func<Tensor, bool, Tensor?, double, HeadRouting>? _route;
    private protected readonly Projection? wg;
    private protected readonly Projection? wg_0;
    private protected readonly Projection? wg_1;

    private protected RoutedPictureAttention(string name, TransNeXtAttentionOptions options)
        : base(name)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Check();
        Options = options;
        var router = options.SharedHeads is { } shared ? new HeadRouter(options.Width, options.Heads, shared, options.RoutedHeads) : null;
        _route = router is null ? null : router.Route;
        (wg, wg_0, wg_1) = (router?.ToRouted, router?.ToParts, router?.ToShared);
    }

    /// <summary>The shape.</summary>
    public TransNeXtAttentionOptions Options { get; }

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <inheritdoc/>
    public sealed override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        return ForwardWithRouting(input).Output.MoveToOuterDisposeScope();
    }

    /// <summary>The module's output and which heads the tokens use.</summary>
    /// <param name="input"><c>[B, N, C]</c>, N the positions of the picture, row by row.</param>
    /// <returns>The output <c>[B, N, C]</c>, and the routing, with the load-balance loss in training; null without a router.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public (Tensor Output, HeadRouting? Routing) ForwardWithRouting(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[1] != (long)Options.Rows * Options.Columns || input.shape[2] != Options.Width)
        {
            throw new ArgumentException(
                $"The input must be [batch, {Options.Rows} x {Options.Columns} tokens, {Options.Width}], not [{string.Join(", ", input.shape)}].", nameof(input));
        }

        using var scope = NewDisposeScope();
        var routing = _route?.Invoke(input, training, null, training ? Options.BalanceWeight : 0);
        var output = Mix(input, routing?.Gates.transpose(1, 2).unsqueeze(-1));
        if (routing is not null)
        {
            GateMaps.Record(this, routing.Gates, (Options.Rows, Options.Columns));
        }

        return (output.MoveToOuterDisposeScope(), routing?.MoveToOuterDisposeScope());
    }

    /// <summary>The output for an input of the right shape; in the dispose scope of the caller.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="gates">What the heads' outputs are multiplied by, <c>[B, H, N, 1]</c>; null: nothing.</param>
    private protected abstract Tensor Mix(Tensor input, Tensor? gates);
}

/// <summary>Attention over whole pictures of TransNeXt (arXiv 2311.17132), with routed heads in MoH-ViT (arXiv 2410.11842): queries and keys of length one, a learned query embedding e, a scale that grows with the number of keys, and
/// a bias from relative positions on a logarithmic scale: <c>softmax(((q/|q| + e) softplus(tau) ln N) . (k/|k|) + bias) v</c>.</summary>
/// <remarks>Parameter names: <c>qkv</c>, <c>proj</c>, <c>temperature</c>, <c>query_embedding</c>, <c>cpb_fc1</c>, <c>cpb_fc2</c>, <c>wg</c>, <c>wg_0</c>, <c>wg_1</c>. The table of relative positions is computed. All heads are computed
/// before they are weighed: the bias differs by head and query, and pictures of this stage are small.</remarks>
public sealed class TransNeXtAttention : RoutedPictureAttention
{
    private readonly RelativePositions _positions;
    private readonly Projection qkv;
    private readonly Projection proj;
    private readonly Parameter temperature;
    private readonly Parameter query_embedding;
    private readonly Linear cpb_fc1;
    private readonly Linear cpb_fc2;

    /// <summary>Makes the module.</summary>
    /// <param name="options">Its shape.</param>
    /// <param name="site">Where its attention calls stand in a model.</param>
    /// <exception cref="ArgumentException">The sizes or the counts of heads do not fit together.</exception>
    public TransNeXtAttention(TransNeXtAttentionOptions options, AttentionSite site = default)
        : base(nameof(TransNeXtAttention), options)
    {
        Site = site;
        _positions = options.PositionsTo(options.Rows, options.Columns);
        qkv = new(options.Width, 3 * options.Width, options.QueryKeyValueBias);
        proj = new(options.Width, options.Width, true);
        temperature = TransNeXtParts.Temperature(options.Heads);
        query_embedding = TransNeXtParts.Normal([options.Heads, 1, options.HeadWidth]);
        (cpb_fc1, cpb_fc2) = TransNeXtParts.PositionPerceptron(options.Heads);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>Where the module's attention calls stand in a model.</summary>
    public AttentionSite Site { get; }

    /// <summary>The hooks that the module's attention calls pass on; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    private protected override Tensor Mix(Tensor input, Tensor? gates)
    {
        var (batch, tokens) = (input.shape[0], input.shape[1]);
        var parts = qkv.forward(input).view(batch, tokens, 3, Options.Heads, Options.HeadWidth).unbind(2);
        using Scalar growth = Math.Log(tokens);
        var query = (TransNeXtParts.Unit(parts[0].transpose(1, 2)) + query_embedding) * (nn.functional.softplus(temperature) * growth);
        var bias = _positions.Bias(cpb_fc1, cpb_fc2);
        var heads = Attention.Compute(query, TransNeXtParts.Unit(parts[1].transpose(1, 2)), parts[2].transpose(1, 2), new AttentionOptions
        {
            Scale = 1,
            Biases = [new DenseBias(bias)],
            Gate = gates,
        }, Site, Hooks);
        return proj.forward(heads.transpose(1, 2).reshape(batch, tokens, -1));
    }
}

/// <summary>The attention of TransNeXt's larger maps (arXiv 2311.17132, equations 1 to 6): every query sees its neighbourhood and a pooled picture in one softmax; the weights of the neighbours get a learned part that depends on the
/// query but on no key. With routed heads in MoH-ViT (arXiv 2410.11842).</summary>
/// <remarks>Parameter names: <c>q</c>, <c>kv</c>, <c>sr</c>, <c>norm</c>, <c>proj</c>, <c>temperature</c>, <c>query_embedding</c>, <c>cpb_fc1</c>, <c>cpb_fc2</c>, <c>relative_pos_bias_local</c>, <c>learnable_tokens</c>, <c>learnable_bias</c>,
/// <c>wg</c>, <c>wg_0</c>, <c>wg_1</c>. The pooled part goes through the door and is merged with the neighbourhood by their log-sum-exp; hooks see the pooled part only.</remarks>
public sealed class AggregatedAttention : RoutedPictureAttention
{
    private readonly RelativePositions _positions;
    private readonly int _neighbours;
    private readonly Projection q;
    private readonly Projection kv;
    private readonly Conv2d sr;
    private readonly LayerNorm norm;
    private readonly Projection proj;
    private readonly Parameter temperature;
    private readonly Parameter query_embedding;
    private readonly Linear cpb_fc1;
    private readonly Linear cpb_fc2;
    private readonly Parameter relative_pos_bias_local;
    private readonly Parameter learnable_tokens;
    private readonly Parameter learnable_bias;

    /// <summary>Makes the module.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">The sizes or the counts of heads do not fit together, or the neighbourhood's side is even.</exception>
    public AggregatedAttention(TransNeXtAttentionOptions options)
        : base(nameof(AggregatedAttention), options)
    {
        if (options.Window < 1 || options.Window % 2 == 0)
        {
            throw new ArgumentException($"A neighbourhood lies around its query, so its side must be odd, not {options.Window}.", nameof(options));
        }

        if (options.Pooled.Rows < 1 || options.Pooled.Columns < 1)
        {
            throw new ArgumentException($"A picture of {options.Rows} x {options.Columns} positions cannot be pooled {options.Reduction} times along each side: take a smaller reduction.", nameof(options));
        }

        _neighbours = options.Window * options.Window;
        _positions = options.PositionsTo(options.Pooled.Rows, options.Pooled.Columns);
        q = new(options.Width, options.Width, options.QueryKeyValueBias);
        kv = new(options.Width, 2 * options.Width, options.QueryKeyValueBias);
        sr = nn.Conv2d(options.Width, options.Width, 1);
        norm = nn.LayerNorm(options.Width, options.PooledNormEpsilon);
        proj = new(options.Width, options.Width, true);
        temperature = TransNeXtParts.Temperature(options.Heads);
        query_embedding = TransNeXtParts.Normal([options.Heads, 1, options.HeadWidth]);
        (cpb_fc1, cpb_fc2) = TransNeXtParts.PositionPerceptron(options.Heads);
        relative_pos_bias_local = TransNeXtParts.Normal([options.Heads, _neighbours], 0.0004);
        learnable_tokens = TransNeXtParts.Normal([options.Heads, options.HeadWidth, _neighbours]);
        learnable_bias = Parameters.Make([options.Heads, 1, _neighbours], tensor => tensor.zero_());
        RegisterComponents();
        Parameters.Keep(this);
    }

    private protected override Tensor Mix(Tensor input, Tensor? gates)
    {
        var (batch, tokens, heads, width) = (input.shape[0], input.shape[1], Options.Heads, Options.HeadWidth);
        var (exists, count) = Neighbours(input.dtype, input.device);
        var unit = TransNeXtParts.Unit(q.forward(input).view(batch, tokens, heads, width).transpose(1, 2));
        var query = (unit + query_embedding) * nn.functional.softplus(temperature) * count.log();

        // The pooled part, through the door.
        var (key, value) = KeysAndValues(Pooled(input));
        var (pooled, pooledSum) = Attention.ComputePart(
            query, TransNeXtParts.Unit(key), value, new AttentionOptions { Scale = 1, Biases = [new DenseBias(_positions.Bias(cpb_fc1, cpb_fc2))] });

        // The neighbourhood: so few keys per query that their weights are needed one by one, for the learned part.
        (key, value) = KeysAndValues(input);
        var (near, nearValues) = (Unfold(TransNeXtParts.Unit(key)), Unfold(value));
        using Scalar absent = double.NegativeInfinity;
        var scores = (query.unsqueeze(-1) * near).sum(3) + relative_pos_bias_local.unsqueeze(1);
        scores = scores.masked_fill(exists.logical_not(), absent);
        var total = logaddexp(scores.logsumexp(-1), pooledSum);
        var weights = (scores - total.unsqueeze(-1)).exp() + matmul(unit, learnable_tokens) + learnable_bias;
        var output = (nearValues * weights.unsqueeze(3)).sum(-1) + (pooled * (pooledSum - total).exp().unsqueeze(-1));
        output = gates is null ? output : output * gates;
        return proj.forward(output.transpose(1, 2).reshape(batch, tokens, -1));
    }

    private Tensor Pooled(Tensor input)
    {
        var map = input.transpose(1, 2).reshape(input.shape[0], Options.Width, Options.Rows, Options.Columns);
        var (rows, columns) = Options.Pooled;
        return norm.forward(nn.functional.adaptive_avg_pool2d(nn.functional.gelu(sr.forward(map)), [rows, columns]).flatten(2).transpose(1, 2));
    }

    // [B, H, n, D] each
    private (Tensor Key, Tensor Value) KeysAndValues(Tensor tokens)
    {
        var parts = kv.forward(tokens).view(tokens.shape[0], tokens.shape[1], 2, Options.Heads, Options.HeadWidth).permute(2, 0, 3, 1, 4).unbind(0);
        return (parts[0], parts[1]);
    }

    /// <summary>Each position's neighbours, zeros outside: <c>[B, H, N, D]</c> to <c>[B, H, N, D, neighbours]</c>.</summary>
    private Tensor Unfold(Tensor maps)
    {
        var (batch, heads, tokens, width) = (maps.shape[0], maps.shape[1], maps.shape[2], maps.shape[3]);
        var picture = maps.transpose(2, 3).reshape(batch, heads * width, Options.Rows, Options.Columns);
        var reach = Options.Window / 2;
        return nn.functional.unfold(picture, Options.Window, padding: reach).view(batch, heads, width, _neighbours, tokens).permute(0, 1, 4, 2, 3);
    }

    /// <summary>Which neighbours exist, <c>[N, neighbours]</c>, and how many keys each query sees, <c>[N, 1]</c>.</summary>
    private (Tensor Exists, Tensor Count) Neighbours(ScalarType type, Device device)
    {
        var reach = Options.Window / 2;
        using Scalar half = 0.5, pooled = (double)Options.Pooled.Rows * Options.Pooled.Columns;
        var inside = nn.functional.unfold(ones([1, 1, Options.Rows, Options.Columns], dtype: type, device: device), Options.Window, padding: reach)[0].transpose(0, 1);
        return (inside > half, inside.sum(-1, keepdim: true) + pooled);
    }
}

/// <summary>What the two forms of TransNeXt's attention share.</summary>
internal static class TransNeXtParts
{
    private const int PositionHidden = 512;
    private const double InitialDeviation = 0.02;

    /// <summary>Temperatures whose softplus is 1 / 0.24.</summary>
    public static Parameter Temperature(int heads) => Parameters.Make([heads, 1, 1], tensor => tensor.fill_(Math.Log(Math.Exp(1 / 0.24) - 1)));

    public static Parameter Normal(long[] shape, double deviation = InitialDeviation) =>
        Parameters.Make(shape, tensor => Parameters.DrawNormal(tensor, deviation));

    public static (Linear First, Linear Second) PositionPerceptron(int heads)
    {
        var (first, second) = (nn.Linear(2, PositionHidden), nn.Linear(PositionHidden, heads));
        Parameters.InitializeNormal(first, false);
        Parameters.InitializeNormal(second, false);
        return (first, second);
    }

    public static Tensor Unit(Tensor vectors) => nn.functional.normalize(vectors, 2, -1, 1e-12);
}
