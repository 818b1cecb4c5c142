using Heed.Layers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>A selective scan along several routes over a picture, each with projections, decay and skip of its own; what the routes say of a token is added up and normalised. The core of <see cref="SS2D"/> and of
/// <see cref="AtrousSelectiveScan"/>. Parameter names are VMamba's: <c>x_proj_weight</c> <c>[K, R + 2 N, E]</c>, <c>dt_projs_weight</c> <c>[K, E, R]</c>, <c>dt_projs_bias</c> <c>[K, E]</c>, <c>A_logs</c>
/// <c>[K E, N]</c>, <c>Ds</c> <c>[K E]</c>.</summary>
/// <remarks>Maps that it hands to a <see cref="MapRecorder"/>: <c>response</c>, the length of every route's response at every position, and <c>step</c>, the mean step of every route there.</remarks>
public abstract class RoutedScan : nn.Module<Tensor, Tensor>, IMapSource
{
    // Seen by RegisterComponents of the modules that derive from this one.
    private protected readonly Parameter x_proj_weight;
    private protected readonly Parameter dt_projs_weight;
    private protected readonly Parameter dt_projs_bias;
    private protected readonly Parameter A_logs;
    private protected readonly Parameter Ds;

    private readonly ScanPattern _pattern;
    private readonly int _rank;
    private readonly int _states;
    private ScanOrder? _order;

    private protected RoutedScan(string name, ScanPattern pattern, int channels, int rank, int states)
        : base(name)
    {
        ArgumentNullException.ThrowIfNull(pattern);
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(rank, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(states, 1);
        (_pattern, Channels, _rank, _states) = (pattern, channels, rank, states);
        var routes = pattern.Routes;
        x_proj_weight = Parameters.Make([routes, rank + (2 * states), channels], tensor => tensor.uniform_(-1 / Math.Sqrt(channels), 1 / Math.Sqrt(channels)));
        dt_projs_weight = Parameters.Make([routes, channels, rank], null);
        dt_projs_bias = Parameters.Make([routes, channels], null);
        MambaBranch.FillStep(dt_projs_weight, dt_projs_bias);
        A_logs = MambaBranch.NewLogA(routes * channels, states);
        Ds = MambaBranch.NewSkip(routes * channels);
    }

    /// <summary>Number E of channels that are scanned.</summary>
    public int Channels { get; }

    /// <summary>The routes.</summary>
    public ScanPattern Pattern => _pattern;

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>Scans a map along all routes and adds up what they say.</summary>
    /// <param name="map"><c>[B, E, H, W]</c>.</param>
    /// <returns><c>[B, H, W, E]</c>.</returns>
    private protected Tensor Scan(Tensor map)
    {
        using var scope = NewDisposeScope();
        var (batch, height, width) = (map.shape[0], (int)map.shape[2], (int)map.shape[3]);
        var order = OrderOf(height, width);
        var (routes, channels, length) = (order.Count, Channels, order.Length);
        var sequences = order.Gather(map.flatten(2));
        var projected = matmul(x_proj_weight, sequences);
        var steps = matmul(dt_projs_weight, projected.narrow(2, 0, _rank));
        var response = SelectiveScan.Apply(
            sequences.reshape(batch, routes * channels, length), steps.view(batch, routes * channels, length), A_logs.exp().neg(), projected.narrow(2, _rank, _states), projected.narrow(2, _rank + _states, _states),
            Ds, null, dt_projs_bias.view(-1), true).Output.view(batch, routes, channels, length);
        Record(order, response, steps);
        return order.ScatterAdd(response).transpose(1, 2).reshape(batch, height, width, channels).MoveToOuterDisposeScope();
    }

    private void Record(ScanOrder order, Tensor response, Tensor steps)
    {
        if (Recorder is null)
        {
            return;
        }

        using var quiet = no_grad();
        string[] Labels(string what) => [.. Enumerable.Range(0, order.Count).Select(route => $"{what}, {order.Name} route {route}")];
        Recorder.Record(this, "response", Picture(linalg.norm(response, dims: [2L], keepdim: true)), Labels("response"));
        Recorder.Record(this, "step", Picture(nn.functional.softplus(steps + dt_projs_bias.unsqueeze(-1)).mean([2L], keepdim: true)), Labels("step"));

        Tensor Picture(Tensor perPlace) => order.Restore(perPlace).reshape(perPlace.shape[0], order.Count, order.Height, order.Width);
    }

    // Pictures of a model have one size mostly.
    private ScanOrder OrderOf(int height, int width) =>
        _order is { } known && known.Height == height && known.Width == width ? known : _order = _pattern.Order(height, width);
}
