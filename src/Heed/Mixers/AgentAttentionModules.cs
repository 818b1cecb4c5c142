using Heed.Layers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The shape of an <see cref="AgentAttention2d"/>.</summary>
public sealed record AgentAttentionOptions
{
    /// <summary>Width C of a token, a multiple of the heads.</summary>
    public required int Width { get; init; }

    /// <summary>Heads H.</summary>
    public required int Heads { get; init; }

    /// <summary>Rows and columns of the grid of tokens.</summary>
    public required (int Height, int Width) Grid { get; init; }

    /// <summary>Agents n, a square number.</summary>
    public int Agents { get; init; } = 49;

    /// <summary>Whether a class token stands before the grid. It is neither pooled into agents nor convolved.</summary>
    public bool ClassToken { get; init; }

    /// <summary>Keys and values come from a grid smaller by this factor on each side (PVT's <c>sr_ratio</c>); 1: from all tokens.</summary>
    public int Reduction { get; init; } = 1;

    /// <summary>Whether queries have a projection <c>q</c> of their own beside <c>kv</c>, as in PVT; otherwise all come from <c>qkv</c>. Needed where <see cref="Reduction"/> is above 1.</summary>
    public bool SeparateQuery { get; init; }

    /// <summary>Whether the projections to queries, keys and values have biases.</summary>
    public bool ProjectionBias { get; init; } = true;

    /// <summary>Side of the grids from which the agents' position biases are interpolated; 0: no position biases at all.</summary>
    public int BiasGrid { get; init; } = 7;

    /// <summary>Whether a depth-wise convolution of the values is added to the output.</summary>
    public bool Convolution { get; init; } = true;
}

/// <summary>What the modules of agent attention share: position biases between agents and positions, the maps that they show, and the checks. Parameter names are those of the authors' checkpoints.</summary>
public abstract class AgentAttentionModule : nn.Module<Tensor, Tensor>, IMapSource
{
    private protected readonly Parameter? an_bias;
    private protected readonly Parameter? na_bias;
    private protected readonly Parameter? ah_bias;
    private protected readonly Parameter? aw_bias;
    private protected readonly Parameter? ha_bias;
    private protected readonly Parameter? wa_bias;
    private protected readonly Parameter? ac_bias;
    private protected readonly Parameter? ca_bias;
    private readonly long _height;
    private readonly long _width;
    private readonly long _keyHeight;
    private readonly long _keyWidth;

    private protected AgentAttentionModule(string name, int width, int heads, (long Height, long Width) grid, int agents, int biasGrid, bool classToken, int reduction)
        : base(name)
    {
        var side = (int)Math.Sqrt(agents);
        if (agents < 1 || side * side != agents)
        {
            throw new ArgumentException($"The number of agents is a square number (9, 16, 49 ...), not {agents}.", nameof(agents));
        }

        if (width < 1 || heads < 1 || width % heads != 0)
        {
            throw new ArgumentException($"The number of heads divides the width; {heads} heads and width {width} were given.", nameof(heads));
        }

        if (grid.Height < 1 || grid.Width < 1 || reduction < 1 || grid.Height % reduction != 0 || grid.Width % reduction != 0)
        {
            throw new ArgumentException($"The reduction of keys and values divides both sides of the grid; {reduction} and {grid.Height} x {grid.Width} were given.", nameof(grid));
        }

        if (biasGrid < 0)
        {
            throw new ArgumentException($"The grid of the position biases has a side from 0 on (0: no biases), not {biasGrid}.", nameof(biasGrid));
        }

        (Heads, AgentSide, _height, _width, _keyHeight, _keyWidth) = (heads, side, grid.Height, grid.Width, grid.Height / reduction, grid.Width / reduction);
        HasClassToken = classToken;
        if (biasGrid > 0)
        {
            an_bias = Bias(heads, agents, biasGrid, biasGrid);
            na_bias = Bias(heads, agents, biasGrid, biasGrid);
            ah_bias = Bias(1, heads, agents, _keyHeight, 1);
            aw_bias = Bias(1, heads, agents, 1, _keyWidth);
            ha_bias = Bias(1, heads, _height, 1, agents);
            wa_bias = Bias(1, heads, 1, _width, agents);
            ac_bias = classToken ? Bias(1, heads, agents, 1) : null;
            ca_bias = classToken ? Bias(1, heads, 1, agents) : null;
        }
    }

