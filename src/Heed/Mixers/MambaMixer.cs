using Heed.Layers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The shape of a <see cref="MambaMixer"/> or <see cref="VimMixer"/>.</summary>
public sealed record MambaOptions
{
    /// <summary>Width M of a token.</summary>
    public required int Width { get; init; }

    /// <summary>States N of every channel.</summary>
    public int States { get; init; } = 16;

    /// <summary>Taps of the causal convolution.</summary>
    public int Kernel { get; init; } = 4;

    /// <summary>Channels E of the scan over the width; E is the whole part of the product.</summary>
    public double Expand { get; init; } = 2;

    /// <summary>Rank R of the steps; 0: a sixteenth of the width, rounded up.</summary>
    public int StepRank { get; init; }

    /// <summary>Whether the projections into and out of the mixer have biases.</summary>
    public bool Bias { get; init; }

    /// <summary>Whether the convolution has a bias.</summary>
    public bool ConvolutionBias { get; init; } = true;

    /// <summary>Where the tokens lie in the picture; null: the mixer shows no maps.</summary>
    public TokenGrid? Grid { get; init; }

    /// <summary>Channels E of the scan.</summary>
    public int Channels => (int)(Width * Expand);

    /// <summary>The rank R in use.</summary>
    internal int Rank => StepRank > 0 ? StepRank : MambaBranch.DefaultStepRank(Width);

    internal void Validate()
    {
        if (Width < 1 || States < 1 || Kernel < 1 || !(Expand > 0) || Channels < 1 || StepRank < 0)
        {
            throw new ArgumentException(
                $"A Mamba mixer needs a positive width, states, kernel and expansion, and a step rank from 0, not {Width}, {States}, {Kernel}, {Expand} and {StepRank}.", "options");
        }
    }

    internal void Check(Tensor tokens)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 3 || tokens.shape[2] != Width || tokens.shape[1] < 1)
        {
            throw new ArgumentException($"The mixer reads tokens [batch, length, {Width}] of length 1 or more, not [{string.Join(", ", tokens.shape)}].", nameof(tokens));
        }
    }

    /// <summary>The signal and the gate, <c>[B, E, T]</c> each, of projected tokens <c>[B, T, 2 E]</c>.</summary>
    internal (Tensor Signal, Tensor Gate) Halves(Tensor projected)
    {
        var channels = projected.transpose(1, 2);
        return (channels.narrow(1, 0, Channels), channels.narrow(1, Channels, Channels));
    }
}

/// <summary>Mamba (arXiv 2312.00752): a causal token mixer in linear time. Projected to a signal and a gate; the signal goes through a short causal convolution and a <see cref="SelectiveScan"/> whose steps and maps
/// it chooses itself. Parameter names are those of state-spaces/mamba: <c>in_proj</c>, <c>conv1d</c>, <c>x_proj</c>, <c>dt_proj</c>, <c>A_log</c>, <c>D</c>, <c>out_proj</c>.</summary>
public sealed class MambaMixer : nn.Module<Tensor, Tensor>, IMapSource
{
    private readonly MambaOptions _options;
    private readonly Linear in_proj;
    private readonly Conv1d conv1d;
    private readonly Linear x_proj;
    private readonly Linear dt_proj;
    private readonly Parameter A_log;
    private readonly Parameter D;
    private readonly Linear out_proj;

    /// <summary>Makes the mixer.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A size is not positive.</exception>
    public MambaMixer(MambaOptions options)
        : base(nameof(MambaMixer))
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        _options = options;
        var channels = options.Channels;
        in_proj = nn.Linear(options.Width, 2 * channels, options.Bias);
        (conv1d, x_proj, dt_proj, A_log, D) = MambaBranch.Create(options);
        out_proj = nn.Linear(channels, options.Width, options.Bias);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public MambaOptions Options => _options;

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>Mixes tokens; each sees itself and those before it.</summary>
    /// <param name="tokens"><c>[B, T, M]</c>, T from 1.</param>
    /// <returns><c>[B, T, M]</c>.</returns>
    /// <exception cref="ArgumentException">The tokens have another shape.</exception>
    public override Tensor forward(Tensor tokens)
    {
        _options.Check(tokens);
        using var scope = NewDisposeScope();
        var (signal, gate) = _options.Halves(in_proj.forward(tokens));
        var (output, step) = new MambaBranch(conv1d, x_proj, dt_proj, A_log, D).Run(signal, gate, Recorder is not null);
        MambaBranch.Record(this, _options.Grid, ["forward"], [output], [step]);
        return out_proj.forward(output.transpose(1, 2)).MoveToOuterDisposeScope();
    }
}
