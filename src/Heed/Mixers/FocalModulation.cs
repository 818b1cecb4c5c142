using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The shape of a <see cref="FocalModulation"/>.</summary>
public sealed record FocalModulationOptions
{
    /// <summary>Number L of levels of context beside the global one, at least 1.</summary>
    public int Levels { get; init; } = 2;

    /// <summary>Side of the first level's filters, odd.</summary>
    public int Window { get; init; } = 3;

    /// <summary>How much larger the filters of the next level are, even.</summary>
    public int Factor { get; init; } = 2;

    /// <summary>Whether the projections <c>f</c> and <c>h</c> add a bias (<c>proj</c> always does).</summary>
    public bool Bias { get; init; } = true;

    /// <summary>Whether the modulated query is layer-normalised before the last projection.</summary>
    public bool PostNorm { get; init; }

    /// <summary>Whether the sum of the levels is divided by their number, L + 1.</summary>
    public bool Normalize { get; init; }

    /// <summary>Share of the outputs dropped in training.</summary>
    public double Dropout { get; init; }

    /// <summary>Whether levels are weighted by gates, as in the paper; without, they are only added up (the paper's ablation).</summary>
    public bool Gates { get; init; } = true;

    /// <summary>Whether the mean over the picture is one more level, as in the paper (its ablation leaves it out).</summary>
    public bool GlobalLevel { get; init; } = true;

    /// <summary>Side of the filters of a level.</summary>
    /// <param name="level">The level, from 0.</param>
    public int Kernel(int level) => Window + (Factor * level);

    /// <summary>Side of the square of positions that the context of a level comes from: <c>r_l = 1 + sum over i to l of (k_i - 1)</c>, since each level reads the one before.</summary>
    /// <param name="level">The level, from 0 to L - 1.</param>
    public int ReceptiveField(int level) => 1 + Enumerable.Range(0, level + 1).Sum(index => Kernel(index) - 1);
}

/// <summary>What one call of <see cref="FocalModulation"/> multiplied its queries by.</summary>
/// <param name="Gates"><c>[B, L + 1, H, W]</c>: the weight of every level at every position, the global one last; any sign. Empty where the module has no gates.</param>
/// <param name="Modulator"><c>[B, C, H, W]</c>: the factor of every query.</param>
public sealed record FocalContext(Tensor Gates, Tensor Modulator);

/// <summary>Focal modulation (arXiv 2203.11926, section 3): <c>y = proj(q(x) * h(sum of levels g_l(x) z_l))</c>. The context of a position is gathered first, by a stack of growing depth-wise
/// convolutions <c>z_l = GELU(conv_l(z_{l-1}))</c> and the mean of the last over the picture, weighted by gates that are plain linear outputs (no sigmoid, any sign), and then the query meets it, once.
/// Linear in the number of positions. Parameter names are the authors': <c>f</c>, <c>focal_layers.{l}.0</c>, <c>h</c>, <c>ln</c>, <c>proj</c>.</summary>
public sealed class FocalModulation : GatedMixer
{
    private readonly Linear f;
    private readonly ModuleList<Sequential> focal_layers;
    private readonly Conv2d h;
    private readonly LayerNorm? ln;
    private readonly Linear proj;
    private readonly FocalModulationOptions _options;
    private readonly int _width;

    /// <summary>Makes the module.</summary>
    /// <param name="width">Channels C, at least 1.</param>
    /// <param name="options">Its shape; null: two levels of sides 3 and 5.</param>
    /// <exception cref="ArgumentException">A filter would have an even side, or a number is out of range.</exception>
    public FocalModulation(int width, FocalModulationOptions? options = null)
        : base(nameof(FocalModulation))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        options ??= new();
        ArgumentOutOfRangeException.ThrowIfLessThan(options.Levels, 1, nameof(options));
        for (var level = 0; level < options.Levels; level++)
        {
            RequireOdd(options.Kernel(level), $"A focal window of {options.Window} with a factor of {options.Factor} at level {level}");
        }