    /// <summary>Heads H.</summary>
    public int Heads { get; }

    /// <summary>Agents n.</summary>
    public int Agents => AgentSide * AgentSide;

    /// <summary>Where the module stands in its model.</summary>
    public AttentionSite Site { get; init; }

    /// <summary>The model's hooks; null: none.</summary>
    public AttentionHooks? Hooks { get; init; }

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    private protected int AgentSide { get; }

    private protected bool HasClassToken { get; }

    /// <summary>B1, what is added to the scores of agents over keys: <c>[1, H, n, M]</c>; null: nothing. A class token is key 0.</summary>
    public Tensor? AgentKeyBias()
    {
        if (an_bias is null)
        {
            return null;
        }

        using var scope = NewDisposeScope();
        var bias = (Resize(an_bias, _keyHeight, _keyWidth).unsqueeze(0) + ah_bias! + aw_bias!).flatten(3);
        return (ac_bias is null ? bias : cat([ac_bias, bias], -1)).MoveToOuterDisposeScope();
    }

    /// <summary>B2, what is added to the scores of queries over agents: <c>[1, H, N, n]</c>; null: nothing. A class token is query 0.</summary>
    public Tensor? QueryAgentBias()
    {
        if (na_bias is null)
        {
            return null;
        }

        using var scope = NewDisposeScope();
        var bias = (Resize(na_bias, _height, _width).permute(0, 2, 3, 1).unsqueeze(0) + ha_bias! + wa_bias!).flatten(2, 3);
        return (ca_bias is null ? bias : cat([ca_bias, bias], 2)).MoveToOuterDisposeScope();
    }

    /// <summary>Heads attend through agents: <c>[B, N, C]</c> each to <c>[B, N, C]</c>.</summary>
    private protected Tensor Attend(Tensor query, Tensor agents, Tensor key, Tensor value, Func<Tensor, Tensor>? picture = null)
    {
        var (q, a, k, v) = (Split(query), Split(agents), Split(key), Split(value));
        var (agentKey, queryAgent) = (AgentKeyBias(), QueryAgentBias());
        if (Recorder is { } recorder)
        {
            Record(recorder, q, a, k, agentKey, queryAgent, picture);
        }

        return AgentAttention.Compute(q, a, k, v, agentKey, queryAgent, site: Site, hooks: Hooks).transpose(1, 2).reshape(query.shape);
    }

    /// <summary>Sums a depth-wise convolution of the values <c>[B, C, H, W]</c> to the grid's tokens.</summary>
    private protected Tensor AddConvolution(Tensor tokens, Tensor grid, DepthwiseConvolution2d convolution)
    {
        var local = convolution.forward(grid).flatten(2).transpose(1, 2);
        return tokens + (HasClassToken ? nn.functional.pad(local, [0, 0, 1, 0]) : local);
    }

    private static Parameter Bias(params long[] shape) => Parameters.Make(shape, tensor => Parameters.DrawNormal(tensor));

    /// <summary>Bilinear with half-pixel centres, as a grid of another size lies over the same picture.</summary>
    private static Tensor Resize(Tensor grid, long height, long width) =>
        grid.shape[2] == height && grid.shape[3] == width ? grid : nn.functional.interpolate(grid, [height, width], mode: InterpolationMode.Bilinear, align_corners: false);

    private Tensor Split(Tensor tokens) => tokens.view(tokens.shape[0], tokens.shape[1], Heads, -1).transpose(1, 2);

    private void Record(MapRecorder recorder, Tensor query, Tensor agents, Tensor key, Tensor? agentKey, Tensor? queryAgent, Func<Tensor, Tensor>? picture)
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        var (looks, reads) = AgentAttention.Maps(query, agents, key, agentKey, queryAgent, null);
        var skip = HasClassToken ? 1 : 0;
        var batch = query.shape[0];
        picture ??= map => map;

