using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>How a <see cref="VMamba"/> halves its maps between stages.</summary>
public enum ScanDownsampling
{
    /// <summary>Pixels of 2 x 2 squares side by side, normalised and projected (<c>v1</c>).</summary>
    PatchMerging,

    /// <summary>A 2 x 2 convolution of stride 2, normalised (<c>v2</c>).</summary>
    Convolution2,

    /// <summary>A 3 x 3 convolution of stride 2, normalised (<c>v3</c>).</summary>
    Convolution3,
}

/// <summary>The shape of a <see cref="VSSBlock"/>.</summary>
public sealed record VSSBlockOptions
{
    /// <summary>The mixer; null: a block without one.</summary>
    public required SS2DOptions? Mixer { get; init; }

    /// <summary>Width M of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Hidden width of the perceptron over the width; 0: none.</summary>
    public double FeedForwardRatio { get; init; } = 4;

    /// <summary>Whether the perceptron has a gate.</summary>
    public bool GatedFeedForward { get; init; }

    /// <summary>Whether norms stand after the branches instead of before them.</summary>
    public bool PostNorm { get; init; }

    /// <summary>Whether maps are <c>[B, M, H, W]</c> instead of <c>[B, H, W, M]</c>.</summary>
    public bool ChannelFirst { get; init; }

    /// <summary>Probability of dropping the branches in training.</summary>
    public double DropPath { get; init; }
}

/// <summary>A block of VMamba (arXiv 2401.10166, figure 3): <c>x += SS2D(norm(x))</c>, <c>x += mlp(norm2(x))</c>. Parameter names <c>norm</c>, <c>op</c>, <c>norm2</c>, <c>mlp</c>.</summary>
public sealed class VSSBlock : nn.Module<Tensor, Tensor>
{
    private readonly VSSBlockOptions _options;
    private readonly LayerNorm? norm;
    private readonly SS2D? op;
    private readonly LayerNorm? norm2;
    private readonly nn.Module<Tensor, Tensor>? mlp;
    private readonly DropPath _drop;

    /// <summary>Makes a block.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">The mixer's width is not the block's, or a size is not positive.</exception>
    public VSSBlock(VSSBlockOptions options)
        : base(nameof(VSSBlock))
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentOutOfRangeException.ThrowIfLessThan(options.Width, 1);
        if (options.Mixer is { } checkedMixer && checkedMixer.Width != options.Width)
        {
            throw new ArgumentException($"A block of width {options.Width} takes a mixer of that width, not {checkedMixer.Width}.", nameof(options));
        }

        _options = options;
        if (options.Mixer is { } mixer)
        {
            norm = nn.LayerNorm(options.Width);
            // The block turns maps that come channel-first itself, once.
            op = new(mixer with { ChannelFirst = false });
        }

        if (options.FeedForwardRatio > 0)
        {
            var hidden = (long)(options.Width * options.FeedForwardRatio);
            norm2 = nn.LayerNorm(options.Width);
            mlp = options.GatedFeedForward ? new GatedGeluFeedForward(options.Width, hidden) : new GeluFeedForward(options.Width, hidden);
        }

        _drop = new(options.DropPath);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The mixer; null: none.</summary>
    public SS2D? Mixer => op;

    /// <summary>Computes the block.</summary>
    /// <param name="input"><c>[B, H, W, M]</c>, or <c>[B, M, H, W]</c> where the options say so.</param>
    /// <returns>The same shape.</returns>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();
        var map = _options.ChannelFirst ? input.permute(0, 2, 3, 1) : input;
        map = op is null ? map : Add(map, norm!, op);
        map = mlp is null ? map : Add(map, norm2!, mlp);
        return (_options.ChannelFirst ? map.permute(0, 3, 1, 2) : map).alias().MoveToOuterDisposeScope();
    }

    private Tensor Add(Tensor map, LayerNorm norm, nn.Module<Tensor, Tensor> branch) =>
        map + _drop.forward(_options.PostNorm ? norm.forward(branch.forward(map)) : branch.forward(norm.forward(map)));
}

