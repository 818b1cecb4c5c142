using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>How the components of a <see cref="GaussianAdaptiveAttention"/> make one weight.</summary>
public enum GaussianCombination
{
    /// <summary>Their densities are multiplied: again one Gaussian bump, with <c>1/sigma^2 = sum 1/sigma_i^2</c> and <c>mu = sigma^2 sum mu_i/sigma_i^2</c>. What the published library does.</summary>
    Product,

    /// <summary>A sum of bumps with learned shares (a softmax over a parameter <c>weights</c> <c>[G]</c>): can have several modes. What the library's first version did; spreads start at 2.</summary>
    Sum,
}

/// <summary>Gaussian adaptive attention, form A (arXiv 2401.11143; the published library): every element is weighted by Gaussians around the mean of its own axis, <c>w = m / sum m</c>, and the output is <c>x w</c>. No queries,
/// keys or products of elements; O(elements x components). Parameters <c>mean_offsets</c> and <c>c</c> <c>[G]</c>.</summary>
/// <remarks>
/// Mean and variance (over n - 1) come from the data, padded elements counting as zeros; the weights come from the raw elements and the padded ones count in the normaliser. Only the square of <c>c</c> matters; at 0 the weights are
/// not numbers. An element that happens to equal the padding value is taken for padding. Computed in float64 whatever the input's type: few elements that lie close together are divided by their own small deviation.
/// </remarks>
public sealed class GaussianAdaptiveAttention : nn.Module<Tensor, (Tensor Output, Tensor Weights)>
{
    private readonly Parameter mean_offsets;
    private readonly Parameter c;
    private readonly Parameter? weights;
    private readonly int _axis;
    private readonly double? _padding;
    private readonly double _epsilon;

    /// <summary>Makes a layer.</summary>
    /// <param name="axis">The axis along which statistics are taken and weights sum to one; negative: counted from the last.</param>
    /// <param name="gaussians">Components G, from 1.</param>
    /// <param name="paddingValue">Elements of this value stay as they are and count as zeros in the statistics; null: there is no padding.</param>
    /// <param name="epsilon">Added to the variance, and the least sum that weights are divided by; above 0.</param>
    /// <param name="combination">How components make one weight.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public GaussianAdaptiveAttention(int axis, int gaussians, double? paddingValue = null, double epsilon = 1e-8, GaussianCombination combination = GaussianCombination.Product)
        : base(nameof(GaussianAdaptiveAttention))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(gaussians, 1);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(epsilon);
        (_axis, _padding, _epsilon) = (axis, paddingValue, epsilon);
        mean_offsets = Parameters.Make([gaussians], tensor => tensor.zero_());
        c = Parameters.Make([gaussians], combination == GaussianCombination.Sum ? tensor => tensor.fill_(2) : tensor => tensor.normal_().exp_());
        weights = combination == GaussianCombination.Sum ? Parameters.Make([gaussians], tensor => tensor.fill_(1)) : null;
        RegisterComponents();
    }

    /// <summary>The weighted elements.</summary>
    /// <param name="input">At least two axes, at least two elements along the axis.</param>
    /// <returns>The output and the weights (without gradient), both of the input's shape.</returns>
    /// <exception cref="ArgumentException">The input has fewer axes, not that axis, or one element along it.</exception>
    public override (Tensor Output, Tensor Weights) forward(Tensor input)
    {
        var axis = GaussianStatistics.AxisOf(input, _axis);
        if (input.shape[axis] < 2)
        {
            throw new ArgumentException($"The axis {_axis} of {AttentionShape.Text(input)} has {input.shape[axis]} element(s): a variance needs at least 2.", nameof(input));
        }

        using var scope = NewDisposeScope();
        using Scalar padding = _padding ?? 0, zero = 0, epsilon = _epsilon, half = -0.5, two = 2 * Math.PI;
        var wide = input.to(float64);
        var padded = _padding is null ? null : input.eq(padding);
        var known = padded is null ? wide : wide.masked_fill(padded, zero);
        var centred = wide - known.mean([axis], keepdim: true);
        var deviation = known.var(axis, unbiased: true, keepdim: true).add(epsilon).sqrt();
        var shares = weights is null ? null : nn.functional.softmax(weights, 0);
        Tensor? total = null;
        for (var component = 0; component < c.shape[0]; component++)
        {
            var square = c[component].square();
            var exponent = ((centred - mean_offsets[component]) / deviation).square().mul(half) / square;

            // A product of densities is added up as logarithms: the same number, without an underflow halfway.
            var term = shares is null ? exponent + square.mul(two).log().mul(half) : exponent.exp() * shares[component];
            total = total is null ? term : total + term;
        }

        var mixture = weights is null ? total!.exp() : total!;
        var weight = mixture / mixture.sum(axis, keepdim: true).clamp_min(epsilon);
        var output = wide * weight;
        output = padded is null ? output : where(padded, wide, output);
        return (output.to(input.dtype).MoveToOuterDisposeScope(), weight.detach().to(input.dtype).MoveToOuterDisposeScope());
    }
}

/// <summary>Several heads of <see cref="GaussianAdaptiveAttention"/>: the axis is cut into as many pieces of <c>floor(n / heads)</c> elements, the last takes the remainder; each piece has parameters, statistics and a normaliser
/// of its own. Parameters <c>attention_heads.{i}.mean_offsets|c</c>.</summary>
public sealed class MultiHeadGaussianAdaptiveAttention : nn.Module<Tensor, (Tensor Output, Tensor Weights)>
{
    private readonly ModuleList<GaussianAdaptiveAttention> attention_heads;
    private readonly int _axis;