        // The mean over heads; positions as a picture.
        looks = looks.mean([1L]).narrow(2, skip, _keyHeight * _keyWidth).reshape(batch, Agents, _keyHeight, _keyWidth);
        reads = reads.mean([1L]).narrow(1, skip, _height * _width).transpose(1, 2).reshape(batch, Agents, _height, _width);
        recorder.Record(this, "where agents look", picture(looks), Labels());
        recorder.Record(this, "who reads agents", picture(reads), Labels());
    }

    private string[] Labels() => [.. Enumerable.Range(0, Agents).Select(agent => $"agent {agent}")];
}

/// <summary>A layer of agent attention over a grid of tokens (arXiv 2312.08874, section 3): agents are pooled from the queries, position biases tell agents and positions apart, and a depth-wise convolution of the values
/// restores what rank n loses. The forms of DeiT (class token), Swin (a window) and PVT (<see cref="AgentAttentionOptions.Reduction"/>).</summary>
/// <remarks>Parameters <c>qkv</c>, or <c>q</c> and <c>kv</c> with <c>sr</c> and <c>norm</c>; <c>proj</c>; <c>dwc</c>; <c>an_bias</c>, <c>na_bias</c> <c>[H, n, g, g]</c>, <c>ah_bias</c>, <c>aw_bias</c>, <c>ha_bias</c>,
/// <c>wa_bias</c>, and <c>ac_bias</c>, <c>ca_bias</c> with a class token. Masks of shifted windows do not exist for agents: shift nothing, take the window as large as the map.</remarks>
public sealed class AgentAttention2d : AgentAttentionModule
{
    private readonly Linear? qkv;
    private readonly Linear? q;
    private readonly Linear? kv;
    private readonly Conv2d? sr;
    private readonly LayerNorm? norm;
    private readonly DepthwiseConvolution2d? dwc;
    private readonly Linear proj;
    private readonly AgentAttentionOptions _options;

    /// <summary>Makes a layer.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">The agents are no square number, the heads do not divide the width, or the reduction does not divide the grid.</exception>
    public AgentAttention2d(AgentAttentionOptions options)
        : base(
            nameof(AgentAttention2d), (options ?? throw new ArgumentNullException(nameof(options))).Width, options.Heads, options.Grid, options.Agents, options.BiasGrid, options.ClassToken, options.Reduction)
    {
        if (options.Reduction > 1 && (!options.SeparateQuery || options.ClassToken))
        {
            throw new ArgumentException("Reduced keys and values need queries with a projection of their own and no class token: set SeparateQuery, leave ClassToken.", nameof(options));
        }

        _options = options;
        var width = options.Width;
        if (options.SeparateQuery)
        {
            (q, kv) = (nn.Linear(width, width, options.ProjectionBias), nn.Linear(width, 2 * width, options.ProjectionBias));
            if (options.Reduction > 1)
            {
                (sr, norm) = (nn.Conv2d(width, width, options.Reduction, stride: options.Reduction), nn.LayerNorm(width));
            }
        }
        else
        {
            qkv = nn.Linear(width, 3 * width, options.ProjectionBias);
        }

        dwc = options.Convolution ? new(width, 3) : null;
        proj = nn.Linear(width, width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public AgentAttentionOptions Options => _options;

    /// <summary>The layer's output.</summary>
    /// <param name="input"><c>[B, H W, C]</c>, row by row, or <c>[B, 1 + H W, C]</c> with a class token.</param>
    /// <returns>The shape of the input.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        var (height, width) = _options.Grid;
        var first = _options.ClassToken ? 1 : 0;
        if (input.dim() != 3 || input.shape[1] != (height * width) + first || input.shape[2] != _options.Width)
        {
            throw new ArgumentException(
                $"The input is [batch, {height} x {width}{(first == 1 ? " + 1" : "")} = {(height * width) + first} tokens, {_options.Width}]; {AttentionShape.Text(input)} was given.", nameof(input));
        }

        using var scope = NewDisposeScope();
        var batch = input.shape[0];
        var (query, key, value) = Project(input);
        var agents = AgentAttention.Pool(first == 0 ? query : query.narrow(1, 1, height * width), height, width, AgentSide);
        var output = Attend(query, agents, key, value);
        if (dwc is not null)
        {
            var (keyHeight, keyWidth) = (height / _options.Reduction, width / _options.Reduction);
            var grid = (first == 0 ? value : value.narrow(1, 1, height * width)).view(batch, keyHeight, keyWidth, _options.Width).permute(0, 3, 1, 2);
            grid = _options.Reduction == 1 ? grid : nn.functional.interpolate(grid, [height, width], mode: InterpolationMode.Bilinear, align_corners: false);
            output = AddConvolution(output, grid, dwc);
        }

        return proj.forward(output).MoveToOuterDisposeScope();
    }

    private (Tensor Query, Tensor Key, Tensor Value) Project(Tensor input)
    {
        if (qkv is not null)
        {
            var three = qkv.forward(input).chunk(3, -1);
            return (three[0], three[1], three[2]);
        }

        var source = input;
        if (sr is not null)
        {
            var (height, width) = _options.Grid;
            var grid = input.view(input.shape[0], height, width, -1).permute(0, 3, 1, 2);
            source = norm!.forward(sr.forward(grid).flatten(2).transpose(1, 2));
        }

        var two = kv!.forward(source).chunk(2, -1);
        return (q!.forward(input), two[0], two[1]);
    }
}

/// <summary>Agent attention within stripes of a grid, the form of CSWin (arXiv 2107.00652): no projections of its own, agents, biases and convolution (<c>get_v</c>) inside every stripe.</summary>
public sealed class StripedAgentAttention : AgentAttentionModule
{
    private readonly DepthwiseConvolution2d? get_v;
    private readonly int _channels;
    private readonly (int Height, int Width) _grid;
    private readonly (int Height, int Width) _stripe;

