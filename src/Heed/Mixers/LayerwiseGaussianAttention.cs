using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>Gaussian adaptive attention, form B (arXiv 2401.11143, algorithm 1, as its experiments run it): over a stack of layers (or positions), every feature is weighted by how near it is to its own mean,
/// <c>w = exp(-y^2 / 2c)</c> with <c>y = (x - mean - offset) / deviation</c>; the output is <c>x w</c>. Heads cut the layers into equal pieces. Weights lie in (0, 1] and are not normalised. Parameters
/// <c>gcts.{head}.mean_offset|c</c> <c>[1, F]</c>.</summary>
/// <remarks>The mean and the variance are over n here, and <c>c</c> is not squared, unlike in form A: a c of 0 or less makes no sense and is not prevented in training. With a time axis, statistics and weights come from
/// the mean over time and hold for all times; the authors' scripts flatten layers, times and features in another order, which mixes axes, and all run with a single time.</remarks>
public sealed class LayerwiseGaussianAttention : nn.Module<Tensor, (Tensor Output, Tensor Weights)>
{
    private readonly ModuleList<LayerwiseGaussianHead> gcts;
    private readonly int _layers;
    private readonly int _features;

    /// <summary>Makes a layer.</summary>
    /// <param name="layers">Layers L of the stack, a multiple of the heads.</param>
    /// <param name="features">Features F, from 1.</param>
    /// <param name="heads">Heads, from 1 (8 in the paper's first version, 1 in its second).</param>
    /// <param name="spread">The spreads c at first, above 0.</param>
    /// <param name="epsilon">Added to the variance under the root.</param>
    /// <param name="varianceFloor">Added to the magnitude of the variance.</param>
    /// <exception cref="ArgumentException">A number is out of range, or the heads do not divide the layers.</exception>
    public LayerwiseGaussianAttention(int layers, int features, int heads = 8, double spread = 2, double epsilon = 1e-5, double varianceFloor = 1e-8)
        : base(nameof(LayerwiseGaussianAttention))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(features, 1);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(spread);
        ArgumentOutOfRangeException.ThrowIfNegative(epsilon);
        ArgumentOutOfRangeException.ThrowIfNegative(varianceFloor);
        if (heads < 1 || layers < 1 || layers % heads != 0)
        {
            throw new ArgumentException($"The number of heads divides the layers; {heads} heads and {layers} layers were given.", nameof(heads));
        }

        (_layers, _features) = (layers, features);
        gcts = nn.ModuleList([.. Enumerable.Range(0, heads).Select(_ => new LayerwiseGaussianHead(features, spread, epsilon, varianceFloor))]);
        RegisterComponents();
    }

    /// <summary>The weighted stack.</summary>
    /// <param name="input"><c>[B, L, F]</c>, or <c>[B, L, T, F]</c> with times.</param>
    /// <returns>The output, of the input's shape, and the weights <c>[B, L, F]</c> (without gradient).</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override (Tensor Output, Tensor Weights) forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() is not (3 or 4) || input.shape[1] != _layers || input.shape[^1] != _features)
        {
            throw new ArgumentException($"The input is [batch, {_layers} layers, {_features}] or [batch, {_layers} layers, times, {_features}]; {AttentionShape.Text(input)} was given.", nameof(input));
        }

        using var scope = NewDisposeScope();
        var levels = input.dim() == 4 ? input.mean([2L]) : input;
        var pieces = levels.chunk(gcts.Count, 1);
        var weights = cat([.. gcts.Select((head, index) => head.forward(pieces[index]))], 1);
        var output = input * (input.dim() == 4 ? weights.unsqueeze(2) : weights);
        return (output.MoveToOuterDisposeScope(), weights.detach().MoveToOuterDisposeScope());
    }
}

/// <summary>A head of <see cref="LayerwiseGaussianAttention"/>: <c>[B, l, F]</c> to its weights.</summary>
internal sealed class LayerwiseGaussianHead : nn.Module<Tensor, Tensor>
{
    private readonly Parameter mean_offset;
    private readonly Parameter c;
    private readonly double _epsilon;
    private readonly double _floor;