/// <summary>The shape of a <see cref="VMamba"/>.</summary>
public sealed record VMambaOptions
{
    /// <summary>Blocks of each stage.</summary>
    public required IReadOnlyList<int> Depths { get; init; }

    /// <summary>Width of each stage.</summary>
    public required IReadOnlyList<int> Widths { get; init; }

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Side of a patch; even where patches are embedded by two convolutions.</summary>
    public int PatchSize { get; init; } = 4;

    /// <summary>The mixers; their width is the stage's.</summary>
    public SS2DOptions Mixer { get; init; } = new() { Width = 1, States = 1, ConvolutionBias = false, Gate = false };

    /// <summary>Hidden width of the perceptrons over the width; 0: none.</summary>
    public double FeedForwardRatio { get; init; } = 4;

    /// <summary>Whether the perceptrons have a gate.</summary>
    public bool GatedFeedForward { get; init; }

    /// <summary>Whether norms stand after the branches.</summary>
    public bool PostNorm { get; init; }

    /// <summary>Whether patches are embedded by two convolutions of half the stride with GELU between them (<c>v2</c>) instead of one (<c>v1</c>).</summary>
    public bool TwoConvolutions { get; init; } = true;

    /// <summary>How maps are halved between stages.</summary>
    public ScanDownsampling Downsampling { get; init; } = ScanDownsampling.Convolution3;

    /// <summary>Probability of dropping the last block's branches in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }
}

/// <summary>VMamba (arXiv 2401.10166): a pyramid of <see cref="VSSBlock"/>s, for pictures of any size. Parameter names are the authors' (MzeroMiko/VMamba), with norms of either layout: <c>patch_embed.0|2|5|7</c>,
/// <c>layers.{i}.blocks.{j}.norm|op|norm2|mlp</c>, <c>layers.{i}.downsample.1|3</c>, <c>classifier.norm|head</c>.</summary>
public sealed class VMamba : ScanningClassifier
{
    private readonly VMambaOptions _options;
    private readonly ModuleList<nn.Module<Tensor, Tensor>> patch_embed;
    private readonly ModuleList<ScanStage> layers;
    private readonly ClassifierHead classifier;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">There is no stage, depths and widths differ in number, or a size does not suit.</exception>
    public VMamba(VMambaOptions options)
        : base(nameof(VMamba), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        if (options.Depths.Count == 0 || options.Depths.Count != options.Widths.Count || options.Widths.Concat(options.Depths).Any(size => size < 1))
        {
            throw new ArgumentException(
                $"VMamba needs a depth and a width of at least 1 for each stage, not the depths {string.Join(", ", options.Depths)} and the widths {string.Join(", ", options.Widths)}.", nameof(options));
        }

        if (options.PatchSize < 1 || (options.TwoConvolutions && (options.PatchSize % 2 != 0 || options.Widths[0] % 2 != 0)))
        {
            throw new ArgumentException($"Two convolutions embed patches of an even side into an even width, not {options.PatchSize} and {options.Widths[0]}: use one convolution.", nameof(options));
        }

        _options = options;
        var (width, half) = (options.Widths[0], options.PatchSize / 2);
        patch_embed = options.TwoConvolutions
            ? nn.ModuleList<nn.Module<Tensor, Tensor>>(
                nn.Conv2d(options.Channels, width / 2, half + 1, stride: half, padding: 1), nn.Identity(), nn.LayerNorm(width / 2), nn.Identity(), nn.GELU(),
                nn.Conv2d(width / 2, width, half + 1, stride: half, padding: 1), nn.Identity(), nn.LayerNorm(width))
            : nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Conv2d(options.Channels, width, options.PatchSize, stride: options.PatchSize), nn.Identity(), nn.LayerNorm(width));
        var drops = Layers.DropPath.Schedule(options.DropPath, options.Depths.Sum());
        layers = nn.ModuleList([.. Enumerable.Range(0, options.Depths.Count).Select(stage => new ScanStage(
            [.. Enumerable.Range(0, options.Depths[stage]).Select(block => new VSSBlock(new()
            {
                Width = options.Widths[stage],
                Mixer = options.Mixer with { Width = options.Widths[stage] },
                FeedForwardRatio = options.FeedForwardRatio,
                GatedFeedForward = options.GatedFeedForward,
                PostNorm = options.PostNorm,
                DropPath = drops[options.Depths.Take(stage).Sum() + block],
            }))],
            stage + 1 < options.Depths.Count ? Downsample(options.Downsampling, options.Widths[stage], options.Widths[stage + 1]) : nn.Identity()))]);
        classifier = new(options.Widths[^1], options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(this, false);
    }

