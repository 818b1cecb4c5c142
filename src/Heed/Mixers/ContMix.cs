using Heed.Layers;
using Heed.Probes;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>
/// Context mixing, ContMix (arXiv 2502.20087, section 3.3): the affinities of a position to p x p region centres of the whole map, mapped linearly, are the kernels with which its neighbourhood is averaged
/// (<see cref="DynamicConvolution"/>). A window of fixed size is weighed by what the whole picture shows, at a cost linear in the positions.
/// </summary>
/// <remarks>Maps smaller than the kernel are enlarged bilinearly and the result is pooled back. Parameter names: <c>weight_query.0|1</c>, <c>weight_key.1|2</c>, <c>weight_proj</c>, <c>rpb1</c>, <c>rpb2</c>.</remarks>
public sealed class ContMix : nn.Module<Tensor, Tensor, Tensor, Tensor>, IMapSource
{
    private readonly ContMixOperator _operator;
    private readonly Sequential weight_query;
    private readonly Sequential weight_key;
    private readonly Conv2d weight_proj;
    private readonly Parameter rpb1;
    private readonly Parameter rpb2;

    /// <summary>Makes the operator.</summary>
    /// <param name="dim">Channels C of queries and values; a multiple of 4 heads.</param>
    /// <param name="kernelSize">Side k of the large kernel, odd.</param>
    /// <param name="smallKernelSize">Side s of the small kernel, odd, at most k.</param>
    /// <param name="heads">The authors' number of heads; there are twice as many groups of kernels.</param>
    /// <param name="poolSize">Side p of the grid of region centres.</param>
    /// <param name="keyDim">Channels of the keys; 0: as the queries.</param>
    /// <exception cref="ArgumentException">A kernel side is even, the small one is the larger, or the channels are no multiple of 4 heads.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A number is below 1.</exception>
    public ContMix(int dim, int kernelSize, int smallKernelSize = 5, int heads = 2, int poolSize = 7, int keyDim = 0)
        : base(nameof(ContMix))
    {
        _operator = new(dim, kernelSize, smallKernelSize, heads, poolSize);
        (weight_query, weight_key, weight_proj) = (_operator.QueryMap(), _operator.KeyMap(keyDim == 0 ? dim : keyDim), _operator.KernelMap());
        (rpb1, rpb2) = (_operator.Bias(smallKernelSize, 0.02), _operator.Bias(kernelSize, 0.02));
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>The mixed values.</summary>
    /// <param name="query"><c>[B, C, H, W]</c>.</param>
    /// <param name="key"><c>[B, keyDim, H, W]</c>.</param>
    /// <param name="value"><c>[B, C, H, W]</c>.</param>
    /// <returns><c>[B, C, H, W]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public override Tensor forward(Tensor query, Tensor key, Tensor value)
    {
        using var scope = NewDisposeScope();
        var (output, _) = Mix(query, key, value);
        return output.MoveToOuterDisposeScope();
    }

    /// <summary>The kernels, at the size of the map on which they are applied.</summary>
    /// <param name="query"><c>[B, C, H, W]</c>.</param>
    /// <param name="key"><c>[B, keyDim, H, W]</c>.</param>
    /// <returns><c>[B, G, H, W, s s]</c> and <c>[B, G, H, W, k k]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public (Tensor Small, Tensor Large) Kernels(Tensor query, Tensor key)
    {
        using var scope = NewDisposeScope();
        var (_, logits) = Mix(query, key, query);
        var (small, large) = DynamicConvolution.Kernels(logits, rpb1, rpb2);
        return (small.MoveToOuterDisposeScope(), large.MoveToOuterDisposeScope());
    }

    private (Tensor Output, Tensor Logits) Mix(Tensor query, Tensor key, Tensor value)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        _operator.Check(query, key, value);
        var (wideQuery, wideKey, wideValue) = (_operator.Enlarged(query), _operator.Enlarged(key), _operator.Enlarged(value));
        var logits = _operator.Logits(weight_query.forward(wideQuery), weight_key.forward(wideKey), weight_proj);
        var output = DynamicConvolution.Apply(logits, rpb1, rpb2, wideValue);
        ContMixOperator.Record(this, logits, rpb1, rpb2);
        return (ContMixOperator.Reduced(output, query), logits);
    }
}

/// <summary>What the operator and the blocks around it share: the authors keep its parameters among those of the block.</summary>
internal sealed class ContMixOperator
{
    private readonly int _dim, _poolSize;
    private readonly double _scale;

