using Heed.Layers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The shape of a <see cref="PlainMambaMixer"/>.</summary>
public sealed record PlainMambaOptions
{
    /// <summary>Width M of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Rows of the picture.</summary>
    public required int GridHeight { get; init; }

    /// <summary>Columns of the picture.</summary>
    public required int GridWidth { get; init; }

    /// <summary>Number N of states per channel.</summary>
    public int States { get; init; } = 16;

    /// <summary>Scanned channels E over the width.</summary>
    public double Expand { get; init; } = 2;

    /// <summary>Rank R of the step's projection; 0: a sixteenth of the width, rounded up.</summary>
    public int StepRank { get; init; }

    /// <summary>Side of the depth-wise convolution before the scan, odd.</summary>
    public int Convolution { get; init; } = 7;

    /// <summary>Whether that convolution has a bias.</summary>
    public bool ConvolutionBias { get; init; } = true;

    /// <summary>Whether the projections into and out of the mixer have biases; the published models do.</summary>
    public bool Bias { get; init; } = true;

    /// <summary>First value of a factor per channel of the output; null: none.</summary>
    public double? LayerScale { get; init; }

    /// <summary>Whether the mixer does what the paper says: steps and maps follow the route that their tokens follow, and the step's bias is added once. The authors' code, and so their checkpoints, leave steps and maps in
    /// raster order and add the bias twice; that is the default.</summary>
    public bool AsPaper { get; init; }
}

/// <summary>PlainMamba's mixer (arXiv 2403.17695, section 3.2): one selective scan, with the same parameters, along four serpentines whose steps go to neighbours only; how a step was reached adds a learned term to its input map. Parameter
/// names are the authors': <c>in_proj</c>, <c>conv2d</c>, <c>x_proj</c>, <c>dt_proj</c>, <c>A_log</c>, <c>D</c>, <c>direction_Bs</c> <c>[5, N]</c>, <c>out_proj</c>, <c>gamma</c>.</summary>
public sealed class PlainMambaMixer : nn.Module<Tensor, Tensor>, IMapSource
{
    private const int DirectionTerms = 5;

    private readonly PlainMambaOptions _options;
    private readonly int _channels;
    private readonly int _rank;
    private readonly ScanOrder _order;
    // The direction of every place of every route, [K, T] row by row.
    private readonly long[] _directions;
    private readonly Linear in_proj;
    private readonly Conv2d conv2d;
    private readonly Linear x_proj;
    private readonly Linear dt_proj;
    private readonly Parameter A_log;
    private readonly Parameter D;
    private readonly Linear out_proj;
    private readonly Parameter direction_Bs;
    private readonly Parameter? gamma;

    /// <summary>Makes a mixer.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">The convolution's side is even, or a size is not positive.</exception>
    public PlainMambaMixer(PlainMambaOptions options)
        : base(nameof(PlainMambaMixer))
    {
        ArgumentNullException.ThrowIfNull(options);
        _options = options;
        _channels = (int)(options.Expand * options.Width);
        if (options.Width < 1 || _channels < 1 || options.States < 1 || options.Convolution < 1 || options.Convolution % 2 == 0)
        {
            throw new ArgumentException(
                $"PlainMamba needs a width, channels and states of at least 1 and a convolution with an odd side, not {options.Width}, {_channels}, {options.States} and {options.Convolution}.", nameof(options));
        }

        _rank = options.StepRank > 0 ? options.StepRank : MambaBranch.DefaultStepRank(options.Width);
        _order = ScanOrder.Continuous(options.GridHeight, options.GridWidth);
        _directions = [.. Enumerable.Range(0, _order.Count).SelectMany(route => _order.Directions(route)).Select(direction => (long)direction)];
        in_proj = nn.Linear(options.Width, 2 * _channels, options.Bias);
        conv2d = nn.Conv2d(_channels, _channels, options.Convolution, padding: options.Convolution / 2, groups: _channels, bias: options.ConvolutionBias);
        x_proj = nn.Linear(_channels, _rank + (2 * options.States), hasBias: false);
        dt_proj = MambaBranch.NewStep(_rank, _channels);

        A_log = MambaBranch.NewLogA(_channels, options.States);
        D = MambaBranch.NewSkip(_channels);
        out_proj = nn.Linear(_channels, options.Width, options.Bias);
        direction_Bs = Parameters.Make([DirectionTerms, options.States], tensor => Parameters.DrawNormal(tensor));
        gamma = options.LayerScale is { } scale ? Parameters.Make([options.Width], tensor => tensor.fill_(scale)) : null;
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public PlainMambaOptions Options => _options;

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>Mixes the tokens of a picture.</summary>
    /// <param name="tokens"><c>[B, H W, M]</c>, row by row.</param>
    /// <returns>The same shape.</returns>
    /// <exception cref="ArgumentException">The tokens have another shape.</exception>
    public override Tensor forward(Tensor tokens)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 3 || tokens.shape[1] != _order.Tokens || tokens.shape[2] != _options.Width)
        {
            throw new ArgumentException($"This mixer takes [batch, {_options.GridHeight} * {_options.GridWidth}, {_options.Width}], not {AttentionShape.Text(tokens)}.", nameof(tokens));
        }

