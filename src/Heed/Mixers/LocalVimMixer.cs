using Heed.Layers;
using Heed.Masks;
using Heed.Probes;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>LocalMamba's mixer (arXiv 2403.09338, sections 4.1 and 4.2; the authors' MultiMamba): a <see cref="MambaBranch"/> of its own for each of several directions over the picture, each weighed by a shared gate over channels, and
/// added up between shared projections. Parameter names are the authors': <c>in_proj</c>, <c>conv1d_{i}</c>, <c>x_proj_{i}</c>, <c>dt_proj_{i}</c>, <c>A_log_{i}</c>, <c>D_{i}</c>, <c>attn</c>, <c>out_proj</c>.</summary>
/// <remarks>Directions: <c>h</c> by rows, <c>v</c> by columns, <c>wK</c> by windows of side K, each also with <c>_flip</c>. Where windows need padding, zeros are scanned, too. The authors' way back from <c>v</c> is wrong where the
/// picture is not square; this one is the true inverse. A class token in the middle is at the same place of every scanned sequence. Maps: <c>response</c> and <c>step</c> of each direction.</remarks>
public sealed class LocalVimMixer : nn.Module<Tensor, Tensor>, IMapSource
{
    private const string FlipSuffix = "_flip";

    private readonly MambaOptions _options;
    private readonly TokenGrid _grid;
    private readonly string[] _directions;
    private readonly TokenOrder[] _orders;
    private readonly Branch[] _branches;
    private readonly Linear in_proj;
    private readonly Linear out_proj;
    private readonly ChannelGate attn;

    /// <summary>Makes a mixer.</summary>
    /// <param name="options">Its shape; the grid must be given, with at most one other token, in the middle (at half of the places).</param>
    /// <param name="directions">At least one of <c>h</c>, <c>h_flip</c>, <c>v</c>, <c>v_flip</c>, <c>wK</c>, <c>wK_flip</c>.</param>
    /// <exception cref="ArgumentException">A size is not positive, there is no grid, the other token is not in the middle, or a direction is unknown.</exception>
    public LocalVimMixer(MambaOptions options, IReadOnlyList<string> directions)
        : base(nameof(LocalVimMixer))
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(directions);
        options.Validate();
        _grid = options.Grid ?? throw new ArgumentException("LocalMamba scans a picture: say by Grid where its tokens lie.", nameof(options));
        if (_grid.Others.Count > 1 || (_grid.Others.Count == 1 && _grid.Others[0] != _grid.Height * _grid.Width / 2))
        {
            throw new ArgumentException(
                $"LocalMamba knows no class token but one in the middle, at {_grid.Height * _grid.Width / 2}, not at {string.Join(", ", _grid.Others)}.", nameof(options));
        }

        if (directions.Count == 0)
        {
            throw new ArgumentException("LocalMamba needs at least one direction, for example h.", nameof(directions));
        }

        _options = options;
        _directions = [.. directions];
        _orders = [.. directions.Select(direction => Order(direction, _grid.Height, _grid.Width))];
        var (channels, rank, states) = (options.Channels, options.Rank, options.States);
        in_proj = nn.Linear(options.Width, 2 * channels, options.Bias);
        out_proj = nn.Linear(channels, options.Width, options.Bias);
        attn = new(channels);
        RegisterComponents();
        _branches = new Branch[directions.Count];
        for (var i = 0; i < directions.Count; i++)
        {
            var branch = new Branch(
                MambaBranch.NewConvolution(channels, options.Kernel, options.ConvolutionBias), nn.Linear(channels, rank + (2 * states), hasBias: false), MambaBranch.NewStep(rank, channels), $"A_log_{i}", $"D_{i}");
            register_module($"conv1d_{i}", branch.Convolution);
            register_module($"x_proj_{i}", branch.Maps);
            register_module($"dt_proj_{i}", branch.Step);
            register_parameter(branch.LogA, MambaBranch.NewLogA(channels, states));
            register_parameter(branch.Skip, MambaBranch.NewSkip(channels));
            _branches[i] = branch;
        }

        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public MambaOptions Options => _options;