    public ContMixOperator(int dim, int kernelSize, int smallKernelSize, int heads, int poolSize = 7)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(dim, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(smallKernelSize, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(heads, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(poolSize, 1);
        if (kernelSize % 2 == 0 || smallKernelSize % 2 == 0 || smallKernelSize > kernelSize)
        {
            throw new ArgumentException(
                $"The sides of the kernels must be odd and the small one at most the large one; {smallKernelSize} and {kernelSize} were given.", nameof(kernelSize));
        }

        if (dim % (4 * heads) != 0)
        {
            throw new ArgumentException($"The channels must be a multiple of 4 x heads = {4 * heads}, as {2 * heads} groups share each half of them; {dim} were given.", nameof(dim));
        }

        (_dim, KernelSize, SmallKernelSize, Groups, _poolSize) = (dim, kernelSize, smallKernelSize, 2 * heads, poolSize);
        // By the channels over the groups, as the authors have it, though a group of queries has half as many.
        _scale = 1 / Math.Sqrt(dim / (2 * heads));
    }

    public int Groups { get; }

    public int KernelSize { get; }

    public int SmallKernelSize { get; }

    /// <summary>The query's map, without the scale.</summary>
    public Sequential QueryMap() => nn.Sequential(nn.Conv2d(_dim, _dim / 2, 1, bias: false), nn.BatchNorm2d(_dim / 2));

    /// <summary>Region centres of the keys, then their map.</summary>
    public Sequential KeyMap(int keyDim) => nn.Sequential(nn.AdaptiveAvgPool2d(_poolSize), nn.Conv2d(keyDim, _dim / 2, 1, bias: false), nn.BatchNorm2d(_dim / 2));

    /// <summary>From affinities to taps.</summary>
    public Conv2d KernelMap() => nn.Conv2d(_poolSize * _poolSize, (SmallKernelSize * SmallKernelSize) + (KernelSize * KernelSize), 1);

    /// <summary>A table of relative positions.</summary>
    public Parameter Bias(int side, double deviation) => Parameters.Make(
        [Groups, (2 * side) - 1, (2 * side) - 1], tensor => _ = deviation == 0 ? tensor.zero_() : Parameters.DrawNormal(tensor, deviation));

    public void Check(Tensor query, Tensor key, Tensor value)
    {
        bool Fits(Tensor tensor) => tensor.dim() == 4 && query.dim() == 4 && tensor.shape[0] == query.shape[0] && tensor.shape[2] == query.shape[2] && tensor.shape[3] == query.shape[3];
        if (!Fits(query) || !Fits(key) || !Fits(value) || query.shape[1] != _dim || value.shape[1] != _dim)
        {
            throw new ArgumentException(
                $"Query and value must be [batch, {_dim}, height, width] and the key must match them but for its channels, not [{string.Join(", ", query.shape)}], [{string.Join(", ", key.shape)}] and [{string.Join(", ", value.shape)}].",
                nameof(query));
        }
    }

    /// <summary>The map, enlarged to the kernel's side where it is smaller.</summary>
    public Tensor Enlarged(Tensor map)
    {
        var (height, width) = (map.shape[2], map.shape[3]);
        if (Math.Min(height, width) >= KernelSize)
        {
            return map;
        }

        // From left to right in double precision, then cut: the authors' own rounding.
        double side = KernelSize;
        long[] size = height < width ? [KernelSize, (long)(side / height * width)] : [(long)(side / width * height), KernelSize];
        return nn.functional.interpolate(map, size: size, mode: InterpolationMode.Bilinear, align_corners: false);
    }

    /// <summary>The result at the size of the map that was enlarged.</summary>
    public static Tensor Reduced(Tensor result, Tensor like) =>
        result.shape[2] == like.shape[2] && result.shape[3] == like.shape[3] ? result : nn.functional.adaptive_avg_pool2d(result, [like.shape[2], like.shape[3]]);

    /// <summary>The taps' logits.</summary>
    /// <param name="query"><c>[B, C / 2, H, W]</c>, mapped.</param>
    /// <param name="centres"><c>[B, C / 2, p, p]</c>, pooled and mapped.</param>
    /// <param name="map">From affinities to taps.</param>
    /// <returns><c>[B, G, H, W, s s + k k]</c>.</returns>
    public Tensor Logits(Tensor query, Tensor centres, Conv2d map)
    {
        using var scope = NewDisposeScope();
        using Scalar scale = _scale;
        var (batch, height, width, channels) = (query.shape[0], query.shape[2], query.shape[3], _dim / 2 / Groups);
        var queries = (query * scale).reshape(batch * Groups, channels, height * width).transpose(1, 2);
        var keys = centres.reshape(batch * Groups, channels, _poolSize * _poolSize);
        var weight = map.weight.flatten(1).t();
        // Query, centres and taps are multiplied in the order that costs less: (Q K) W, or Q (K W) where a group has fewer channels than there are centres.
        var logits = channels < keys.shape[2]
            ? queries.bmm(keys.matmul(weight)) + map.bias!
            : queries.bmm(keys).matmul(weight) + map.bias!;
        return logits.view(batch, Groups, height, width, -1).MoveToOuterDisposeScope();
    }

    /// <summary>Hands the kernels to a viewer: where the mass of each side goes, and the kernel in the middle of the map.</summary>
    public static void Record(IMapSource source, Tensor logits, Tensor smallBias, Tensor largeBias)
    {
        if (source.Recorder is not { } recorder)
        {
            return;
        }

        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (small, large) = DynamicConvolution.Kernels(logits, smallBias, largeBias);
        string[] labels = [.. Enumerable.Range(0, (int)logits.shape[1]).Select(group => $"group {group}")];
        foreach (var (name, kernels) in new[] { ("small kernel", small), ("large kernel", large) })
        {
            recorder.Record(source, $"{name}: mass received", DynamicConvolution.ReceivedMass(kernels), labels);
            recorder.Record(source, $"{name} in the middle", DynamicConvolution.KernelAt(kernels, kernels.shape[2] / 2, kernels.shape[3] / 2), labels);
        }
    }
}