        using var scope = NewDisposeScope();
        var (batch, states, routes, length) = (tokens.shape[0], _options.States, _order.Count, _order.Length);
        var projected = in_proj.forward(tokens);
        var map = projected.narrow(2, 0, _channels).unflatten(1, [_options.GridHeight, _options.GridWidth]).permute(0, 3, 1, 2);
        map = nn.functional.silu(DepthwiseConvolution.Apply(map, conv2d.weight, conv2d.bias)).flatten(2);
        var maps = x_proj.forward(map.transpose(1, 2));
        var low = maps.narrow(2, 0, _rank);
        var steps = (_options.AsPaper ? nn.functional.linear(low, dt_proj.weight) : dt_proj.forward(low)).transpose(1, 2);
        var (input, output) = (maps.narrow(2, _rank, states).transpose(1, 2), maps.narrow(2, _rank + states, states).transpose(1, 2));

        // Routes share every parameter: they are folded into the batch.
        var directions = direction_Bs.index_select(0, tensor(_directions, device: tokens.device)).view(routes, length, states).transpose(1, 2);
        var response = SelectiveScan.Apply(
            Folded(_order.Gather(map)), Routed(steps), A_log.exp().neg(), Folded(Unfolded(input) + directions), Routed(output), D, null, dt_proj.bias, true).Output.view(batch, routes, _channels, length);
        Record(response, steps);
        var merged = _order.ScatterAdd(response).transpose(1, 2) * nn.functional.silu(projected.narrow(2, _channels, _channels));
        var result = out_proj.forward(merged);
        return (gamma is null ? result : result * gamma).MoveToOuterDisposeScope();

        // [B, X, T] -> [B, K, X, L]
        Tensor Unfolded(Tensor values) => _options.AsPaper ? _order.Gather(values) : values.unsqueeze(1).expand(-1, routes, -1, -1);

        Tensor Folded(Tensor values) => values.reshape(batch * routes, values.shape[2], length);

        Tensor Routed(Tensor values) => Folded(Unfolded(values));
    }

    private void Record(Tensor response, Tensor steps)
    {
        if (Recorder is null)
        {
            return;
        }

        using var quiet = no_grad();
        var (height, width) = (_options.GridHeight, _options.GridWidth);
        Recorder.Record(
            this, "response", _order.Restore(linalg.norm(response, dims: [2L], keepdim: true)).reshape(response.shape[0], _order.Count, height, width),
            [.. Enumerable.Range(0, _order.Count).Select(route => $"response, {_order.Name} route {route}")]);
        Recorder.Record(this, "step", nn.functional.softplus(steps + dt_proj.bias!.unsqueeze(1)).mean([1L]).reshape(response.shape[0], 1, height, width), ["step"]);
    }
}
