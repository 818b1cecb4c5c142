using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>What stands between the merged scans of an <see cref="SS2D"/> and its gate.</summary>
public enum ScanNorm
{
    /// <summary>Layer normalisation over the channels.</summary>
    LayerNorm,

    /// <summary>Nothing (suffix <c>_onnone</c>).</summary>
    None,

    /// <summary>Softmax over the positions of every channel (<c>_onsoftmax</c>).</summary>
    Softmax,

    /// <summary>The logistic function (<c>_onsigmoid</c>).</summary>
    Sigmoid,

    /// <summary>A depth-wise 3 x 3 convolution (<c>_ondwconv3</c>).</summary>
    Convolution,

    /// <summary>Layer normalisation, then a depth-wise 3 x 3 convolution (<c>_oncnorm</c>).</summary>
    LayerNormConvolution,
}

/// <summary>The shape of an <see cref="SS2D"/>.</summary>
public sealed record SS2DOptions
{
    /// <summary>Width M of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Number N of states per channel.</summary>
    public int States { get; init; } = 16;

    /// <summary>Scanned channels E over the width.</summary>
    public double Expand { get; init; } = 2;

    /// <summary>Rank R of the step's projection; 0: a sixteenth of the width, rounded up.</summary>
    public int StepRank { get; init; }

    /// <summary>Side of the depth-wise convolution before the scan, odd; 0 or 1: none.</summary>
    public int Convolution { get; init; } = 3;

    /// <summary>Whether that convolution has a bias.</summary>
    public bool ConvolutionBias { get; init; } = true;

    /// <summary>Whether the result is multiplied by a gate made of the input.</summary>
    public bool Gate { get; init; } = true;

    /// <summary>Whether the gate passes through SiLU.</summary>
    public bool GateActivation { get; init; } = true;

    /// <summary>Whether the normalised result passes through GELU before the gate (<c>_oact</c>).</summary>
    public bool OutputActivation { get; init; }

    /// <summary>What stands before the gate.</summary>
    public ScanNorm Norm { get; init; } = ScanNorm.LayerNorm;

    /// <summary>Whether maps are <c>[B, M, H, W]</c> instead of <c>[B, H, W, M]</c>. The mathematics and the parameters are the same.</summary>
    public bool ChannelFirst { get; init; }

    /// <summary>The routes.</summary>
    public ScanPattern Pattern { get; init; } = ScanPattern.Cross2d;

    /// <summary>Reads VMamba's <c>forward_type</c>: <c>v0</c>, <c>v0seq</c> (with gate, 3 x 3 convolution with bias, whatever else is asked for), <c>v01</c> to <c>v05</c>, <c>v2</c>, <c>v3</c> (the same mathematics in other
    /// layouts), <c>v051d</c> (unidi), <c>v052d</c> (bidi), followed by any of <c>_no32</c>, <c>_oact</c>, <c>_noz</c>, <c>_nozact</c>, <c>_onnone</c>, <c>_onsoftmax</c>, <c>_onsigmoid</c>, <c>_ondwconv3</c>, <c>_oncnorm</c>.</summary>
    /// <param name="forwardType">For example <c>v05_noz</c>.</param>
    /// <returns>These options with what the type says.</returns>
    /// <exception cref="ArgumentException">There is no such type.</exception>
    public SS2DOptions WithForwardType(string forwardType)
    {
        ArgumentNullException.ThrowIfNull(forwardType);
        if (forwardType is "v0" or "v0seq")
        {
            return this with { Gate = true, GateActivation = true, OutputActivation = false, Norm = ScanNorm.LayerNorm, Convolution = 3, ConvolutionBias = true, Pattern = ScanPattern.Cross2d };
        }

        var parts = forwardType.Split('_');
        var options = this with
        {
            Gate = true,
            GateActivation = true,
            OutputActivation = false,
            Norm = ScanNorm.LayerNorm,
            Pattern = parts[0] switch
            {
                "v01" or "v02" or "v03" or "v04" or "v05" or "v2" or "v3" => ScanPattern.Cross2d,
                "v051d" => ScanPattern.Unidirectional,
                "v052d" => ScanPattern.Bidirectional,
                _ => throw Unknown(),
            },
        };
        foreach (var suffix in parts.Skip(1))
        {
            options = suffix switch
            {
                // Says in which type the authors' kernel computes; here that is the tensors' own, or float32 where that is wider.
                "no32" => options,
                "oact" => options with { OutputActivation = true },
                "noz" => options with { Gate = false },
                "nozact" => options with { GateActivation = false },
                "onnone" => options with { Norm = ScanNorm.None },
                "onsoftmax" => options with { Norm = ScanNorm.Softmax },
                "onsigmoid" => options with { Norm = ScanNorm.Sigmoid },
                "ondwconv3" => options with { Norm = ScanNorm.Convolution },
                "oncnorm" => options with { Norm = ScanNorm.LayerNormConvolution },
                _ => throw Unknown(),
            };
        }

        return options;

        ArgumentException Unknown() => new(
            $"There is no forward type '{forwardType}'; there are v0, v01 to v05, v2, v3, v051d and v052d, with the suffixes _noz, _nozact, _oact, _no32, _onnone, _onsoftmax, _onsigmoid, _ondwconv3 and _oncnorm.", nameof(forwardType));
    }
}