    /// <summary>Makes a branch.</summary>
    /// <param name="width">Width C of the branch, a multiple of the heads.</param>
    /// <param name="heads">Heads H.</param>
    /// <param name="grid">Rows and columns of the grid of tokens.</param>
    /// <param name="stripe">Rows and columns of a stripe, divisors of the grid's; the grid itself for one stripe.</param>
    /// <param name="agents">Agents n of a stripe, a square number.</param>
    /// <param name="biasGrid">Side of the grids from which position biases are interpolated; 0: none.</param>
    /// <param name="convolution">Whether the depth-wise convolution of the values is added.</param>
    /// <exception cref="ArgumentException">The agents are no square number, the heads do not divide the width, or the stripe does not divide the grid.</exception>
    public StripedAgentAttention(int width, int heads, (int Height, int Width) grid, (int Height, int Width) stripe, int agents = 49, int biasGrid = 7, bool convolution = true)
        : base(nameof(StripedAgentAttention), width, heads, stripe, agents, biasGrid, false, 1)
    {
        Stripes.Check(grid, stripe);
        (_channels, _grid, _stripe) = (width, grid, stripe);
        get_v = convolution ? new(width, 3) : null;
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The branch's output.</summary>
    /// <param name="input">Queries, keys and values <c>[3, B, H W, C]</c>.</param>
    /// <returns><c>[B, H W, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        Stripes.CheckInput(input, _grid, _channels);
        using var scope = NewDisposeScope();
        var (query, key, value) = (Stripes.Cut(input[0], _grid, _stripe), Stripes.Cut(input[1], _grid, _stripe), Stripes.Cut(input[2], _grid, _stripe));
        var output = Attend(query, AgentAttention.Pool(query, _stripe.Height, _stripe.Width, AgentSide), key, value, map => Stripes.Picture(map, _grid, _stripe));
        if (get_v is not null)
        {
            output = AddConvolution(output, value.view(value.shape[0], _stripe.Height, _stripe.Width, _channels).permute(0, 3, 1, 2), get_v);
        }

        return Stripes.Join(output, _grid, _stripe).MoveToOuterDisposeScope();
    }
}