        (_width, _options) = (width, options);
        f = nn.Linear(width, (2 * width) + GateCount, options.Bias);
        focal_layers = nn.ModuleList([.. Enumerable.Range(0, options.Levels).Select(level =>
            nn.Sequential(nn.Conv2d(width, width, options.Kernel(level), padding: options.Kernel(level) / 2, groups: width, bias: false)))]);
        h = nn.Conv2d(width, width, 1, bias: options.Bias);
        ln = options.PostNorm ? nn.LayerNorm(width) : null;
        proj = nn.Linear(width, width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public FocalModulationOptions Options => _options;

    private int GateCount => _options.Gates ? _options.Levels + (_options.GlobalLevel ? 1 : 0) : 0;

    /// <summary>Mixes a map.</summary>
    /// <param name="input"><c>[B, H, W, C]</c>, channels last.</param>
    /// <returns><c>[B, H, W, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        return Mix(input).MoveToOuterDisposeScope();
    }

    /// <summary>Mixes a map and hands over the modulator and the gates, in the graph.</summary>
    /// <param name="input"><c>[B, H, W, C]</c>, channels last.</param>
    /// <returns>The output <c>[B, H, W, C]</c> and what made it; all in the caller's dispose scope.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public (Tensor Output, FocalContext Context) WithContext(Tensor input)
    {
        using var scope = NewDisposeScope();
        var (query, gates, modulator) = Parts(input);
        var output = Output(query * modulator).MoveToOuterDisposeScope();
        return (output, new(gates.permute(0, 3, 1, 2).MoveToOuterDisposeScope(), modulator.permute(0, 3, 1, 2).MoveToOuterDisposeScope()));
    }

    /// <inheritdoc/>
    protected override (Tensor Gate, Tensor Context) Branches(Tensor input)
    {
        var (query, gates, modulator) = Parts(input);
        if (Recorder is not null)
        {
            RecordLength("modulator", modulator);
            if (GateCount > 0)
            {
                using var maps = gates.permute(0, 3, 1, 2);
                Recorder.Record(this, "gate", maps, [.. Enumerable.Range(0, _options.Levels).Select(level => $"level {level + 1} ({_options.ReceptiveField(level)})"), .. _options.GlobalLevel ? new[] { "global" } : []]);
            }
        }

        return (query, modulator);
    }

    /// <inheritdoc/>
    protected override Tensor Output(Tensor gated)
    {
        var output = proj.forward(ln is null ? gated : ln.forward(gated));
        return training && _options.Dropout > 0 ? nn.functional.dropout(output, _options.Dropout) : output;
    }

    // All channels last: [B, H, W, ...].
    private (Tensor Query, Tensor Gates, Tensor Modulator) Parts(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 4 || input.shape[3] != _width)
        {
            throw new ArgumentException($"Focal modulation takes maps [batch, height, width, {_width}], not [{string.Join(", ", input.shape)}].", nameof(input));
        }

        var all = f.forward(input);
        var (query, level, gates) = (all.narrow(3, 0, _width), all.narrow(3, _width, _width), all.narrow(3, 2 * _width, GateCount));
        Tensor? sum = null;
        for (var index = 0; index <= _options.Levels; index++)
        {
            if (index < _options.Levels)
            {
                var filters = ((Conv2d)focal_layers[index][0]).weight;
                level = nn.functional.gelu(DepthwiseConvolution.Apply(level.permute(0, 3, 1, 2), filters).permute(0, 2, 3, 1));
            }
            else if (_options.GlobalLevel)
            {
                level = nn.functional.gelu(level.mean([1L, 2L], keepdim: true));
            }
            else
            {
                break;
            }

            var part = _options.Gates ? level * gates.narrow(3, index, 1) : level;
            sum = sum is null ? part : sum + part;
        }

        if (_options.Normalize)
        {
            using Scalar share = 1.0 / (_options.Levels + 1);
            sum = sum! * share;
        }

        return (query, gates, nn.functional.linear(sum!, h.weight.view(_width, _width), h.bias!));
    }
}