    /// <summary>Makes a layer.</summary>
    /// <param name="axis">The axis; negative: counted from the last.</param>
    /// <param name="heads">Heads, from 1.</param>
    /// <param name="gaussians">Components of a head, from 1.</param>
    /// <param name="paddingValue">As for one head.</param>
    /// <param name="epsilon">As for one head.</param>
    /// <param name="combination">As for one head.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public MultiHeadGaussianAdaptiveAttention(
        int axis, int heads, int gaussians, double? paddingValue = null, double epsilon = 1e-8, GaussianCombination combination = GaussianCombination.Product)
        : base(nameof(MultiHeadGaussianAdaptiveAttention))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(heads, 1);
        _axis = axis;
        attention_heads = nn.ModuleList([.. Enumerable.Range(0, heads).Select(_ => new GaussianAdaptiveAttention(axis, gaussians, paddingValue, epsilon, combination))]);
        RegisterComponents();
    }

    /// <summary>The weighted elements.</summary>
    /// <param name="input">At least two axes, at least two elements for each head along the axis.</param>
    /// <returns>The output and the weights (without gradient), both of the input's shape.</returns>
    /// <exception cref="ArgumentException">The input has fewer axes or not that axis, or a head would get fewer than two elements.</exception>
    public override (Tensor Output, Tensor Weights) forward(Tensor input)
    {
        var axis = GaussianStatistics.AxisOf(input, _axis);
        var (length, heads) = (input.shape[axis], attention_heads.Count);
        var piece = length / heads;
        if (piece < 2)
        {
            throw new ArgumentException($"{heads} heads need at least {2 * heads} elements along the axis {_axis}, two each; {AttentionShape.Text(input)} has {length}.", nameof(input));
        }

        using var scope = NewDisposeScope();
        var parts = attention_heads.Select((head, index) => head.forward(input.narrow(axis, index * piece, index < heads - 1 ? piece : length - (index * piece)))).ToList();
        return (cat([.. parts.Select(part => part.Output)], axis).MoveToOuterDisposeScope(), cat([.. parts.Select(part => part.Weights)], axis).MoveToOuterDisposeScope());
    }
}

/// <summary>Layers of <see cref="MultiHeadGaussianAdaptiveAttention"/> with the identity beside each, <c>x += attention(x)</c>; neither norms nor projections. Parameters <c>layers.{i}.attention_heads.{j}.mean_offsets|c</c>.</summary>
public sealed class GaussianBlock : nn.Module<Tensor, (Tensor Output, IReadOnlyList<Tensor> Weights)>
{
    private readonly ModuleList<MultiHeadGaussianAdaptiveAttention> layers;

    /// <summary>Makes a block.</summary>
    /// <param name="axes">The axis of every layer.</param>
    /// <param name="heads">Heads of every layer.</param>
    /// <param name="gaussians">Components of every layer.</param>
    /// <param name="paddingValue">As for one head.</param>
    /// <param name="epsilon">As for one head.</param>
    /// <param name="combination">As for one head.</param>
    /// <exception cref="ArgumentException">The lists are empty or differ in length, or a number is out of range.</exception>
    public GaussianBlock(
        IReadOnlyList<int> axes, IReadOnlyList<int> heads, IReadOnlyList<int> gaussians, double? paddingValue = null, double epsilon = 1e-8,
        GaussianCombination combination = GaussianCombination.Product)
        : base(nameof(GaussianBlock))
    {
        ArgumentNullException.ThrowIfNull(axes);
        ArgumentNullException.ThrowIfNull(heads);
        ArgumentNullException.ThrowIfNull(gaussians);
        if (axes.Count == 0 || heads.Count != axes.Count || gaussians.Count != axes.Count)
        {
            throw new ArgumentException($"Every layer has an axis, heads and components; {axes.Count}, {heads.Count} and {gaussians.Count} were given.", nameof(axes));
        }

        layers = nn.ModuleList([.. axes.Select((axis, layer) => new MultiHeadGaussianAdaptiveAttention(axis, heads[layer], gaussians[layer], paddingValue, epsilon, combination))]);
        RegisterComponents();
    }

    /// <summary>The output of the last layer and the weights of each.</summary>
    /// <param name="input">As every layer takes it.</param>
    /// <returns>The output, and the weights of every layer (without gradient).</returns>
    /// <exception cref="ArgumentException">As for a layer.</exception>
    public override (Tensor Output, IReadOnlyList<Tensor> Weights) forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var weights = new List<Tensor>();
        var wide = input.to(float64);
        foreach (var layer in layers)
        {
            var (output, weight) = layer.forward(wide);
            wide = wide + output;
            weights.Add(weight.to(input.dtype).MoveToOuterDisposeScope());
        }

        return (wide.to(input.dtype).MoveToOuterDisposeScope(), weights);
    }
}

/// <summary>What the forms of Gaussian attention share.</summary>
internal static class GaussianStatistics
{
    public static int AxisOf(Tensor input, int axis)
    {
        ArgumentNullException.ThrowIfNull(input);
        var rank = (int)input.dim();
        if (rank < 2)
        {
            throw new ArgumentException($"Gaussian attention takes tensors of at least two axes, not {AttentionShape.Text(input)}.", nameof(input));
        }

        return axis >= -rank && axis < rank ? (axis + rank) % rank
            : throw new ArgumentException($"{AttentionShape.Text(input)} has no axis {axis}: it is from {-rank} to {rank - 1}.", nameof(input));
    }
}