    /// <summary>The directions.</summary>
    public IReadOnlyList<string> Directions => _directions;

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>Mixes the tokens of a picture.</summary>
    /// <param name="tokens"><c>[B, H W, M]</c>, row by row; one more where there is a class token.</param>
    /// <returns>The same shape.</returns>
    /// <exception cref="ArgumentException">The tokens have another shape.</exception>
    public override Tensor forward(Tensor tokens)
    {
        _options.Check(tokens);
        var (places, others) = (_grid.Height * (long)_grid.Width, _grid.Others.Count);
        if (tokens.shape[1] != places + others)
        {
            throw new ArgumentException($"This mixer takes the {places + others} tokens of {_grid.Height} x {_grid.Width} places and {others} class token(s), not {tokens.shape[1]}.", nameof(tokens));
        }

        using var scope = NewDisposeScope();
        var (middle, channels) = (places / 2, _options.Channels);
        var both = in_proj.forward(tokens).transpose(1, 2);
        var token = others == 0 ? null : both.narrow(2, middle, 1);
        var picture = Without(both);
        Tensor? sum = null;
        var (responses, steps) = (new List<Tensor>(), new List<Tensor>());
        for (var i = 0; i < _branches.Length; i++)
        {
            var sequence = With(_orders[i].Apply(picture, 2), token);
            var (output, step) = _branches[i].Of(this).Run(sequence.narrow(1, 0, channels), sequence.narrow(1, channels, channels), Recorder is not null);
            output = Back(output, i);
            if (step is not null)
            {
                responses.Add(output);
                steps.Add(Back(step, i));
            }

            var weighed = attn.forward(output.transpose(1, 2));
            sum = sum is null ? weighed : sum + weighed;
        }

        MambaBranch.Record(this, _grid, _directions, responses, steps);
        return out_proj.forward(sum!).MoveToOuterDisposeScope();

        Tensor Without(Tensor values) => others == 0 ? values : cat([values.narrow(2, 0, middle), values.narrow(2, middle + 1, values.shape[2] - middle - 1)], 2);

        Tensor With(Tensor values, Tensor? between) =>
            between is null ? values : cat([values.narrow(2, 0, middle), between, values.narrow(2, middle, values.shape[2] - middle)], 2);

        Tensor Back(Tensor values, int direction) => With(_orders[direction].Restore(Without(values), 2), others == 0 ? null : values.narrow(2, middle, 1));
    }

    /// <summary>Scales the weights of the projection out of the mixer: models begin with branches that shrink with their depth.</summary>
    /// <param name="factor">The factor.</param>
    public void ScaleOutput(double factor)
    {
        using var still = no_grad();
        using Scalar scale = factor;
        out_proj.weight!.mul_(scale);
    }

    private static TokenOrder Order(string direction, int height, int width)
    {
        ArgumentNullException.ThrowIfNull(direction);
        var flip = direction.EndsWith(FlipSuffix, StringComparison.Ordinal);
        var way = flip ? direction[..^FlipSuffix.Length] : direction;
        var cross = ScanOrder.Cross(height, width).Routes;
        return way switch
        {
            "h" => cross[flip ? 2 : 0],
            "v" => cross[flip ? 3 : 1],
            ['w', .. var side] when int.TryParse(side, out var window) && window >= 1 => ScanOrder.Local(height, width, window, flip).Routes[0],
            _ => throw new ArgumentException($"There is no direction '{direction}'; there are h, v and wK (K: side of a window), each also with {FlipSuffix}.", nameof(direction)),
        };
    }

    /// <summary>The modules of a direction, and the names of its parameters: conversions put others in their place.</summary>
    private sealed record Branch(Conv1d Convolution, Linear Maps, Linear Step, string LogA, string Skip)
    {
        public MambaBranch Of(LocalVimMixer mixer) => new(Convolution, Maps, Step, mixer.get_parameter(LogA)!, mixer.get_parameter(Skip)!);
    }
}