    public LayerwiseGaussianHead(int features, double spread, double epsilon, double varianceFloor)
        : base(nameof(LayerwiseGaussianHead))
    {
        (_epsilon, _floor) = (epsilon, varianceFloor);
        mean_offset = Parameters.Make([1, features], tensor => tensor.zero_());
        c = Parameters.Make([1, features], tensor => tensor.fill_(spread));
        RegisterComponents();
    }

    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        using Scalar epsilon = _epsilon, floor = _floor, half = -0.5;
        var mean = input.mean([1L], keepdim: true);
        var variance = (input.square().mean([1L], keepdim: true) - mean.square()).abs().add(floor);
        var distance = (input - mean - mean_offset) / variance.add(epsilon).sqrt();
        return (distance.square().mul(half) / c).exp().MoveToOuterDisposeScope();
    }
}

/// <summary>Form B in front of attention among the layers (GQGAAM): the weighted stack is projected, and <c>Hq</c> query heads share <c>Hkv</c> keys and values. The scores of a group's query heads are added up before one softmax
/// and divided by the head's width (not by its root), so there is one map for each key head; ordinary grouped attention gives other numbers. Parameters <c>daam.gcts.*</c>, <c>embed_transform</c>,
/// <c>gqa.q_proj|k_proj|v_proj|norm|out_proj</c>.</summary>
public sealed class GroupedQueryGaussianAttention : nn.Module<Tensor, Tensor>
{
    private readonly LayerwiseGaussianAttention daam;
    private readonly Linear embed_transform;
    private readonly SummedGroupAttention gqa;

    /// <summary>Makes a layer.</summary>
    /// <param name="layers">Layers L of the stack, a multiple of the heads.</param>
    /// <param name="features">Features F.</param>
    /// <param name="heads">Heads of form B.</param>
    /// <param name="width">Width E of the attention, a multiple of the query heads.</param>
    /// <param name="queryHeads">Query heads, a multiple of the key heads.</param>
    /// <param name="keyHeads">Heads of keys and values.</param>
    /// <param name="hasNorm">Whether the heads' outputs are normalised before the last projection.</param>
    /// <param name="normEpsilon">Epsilon of that norm.</param>
    /// <exception cref="ArgumentException">A number is out of range, or does not divide another as it must.</exception>
    public GroupedQueryGaussianAttention(int layers, int features, int heads = 8, int width = 512, int queryHeads = 8, int keyHeads = 2, bool hasNorm = true, double normEpsilon = 1e-5)
        : base(nameof(GroupedQueryGaussianAttention))
    {
        daam = new(layers, features, heads);
        gqa = new(width, queryHeads, keyHeads, hasNorm, normEpsilon);
        embed_transform = nn.Linear(features, width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The form B in front.</summary>
    public LayerwiseGaussianAttention Gaussian => daam;

    /// <summary>The hooks of the module's attention calls; null: none.</summary>
    public AttentionHooks? Hooks
    {
        get => gqa.Hooks;
        set => gqa.Hooks = value;
    }

    /// <summary>Where the module's attention call stands in a model.</summary>
    public AttentionSite Site
    {
        get => gqa.Site;
        set => gqa.Site = value;
    }

    /// <summary>The output.</summary>
    /// <param name="input"><c>[B, L, F]</c>.</param>
    /// <returns><c>[B, L, E]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3)
        {
            throw new ArgumentException($"The input is [batch, layers, features] without times (take their mean first); {AttentionShape.Text(input)} was given.", nameof(input));
        }

        using var scope = NewDisposeScope();
        return gqa.forward(embed_transform.forward(daam.forward(input).Output)).MoveToOuterDisposeScope();
    }
}

/// <summary>Attention in which the query heads of a group add their scores up before one softmax.</summary>
internal sealed class SummedGroupAttention : nn.Module<Tensor, Tensor>
{
    private readonly Linear q_proj;
    private readonly Linear k_proj;
    private readonly Linear v_proj;
    private readonly LayerNorm? norm;
    private readonly Linear out_proj;
    private readonly int _keyHeads;
    private readonly int _headWidth;

