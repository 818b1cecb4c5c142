using Heed.Layers;
using Heed.Probes;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>How a <see cref="VimMixer"/> sees what stands behind a token (<c>bimamba_type</c> of the authors' code).</summary>
public enum BackwardScan
{
    /// <summary>Not at all: <c>none</c>.</summary>
    None,

    /// <summary>A second scan over the same signal, steps and maps in reverse, with an A of its own: <c>v1</c>. The convolution stays causal.</summary>
    SharedMaps,

    /// <summary>A second branch with parameters of its own over the reversed tokens: <c>v2</c>, what the published models have.</summary>
    OwnBranch,
}

/// <summary>The bidirectional mixer of Vision Mamba (arXiv 2401.09417, algorithm 1): a <see cref="MambaBranch"/> over the tokens and one over the reversed tokens between shared projections. Parameter names are those of
/// hustvl/Vim: as <see cref="MambaMixer"/>, and <c>conv1d_b</c>, <c>x_proj_b</c>, <c>dt_proj_b</c>, <c>A_b_log</c>, <c>D_b</c>, <c>gamma</c>.</summary>
public sealed class VimMixer : nn.Module<Tensor, Tensor>, IMapSource
{
    private readonly MambaOptions _options;
    private readonly BackwardScan _backward;
    private readonly bool _divides;
    private readonly Linear in_proj;
    private readonly Conv1d conv1d;
    private readonly Linear x_proj;
    private readonly Linear dt_proj;
    private readonly Parameter A_log;
    private readonly Parameter D;
    private readonly Conv1d? conv1d_b;
    private readonly Linear? x_proj_b;
    private readonly Linear? dt_proj_b;
    private readonly Parameter? A_b_log;
    private readonly Parameter? D_b;
    private readonly Linear out_proj;
    private readonly Parameter? gamma;

    /// <summary>Makes the mixer.</summary>
    /// <param name="options">Its shape.</param>
    /// <param name="backward">How it sees what stands behind a token.</param>
    /// <param name="divideOutput">Whether the sum of the two directions is halved; only of <see cref="BackwardScan.OwnBranch"/>, as in the authors' code.</param>
    /// <param name="layerScale">First value of a learned factor of every output channel; null: none.</param>
    /// <exception cref="ArgumentException">A size is not positive.</exception>
    public VimMixer(MambaOptions options, BackwardScan backward = BackwardScan.OwnBranch, bool divideOutput = false, double? layerScale = null)
        : base(nameof(VimMixer))
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        (_options, _backward, _divides) = (options, backward, divideOutput);
        var channels = options.Channels;
        in_proj = nn.Linear(options.Width, 2 * channels, options.Bias);
        (conv1d, x_proj, dt_proj, A_log, D) = MambaBranch.Create(options);
        if (backward == BackwardScan.OwnBranch)
        {
            (conv1d_b, x_proj_b, dt_proj_b, A_b_log, D_b) = MambaBranch.Create(options);
        }
        else if (backward == BackwardScan.SharedMaps)
        {
            A_b_log = MambaBranch.NewLogA(channels, options.States);
        }

        out_proj = nn.Linear(channels, options.Width, options.Bias);
        gamma = layerScale is { } scale ? Parameters.Make([options.Width], tensor => tensor.fill_(scale)) : null;
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public MambaOptions Options => _options;

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>Mixes tokens.</summary>
    /// <param name="tokens"><c>[B, T, M]</c>, T from 1.</param>
    /// <returns><c>[B, T, M]</c>.</returns>
    /// <exception cref="ArgumentException">The tokens have another shape.</exception>
    public override Tensor forward(Tensor tokens)
    {
        _options.Check(tokens);
        using var scope = NewDisposeScope();
        var projected = in_proj.forward(tokens);
        var ahead = new MambaBranch(conv1d, x_proj, dt_proj, A_log, D);
        var output = _backward switch
        {
            BackwardScan.OwnBranch => OwnBranch(ahead, projected),
            BackwardScan.SharedMaps => SharedMaps(ahead, projected),
            _ => Ahead(ahead, projected),
        };
        output = out_proj.forward(output.transpose(1, 2));
        return (gamma is null ? output : output * gamma).MoveToOuterDisposeScope();
    }

    /// <summary>Scales the weights of the projection out of the mixer: models begin with branches that shrink with their depth.</summary>
    /// <param name="factor">The factor.</param>
    public void ScaleOutput(double factor)
    {
        using var still = no_grad();
        using Scalar scale = factor;
        out_proj.weight!.mul_(scale);
    }

    private Tensor Ahead(MambaBranch ahead, Tensor projected)
    {
        var (signal, gate) = _options.Halves(projected);
        var (output, step) = ahead.Run(signal, gate, Recorder is not null);
        MambaBranch.Record(this, _options.Grid, ["forward"], [output], [step]);
        return output;
    }

    private Tensor OwnBranch(MambaBranch ahead, Tensor projected)
    {
        var (signal, gate) = _options.Halves(projected);
        var (output, step) = ahead.Run(signal, gate, Recorder is not null);
        // The gate is reversed together with the signal.
        var (reversedSignal, reversedGate) = _options.Halves(projected.flip(1));
        var (back, backStep) = new MambaBranch(conv1d_b!, x_proj_b!, dt_proj_b!, A_b_log!, D_b!).Run(reversedSignal, reversedGate, Recorder is not null);
        back = back.flip(2);
        MambaBranch.Record(this, _options.Grid, ["forward", "backward"], [output, back], [step, backStep?.flip(2)]);
        var sum = output + back;
        using Scalar half = 0.5;
        return _divides ? sum * half : sum;
    }

    private Tensor SharedMaps(MambaBranch ahead, Tensor projected)
    {
        var (signal, gate) = _options.Halves(projected);
        var inputs = ahead.Inputs(signal);
        var output = SelectiveScan.Apply(inputs.Tokens, inputs.Delta, inputs.A, inputs.B, inputs.C, D, gate, dt_proj.bias, deltaSoftplus: true).Output;
        var back = SelectiveScan.Apply(
            inputs.Tokens.flip(2), inputs.Delta.flip(2), -A_b_log!.exp(), inputs.B.flip(2), inputs.C.flip(2), D, gate.flip(2), dt_proj.bias, deltaSoftplus: true).Output.flip(2);
        if (Recorder is not null)
        {
            var step = nn.functional.softplus(inputs.Delta.detach() + dt_proj.bias!.detach().unsqueeze(1));
            MambaBranch.Record(this, _options.Grid, ["forward", "backward"], [output, back], [step, step]);
        }

        return output + back;
    }
}