/// <summary>VMamba's mixer (arXiv 2401.10166, section 4.2): project, convolve each channel, scan along four routes, add them up, normalise, gate, project. Linear in the number of tokens. Parameter names are the authors':
/// <c>in_proj</c>, <c>conv2d</c>, <c>x_proj_weight</c>, <c>dt_projs_weight</c>, <c>dt_projs_bias</c>, <c>A_logs</c>, <c>Ds</c>, <c>out_norm</c>, <c>out_proj</c>.</summary>
/// <remarks>Left out: the cascaded scan <c>v052dc</c>, the rotated one <c>v052d3</c>, and the Mamba-2 forms <c>m0</c>.</remarks>
public sealed class SS2D : RoutedScan
{
    private readonly SS2DOptions _options;
    private readonly Linear in_proj;
    private readonly Conv2d? conv2d;
    private readonly nn.Module? out_norm;
    private readonly Linear out_proj;

    /// <summary>Makes a mixer.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">The convolution's side is even, or a size is not positive.</exception>
    public SS2D(SS2DOptions options)
        : base(
            nameof(SS2D), (options ?? throw new ArgumentNullException(nameof(options))).Pattern, (int)(options.Expand * options.Width),
            options.StepRank > 0 ? options.StepRank : MambaBranch.DefaultStepRank(options.Width), options.States)
    {
        if (options.Convolution > 1 && options.Convolution % 2 == 0)
        {
            throw new ArgumentException($"The convolution before a scan has an odd side (0 or 1: none), not {options.Convolution}.", nameof(options));
        }

        _options = options;
        in_proj = nn.Linear(options.Width, options.Gate ? 2 * Channels : Channels, hasBias: false);
        conv2d = options.Convolution > 1
            ? nn.Conv2d(Channels, Channels, options.Convolution, padding: options.Convolution / 2, groups: Channels, bias: options.ConvolutionBias)
            : null;
        out_norm = options.Norm switch
        {
            ScanNorm.LayerNorm => nn.LayerNorm(Channels),
            ScanNorm.Convolution => nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Identity(), Convolution3()),
            ScanNorm.LayerNormConvolution => nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.LayerNorm(Channels), nn.Identity(), Convolution3()),
            _ => null,
        };
        out_proj = nn.Linear(Channels, options.Width, hasBias: false);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public SS2DOptions Options => _options;

    /// <summary>Mixes the tokens of maps of any size.</summary>
    /// <param name="input"><c>[B, H, W, M]</c>, or <c>[B, M, H, W]</c> where the options say so.</param>
    /// <returns>The same shape.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 4 || input.shape[_options.ChannelFirst ? 1 : 3] != _options.Width)
        {
            throw new ArgumentException(
                $"SS2D takes {(_options.ChannelFirst ? $"[batch, {_options.Width}, height, width]" : $"[batch, height, width, {_options.Width}]")}, not {AttentionShape.Text(input)}.", nameof(input));
        }

        using var scope = NewDisposeScope();
        var projected = in_proj.forward(_options.ChannelFirst ? input.permute(0, 2, 3, 1) : input);
        var map = (_options.Gate ? projected.narrow(3, 0, Channels) : projected).permute(0, 3, 1, 2);
        map = nn.functional.silu(conv2d is null ? map : DepthwiseConvolution.Apply(map, conv2d.weight, conv2d.bias));
        var result = Normalize(Scan(map));
        result = _options.OutputActivation ? nn.functional.gelu(result) : result;
        if (_options.Gate)
        {
            var gate = projected.narrow(3, Channels, Channels);
            result = result * (_options.GateActivation ? nn.functional.silu(gate) : gate);
        }

        var output = out_proj.forward(result);
        return (_options.ChannelFirst ? output.permute(0, 3, 1, 2) : output).MoveToOuterDisposeScope();
    }

    private Conv2d Convolution3() => nn.Conv2d(Channels, Channels, 3, padding: 1, groups: Channels, bias: false);

    // [B, H, W, E]
    private Tensor Normalize(Tensor merged) => (_options.Norm, out_norm) switch
    {
        (ScanNorm.LayerNorm, LayerNorm norm) => norm.forward(merged),
        (ScanNorm.Convolution, ModuleList<nn.Module<Tensor, Tensor>> parts) => Convolve(merged, parts[1]),
        (ScanNorm.LayerNormConvolution, ModuleList<nn.Module<Tensor, Tensor>> parts) => Convolve(parts[0].forward(merged), parts[2]),
        (ScanNorm.Softmax, _) => nn.functional.softmax(merged.flatten(1, 2), 1).view(merged.shape),
        (ScanNorm.Sigmoid, _) => merged.sigmoid(),
        _ => merged,
    };

    private static Tensor Convolve(Tensor map, nn.Module<Tensor, Tensor> convolution) =>
        DepthwiseConvolution.Apply(map.permute(0, 3, 1, 2), ((Conv2d)convolution).weight).permute(0, 2, 3, 1);
}