    public SummedGroupAttention(int width, int queryHeads, int keyHeads, bool hasNorm, double normEpsilon)
        : base(nameof(SummedGroupAttention))
    {
        if (width < 1 || queryHeads < 1 || keyHeads < 1 || queryHeads % keyHeads != 0 || width % queryHeads != 0)
        {
            throw new ArgumentException($"Query heads are a multiple of key heads and divide the width; {queryHeads}, {keyHeads} and {width} were given.", nameof(queryHeads));
        }

        (_keyHeads, _headWidth) = (keyHeads, width / queryHeads);
        var inner = keyHeads * _headWidth;
        (q_proj, k_proj, v_proj, out_proj) = (nn.Linear(width, width), nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width));
        norm = hasNorm ? nn.LayerNorm(inner, normEpsilon) : null;
        foreach (var linear in new[] { q_proj, k_proj, v_proj, out_proj })
        {
            nn.init.xavier_normal_(linear.weight!);
            nn.init.zeros_(linear.bias!);
        }

        RegisterComponents();
        Parameters.Keep(this);
    }

    public AttentionHooks? Hooks { get; set; }

    public AttentionSite Site { get; set; }

    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var (batch, length) = (input.shape[0], input.shape[1]);

        // The sum of the scores is the score of the summed queries.
        var query = q_proj.forward(input).view(batch, length, _keyHeads, -1, _headWidth).sum(3).transpose(1, 2);
        var (key, value) = (k_proj.forward(input).view(batch, length, _keyHeads, -1).transpose(1, 2), v_proj.forward(input).view(batch, length, _keyHeads, -1).transpose(1, 2));
        var mixed = Attention.Compute(query, key, value, new() { Scale = 1.0 / _headWidth }, Site, Hooks).transpose(1, 2).reshape(batch, length, -1);
        return out_proj.forward(norm is null ? mixed : norm.forward(mixed)).MoveToOuterDisposeScope();
    }
}

/// <summary>Which layers and features Gaussian attention keeps, over a data set: recorded weights averaged, then stretched to 0 to 1 over the whole map (arXiv 2401.11143, section on importance factors).</summary>
/// <param name="Map"><c>[layers, features]</c>, from 0 to 1; all zero where all weights are the same.</param>
/// <param name="LayerContribution"><c>[layers]</c>: each layer's share of the total weight, in percent.</param>
public sealed record ImportanceFactor(Tensor Map, Tensor LayerContribution) : IDisposable
{
    /// <summary>The importance factors of recorded weights.</summary>
    /// <param name="weightMaps">Weights of calls, <c>[layers, features]</c> or <c>[B, layers, features]</c> each.</param>
    /// <exception cref="ArgumentException">There are none, or they differ in layers and features.</exception>
    public static ImportanceFactor From(IEnumerable<Tensor> weightMaps)
    {
        ArgumentNullException.ThrowIfNull(weightMaps);
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        Tensor? sum = null;
        long maps = 0;
        foreach (var map in weightMaps)
        {
            if (map.dim() is not (2 or 3) || (sum is not null && (map.shape[map.dim() - 2] != sum.shape[0] || map.shape[map.dim() - 1] != sum.shape[1])))
            {
                throw new ArgumentException($"Weight maps are [layers, features] or [batch, layers, features], all of the same layers and features; {AttentionShape.Text(map)} was given.", nameof(weightMaps));
            }

            var part = map.dim() == 3 ? map.sum([0L]) : map;
            sum = sum is null ? part : sum + part;
            maps += map.dim() == 3 ? map.shape[0] : 1;
        }

        if (sum is null)
        {
            throw new ArgumentException("There are no weight maps: record at least one.", nameof(weightMaps));
        }

        using Scalar count = maps, hundred = 100;
        var mean = sum.div(count);
        var (least, most) = (mean.min(), mean.max());
        var range = most - least;
        var stretched = range.to(float64).item<double>() == 0 ? zeros_like(mean) : (mean - least) / range;
        return new(stretched.DetachFromDisposeScope(), (mean.sum(1) / mean.sum()).mul(hundred).DetachFromDisposeScope());
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Map.Dispose();
        LayerContribution.Dispose();
    }
}