    /// <summary>The shape.</summary>
    public VMambaOptions Options => _options;

    /// <summary>VMamba-T (<c>vssm1_tiny_0230s</c>): 30 million parameters, 82.6 on ImageNet-1K in the authors' hands.</summary>
    /// <param name="classes">Number of classes.</param>
    public static VMamba Tiny(int classes = 1000) => new(new() { Depths = [2, 2, 8, 2], Widths = [96, 192, 384, 768], Mixer = Published(1), Classes = classes, DropPath = 0.2 });

    /// <summary>VMamba-S (<c>vssm1_small_0229</c>): 50 million parameters, 83.6.</summary>
    /// <param name="classes">Number of classes.</param>
    public static VMamba Small(int classes = 1000) => new(new() { Depths = [2, 2, 15, 2], Widths = [96, 192, 384, 768], Mixer = Published(2), Classes = classes, DropPath = 0.3 });

    /// <summary>VMamba-B (<c>vssm1_base_0229</c>): 89 million parameters, 83.9.</summary>
    /// <param name="classes">Number of classes.</param>
    public static VMamba Base(int classes = 1000) => new(new() { Depths = [2, 2, 15, 2], Widths = [128, 256, 512, 1024], Mixer = Published(2), Classes = classes, DropPath = 0.6 });

    private protected override ClassifierHead Head => classifier;

    private protected override IEnumerable<nn.Module<Tensor, Tensor>> Stages => layers;

    private protected override Tensor Embed(Tensor images)
    {
        var map = patch_embed[2].forward(ChannelsLast.Convolve(patch_embed[0], images));
        return _options.TwoConvolutions ? patch_embed[7].forward(ChannelsLast.Convolve(patch_embed[5], patch_embed[4].forward(map))) : map;
    }

    private static SS2DOptions Published(double expand) => new() { Width = 1, States = 1, Expand = expand, ConvolutionBias = false, Gate = false };

    private static nn.Module Downsample(ScanDownsampling kind, int width, int next) => kind switch
    {
        ScanDownsampling.PatchMerging => new PatchMerging(width, next),
        ScanDownsampling.Convolution2 => nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Identity(), nn.Conv2d(width, next, 2, stride: 2), nn.Identity(), nn.LayerNorm(next)),
        _ => nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Identity(), nn.Conv2d(width, next, 3, stride: 2, padding: 1), nn.Identity(), nn.LayerNorm(next)),
    };}

/// <summary>The blocks of a stage and what halves their map: <c>blocks.{j}</c>, <c>downsample</c>.</summary>
internal sealed class ScanStage : nn.Module<Tensor, Tensor>
{
    private readonly ModuleList<nn.Module<Tensor, Tensor>> blocks;
    private readonly nn.Module downsample;

    public ScanStage(nn.Module<Tensor, Tensor>[] blocks, nn.Module downsample)
        : base(nameof(ScanStage))
    {
        this.blocks = nn.ModuleList(blocks);
        this.downsample = downsample;
        RegisterComponents();
    }

    public override Tensor forward(Tensor map)
    {
        using var scope = NewDisposeScope();
        foreach (var block in blocks)
        {
            map = block.forward(map);
        }

        return (downsample switch
        {
            ModuleList<nn.Module<Tensor, Tensor>> parts => parts[3].forward(ChannelsLast.Convolve(parts[1], map)),
            nn.Module<Tensor, Tensor> module => module.forward(map).alias(),
            _ => map.alias(),
        }).MoveToOuterDisposeScope();
    }
}

/// <summary>The pixels of 2 x 2 squares side by side, normalised and projected (arXiv 2103.14030, section 3.1): <c>norm</c>, <c>reduction</c>. Odd sides are padded with zeros.</summary>
internal sealed class PatchMerging : nn.Module<Tensor, Tensor>
{
    private readonly Linear reduction;
    private readonly LayerNorm norm;

    public PatchMerging(int width, int output)
        : base(nameof(PatchMerging))
    {
        reduction = nn.Linear(4 * width, output, hasBias: false);
        norm = nn.LayerNorm(4 * width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    // [B, H, W, C]
    public override Tensor forward(Tensor map)
    {
        using var scope = NewDisposeScope();
        var (batch, height, width, channels) = (map.shape[0], map.shape[1], map.shape[2], map.shape[3]);
        if (height % 2 != 0 || width % 2 != 0)
        {
            map = nn.functional.pad(map, [0, 0, 0, width % 2, 0, height % 2]);
            (height, width) = (map.shape[1], map.shape[2]);
        }

        // Columns before rows within a square: (0,0), (1,0), (0,1), (1,1).
        var squares = map.reshape(batch, height / 2, 2, width / 2, 2, channels).permute(0, 1, 3, 4, 2, 5).reshape(batch, height / 2, width / 2, 4 * channels);
        return reduction.forward(norm.forward(squares)).MoveToOuterDisposeScope();
    }
}

/// <summary>Norm, mean over the picture, projection: <c>norm</c>, <c>head</c>.</summary>
internal sealed class ClassifierHead : nn.Module<Tensor, Tensor>
{
    private readonly LayerNorm norm;
    private readonly Linear head;

    public ClassifierHead(int width, int classes)
        : base(nameof(ClassifierHead))
    {
        norm = nn.LayerNorm(width);
        head = nn.Linear(width, classes);
        RegisterComponents();
        Parameters.Keep(this);
    }

    public Tensor Normalize(Tensor map) => norm.forward(map);

    // [B, H, W, C]
    public override Tensor forward(Tensor map)
    {
        using var scope = NewDisposeScope();
        return head.forward(norm.forward(map).mean([1L, 2L])).MoveToOuterDisposeScope();
    }
}

/// <summary>Layers of libtorch over maps <c>[B, H, W, C]</c>.</summary>
internal static class ChannelsLast
{
    public static Tensor Convolve(nn.Module<Tensor, Tensor> convolution, Tensor map) => convolution.forward(map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1);
}

/// <summary>Names of VMamba's family that changed.</summary>
internal static class VMambaNames
{
    private static readonly (string Old, string New)[] Prefixes = [("patch_embed.proj.", "patch_embed.0."), ("patch_embed.norm.", "patch_embed.2."), ("norm.", "classifier.norm."), ("head.", "classifier.head.")];

    public static string Current(string stored)
    {
        foreach (var (old, now) in Prefixes)
        {
            if (stored.StartsWith(old, StringComparison.Ordinal))
            {
                return now + stored[old.Length..];
            }
        }

        return stored.StartsWith("layers.", StringComparison.Ordinal)
            ? stored.Replace(".ln_1.", ".norm.", StringComparison.Ordinal).Replace(".self_attention.", ".op.", StringComparison.Ordinal)
            : stored;
    }
}
