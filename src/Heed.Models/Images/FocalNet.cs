using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of a <see cref="FocalNet"/>.</summary>
public sealed record FocalNetOptions
{
    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Side of a patch; with <see cref="ConvolutionalEmbedding"/> the stem is 7 x 7 with stride 4 whatever stands here.</summary>
    public int PatchSize { get; init; } = 4;

    /// <summary>Width of the first stage; every further stage is twice as wide.</summary>
    public required int Width { get; init; }

    /// <summary>Blocks of every stage.</summary>
    public required IReadOnlyList<int> Depths { get; init; }

    /// <summary>Levels of every stage's modulation; a single number holds for all stages.</summary>
    public IReadOnlyList<int> Levels { get; init; } = [2];

    /// <summary>Side of the first level's filters in every stage; a single number holds for all stages.</summary>
    public IReadOnlyList<int> Windows { get; init; } = [3];

    /// <summary>Hidden width of the perceptrons over the width.</summary>
    public double FeedForwardRatio { get; init; } = 4;

    /// <summary>Probability of dropping the last block's branches in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }

    /// <summary>Whether patches overlap: 7 x 7 with stride 4 at the stem, 3 x 3 with stride 2 between stages.</summary>
    public bool ConvolutionalEmbedding { get; init; }

    /// <summary>Whether the patches of the stem are layer-normalised (those between stages always are).</summary>
    public bool PatchNorm { get; init; } = true;

    /// <summary>Initial value of the learned factors of both branches; null: none.</summary>
    public double? LayerScale { get; init; }

    /// <summary>Whether branches are normalised after, not before.</summary>
    public bool PostNorm { get; init; }

    /// <summary>Whether the modulated query is layer-normalised, too.</summary>
    public bool PostNormInModulation { get; init; }

    /// <summary>Whether the sum of the levels is divided by their number.</summary>
    public bool NormalizeModulator { get; init; }

    /// <summary>Whether levels are gated, as in the paper.</summary>
    public bool Gates { get; init; } = true;

    /// <summary>Whether there is a global level, as in the paper.</summary>
    public bool GlobalLevel { get; init; } = true;

    internal FocalModulationOptions Modulation(int stage) => new()
    {
        Levels = Of(Levels, stage), Window = Of(Windows, stage), PostNorm = PostNormInModulation, Normalize = NormalizeModulator, Gates = Gates, GlobalLevel = GlobalLevel,
    };

    private int Of(IReadOnlyList<int> values, int stage) => values.Count == 1 ? values[0] : values.Count == Depths.Count ? values[stage]
        : throw new ArgumentException($"{values.Count} levels or windows for {Depths.Count} stages: give one for all or one for each.");

    private static readonly int[] SmallDepths = [2, 2, 6, 2];
    private static readonly int[] LargeDepths = [2, 2, 18, 2];

    /// <summary>focalnet_tiny_srf: small receptive field, 28.4 M parameters.</summary>
    public static FocalNetOptions TinySrf { get; } = new() { Width = 96, Depths = SmallDepths, DropPath = 0.2 };

    /// <summary>focalnet_tiny_lrf: large receptive field, 28.6 M parameters.</summary>
    public static FocalNetOptions TinyLrf { get; } = TinySrf with { Levels = [3] };

    /// <summary>focalnet_small_srf, 49.9 M parameters.</summary>
    public static FocalNetOptions SmallSrf { get; } = new() { Width = 96, Depths = LargeDepths, DropPath = 0.3 };

    /// <summary>focalnet_small_lrf, 50.3 M parameters.</summary>
    public static FocalNetOptions SmallLrf { get; } = SmallSrf with { Levels = [3] };

    /// <summary>focalnet_base_srf, 88.1 M parameters.</summary>
    public static FocalNetOptions BaseSrf { get; } = new() { Width = 128, Depths = LargeDepths, DropPath = 0.5 };

    /// <summary>focalnet_base_lrf, 88.7 M parameters.</summary>
    public static FocalNetOptions BaseLrf { get; } = BaseSrf with { Levels = [3] };

    /// <summary>focalnet_large_fl3: three levels from side 5, for the 21,842 classes of ImageNet-22K.</summary>
    public static FocalNetOptions LargeFl3 { get; } = Large(192) with { Levels = [3], Windows = [5] };

    /// <summary>focalnet_large_fl4: four levels from side 3, for the 21,842 classes of ImageNet-22K.</summary>
    public static FocalNetOptions LargeFl4 { get; } = Large(192) with { Levels = [4], NormalizeModulator = true };

    /// <summary>focalnet_xlarge_fl3: three levels from side 5, for the 21,842 classes of ImageNet-22K.</summary>
    public static FocalNetOptions XLargeFl3 { get; } = Large(256) with { Levels = [3], Windows = [5] };

    /// <summary>focalnet_xlarge_fl4: four levels from side 3, for the 21,842 classes of ImageNet-22K.</summary>
    public static FocalNetOptions XLargeFl4 { get; } = Large(256) with { Levels = [4] };

    /// <summary>focalnet_huge_fl3: three levels from side 3, for the 21,842 classes of ImageNet-22K.</summary>
    public static FocalNetOptions HugeFl3 { get; } = Large(352) with { Levels = [3], PostNormInModulation = true };

    /// <summary>focalnet_huge_fl4: four levels from side 3, for the 21,842 classes of ImageNet-22K.</summary>
    public static FocalNetOptions HugeFl4 { get; } = HugeFl3 with { Levels = [4] };

    /// <summary>focalnet_tiny_iso: one stage on patches of 16 pixels, 5.9 M parameters.</summary>
    public static FocalNetOptions TinyIso { get; } = Isotropic(192);

    /// <summary>focalnet_small_iso, 22.4 M parameters.</summary>
    public static FocalNetOptions SmallIso { get; } = Isotropic(384);

    /// <summary>focalnet_base_iso, 87.2 M parameters.</summary>
    public static FocalNetOptions BaseIso { get; } = Isotropic(768) with { LayerScale = 1e-4, PostNorm = true };

    private static FocalNetOptions Large(int width) => new()
    {
        Width = width, Depths = LargeDepths, Classes = 21842, DropPath = 0.5, ConvolutionalEmbedding = true, PostNorm = true, LayerScale = 1e-4,
    };

    private static FocalNetOptions Isotropic(int width) => new() { Width = width, Depths = [12], PatchSize = 16, Levels = [3], DropPath = 0.2 };
}

/// <summary>A focal modulation network (arXiv 2203.11926, section 3.3): stages of blocks with <see cref="FocalModulation"/> in the place of attention. Parameter names are the authors', so that their
/// checkpoints fit: <c>patch_embed.proj|norm</c>, <c>layers.{i}.blocks.{j}.norm1|modulation|norm2|mlp|gamma_1|gamma_2</c>, <c>layers.{i}.downsample.proj|norm</c>, <c>norm</c>, <c>head</c>. It reads pictures of any size.</summary>
public sealed class FocalNet : ImageClassifier
{
    private readonly FocalPatchEmbedding patch_embed;
    private readonly ModuleList<FocalNetStage> layers;
    private readonly LayerNorm norm;
    private readonly Linear head;

    /// <summary>Makes a model with fresh weights.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A number is out of range, or lists do not have a value for every stage.</exception>
    public FocalNet(FocalNetOptions options)
        : base(nameof(FocalNet), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        if (options.Width < 1 || options.PatchSize < 1 || options.Depths.Count == 0 || options.Depths.Any(depth => depth < 1))
        {
            throw new ArgumentException("Width and patch must be positive, and there must be stages of at least one block.", nameof(options));
        }

        Options = options;
        var stages = options.Depths.Count;
        var drops = Layers.DropPath.Schedule(options.DropPath, options.Depths.Sum());
        patch_embed = options.ConvolutionalEmbedding
            ? new(options.Channels, options.Width, kernel: 7, stride: 4, padding: 2, options.PatchNorm)
            : new(options.Channels, options.Width, options.PatchSize, options.PatchSize, padding: 0, options.PatchNorm);
        layers = nn.ModuleList([.. Enumerable.Range(0, stages).Select(stage =>
            new FocalNetStage(options, stage, drops.AsSpan(options.Depths.Take(stage).Sum(), options.Depths[stage]), isLast: stage == stages - 1))]);
        norm = nn.LayerNorm(options.Width << (stages - 1));
        head = nn.Linear(options.Width << (stages - 1), options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(this, convolutions: false);
    }

    /// <summary>The shape.</summary>
    public FocalNetOptions Options { get; }

    /// <summary>The blocks, first to last.</summary>
    public IReadOnlyList<FocalNetBlock> Blocks => [.. layers.SelectMany(stage => stage.Blocks)];

    /// <summary>The tiny model, small receptive field.</summary>
    public static FocalNet TinySrf(int classes = 1000) => new(FocalNetOptions.TinySrf with { Classes = classes });

    /// <summary>The tiny model, large receptive field.</summary>
    public static FocalNet TinyLrf(int classes = 1000) => new(FocalNetOptions.TinyLrf with { Classes = classes });

    /// <summary>The small model, small receptive field.</summary>
    public static FocalNet SmallSrf(int classes = 1000) => new(FocalNetOptions.SmallSrf with { Classes = classes });

    /// <summary>The small model, large receptive field.</summary>
    public static FocalNet SmallLrf(int classes = 1000) => new(FocalNetOptions.SmallLrf with { Classes = classes });

    /// <summary>The base model, small receptive field.</summary>
    public static FocalNet BaseSrf(int classes = 1000) => new(FocalNetOptions.BaseSrf with { Classes = classes });

    /// <summary>The base model, large receptive field.</summary>
    public static FocalNet BaseLrf(int classes = 1000) => new(FocalNetOptions.BaseLrf with { Classes = classes });

    /// <summary>The large model with three levels.</summary>
    public static FocalNet LargeFl3(int classes = 21842) => new(FocalNetOptions.LargeFl3 with { Classes = classes });

    /// <summary>The large model with four levels.</summary>
    public static FocalNet LargeFl4(int classes = 21842) => new(FocalNetOptions.LargeFl4 with { Classes = classes });

    /// <summary>The extra large model with three levels.</summary>
    public static FocalNet XLargeFl3(int classes = 21842) => new(FocalNetOptions.XLargeFl3 with { Classes = classes });

    /// <summary>The extra large model with four levels.</summary>
    public static FocalNet XLargeFl4(int classes = 21842) => new(FocalNetOptions.XLargeFl4 with { Classes = classes });

    /// <summary>The huge model with three levels.</summary>
    public static FocalNet HugeFl3(int classes = 21842) => new(FocalNetOptions.HugeFl3 with { Classes = classes });

    /// <summary>The huge model with four levels.</summary>
    public static FocalNet HugeFl4(int classes = 21842) => new(FocalNetOptions.HugeFl4 with { Classes = classes });

    /// <summary>The tiny model of one stage.</summary>
    public static FocalNet TinyIso(int classes = 1000) => new(FocalNetOptions.TinyIso with { Classes = classes });

    /// <summary>The small model of one stage.</summary>
    public static FocalNet SmallIso(int classes = 1000) => new(FocalNetOptions.SmallIso with { Classes = classes });

    /// <summary>The base model of one stage.</summary>
    public static FocalNet BaseIso(int classes = 1000) => new(FocalNetOptions.BaseIso with { Classes = classes });

    /// <inheritdoc/>
    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return head.forward(Map(images).mean([1L, 2L])).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor Features(Tensor images)
    {
        using var scope = NewDisposeScope();
        return Map(images).permute(0, 3, 1, 2).MoveToOuterDisposeScope();
    }

    /// <summary>What the last block multiplies its queries by: its length over the channels is a map of what the model looks at (arXiv 2203.11926, section 4.5).</summary>
    /// <param name="images"><c>[B, C, H, W]</c>.</param>
    /// <returns><c>[B, C', H', W']</c>.</returns>
    public Tensor LastModulator(Tensor images)
    {
        using var scope = NewDisposeScope();
        CheckImages(images);
        var map = patch_embed.forward(images);
        foreach (var stage in layers.Take(layers.Count - 1))
        {
            map = stage.forward(map);
        }

        var last = layers[^1].Blocks;
        foreach (var block in last.Take(last.Count - 1))
        {
            map = block.Map(map);
        }

        return last[^1].ModulatorOf(map).MoveToOuterDisposeScope();
    }

    // [B, H, W, C] after the final norm.
    private Tensor Map(Tensor images)
    {
        CheckImages(images);
        var map = patch_embed.forward(images);
        foreach (var stage in layers)
        {
            map = stage.forward(map);
        }

        return norm.forward(map);
    }
}

/// <summary>Cuts a map into patches and projects them: <c>proj</c>, then <c>norm</c>.</summary>
internal sealed class FocalPatchEmbedding : nn.Module<Tensor, Tensor>
{
    private readonly Conv2d proj;
    private readonly LayerNorm? norm;

    public FocalPatchEmbedding(int channels, int width, int kernel, int stride, int padding, bool isNormalised)
        : base(nameof(FocalPatchEmbedding))
    {
        proj = nn.Conv2d(channels, width, kernel, stride: stride, padding: padding);
        norm = isNormalised ? nn.LayerNorm(width) : null;
        RegisterComponents();
    }

    // [B, C, H, W] to [B, H', W', C'].
    public override Tensor forward(Tensor maps)
    {
        using var scope = NewDisposeScope();
        var patches = proj.forward(maps).permute(0, 2, 3, 1);
        return (norm is null ? patches : norm.forward(patches)).MoveToOuterDisposeScope();
    }
}

/// <summary>A stage: blocks at one width, then the step to the next.</summary>
internal sealed class FocalNetStage : nn.Module<Tensor, Tensor>
{
    private readonly ModuleList<FocalNetBlock> blocks;
    private readonly FocalPatchEmbedding? downsample;

    public FocalNetStage(FocalNetOptions options, int stage, ReadOnlySpan<double> drops, bool isLast)
        : base(nameof(FocalNetStage))
    {
        var width = options.Width << stage;
        var all = new List<FocalNetBlock>();
        foreach (var drop in drops)
        {
            all.Add(new(width, options.Modulation(stage), options.FeedForwardRatio, options.PostNorm, options.LayerScale, drop));
        }

        blocks = nn.ModuleList([.. all]);
        downsample = isLast ? null : options.ConvolutionalEmbedding ? new(width, 2 * width, 3, 2, 1, true) : new(width, 2 * width, 2, 2, 0, true);
        RegisterComponents();
    }

    public IReadOnlyList<FocalNetBlock> Blocks => [.. blocks];

    // [B, H, W, C] to [B, H', W', C'].
    public override Tensor forward(Tensor map)
    {
        using var scope = NewDisposeScope();
        foreach (var block in blocks)
        {
            map = block.Map(map);
        }

        return (downsample is null ? map : downsample.forward(map.permute(0, 3, 1, 2))).MoveToOuterDisposeScope();
    }
}

/// <summary>A block of a <see cref="FocalNet"/>: <c>x += gamma_1 * modulation(norm1(x))</c>, <c>x += gamma_2 * mlp(norm2(x))</c>, or, in post-norm form, with the norms after modulation and perceptron.</summary>
public sealed class FocalNetBlock : nn.Module<Tensor, long, long, Tensor>
{
    private readonly LayerNorm norm1;
    private readonly FocalModulation modulation;
    private readonly LayerNorm norm2;
    private readonly GeluFeedForward mlp;
    private readonly Parameter? gamma_1;
    private readonly Parameter? gamma_2;
    private readonly DropPath _drop;
    private readonly bool _postNorm;
    private readonly int _width;

    /// <summary>Makes a block.</summary>
    /// <param name="width">Channels C, at least 1.</param>
    /// <param name="options">The modulation; null: two levels of sides 3 and 5.</param>
    /// <param name="feedForwardRatio">Hidden width of the perceptron over C; the product is truncated.</param>
    /// <param name="postNorm">Whether branches are normalised after, not before.</param>
    /// <param name="layerScale">Initial value of the learned factors; null: none.</param>
    /// <param name="dropPath">Probability of leaving a sample's branch out in training.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public FocalNetBlock(int width, FocalModulationOptions? options = null, double feedForwardRatio = 4, bool postNorm = false, double? layerScale = null, double dropPath = 0)
        : base(nameof(FocalNetBlock))
    {
        (_width, _postNorm) = (width, postNorm);
        norm1 = nn.LayerNorm(width);
        modulation = new(width, options);
        norm2 = nn.LayerNorm(width);
        mlp = new(width, (long)(width * feedForwardRatio));
        gamma_1 = layerScale is { } first ? Parameters.Make([width], tensor => tensor.fill_(first)) : null;
        gamma_2 = layerScale is { } second ? Parameters.Make([width], tensor => tensor.fill_(second)) : null;
        _drop = new(dropPath);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The mixer.</summary>
    public FocalModulation Modulation => modulation;

    /// <summary>The block's output.</summary>
    /// <param name="tokens"><c>[B, height x width, C]</c>, row by row.</param>
    /// <param name="height">Rows of the map.</param>
    /// <param name="width">Columns of the map.</param>
    /// <returns><c>[B, height x width, C]</c>.</returns>
    /// <exception cref="ArgumentException">The tokens have another shape.</exception>
    public override Tensor forward(Tensor tokens, long height, long width)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 3 || tokens.shape[1] != height * width || tokens.shape[2] != _width)
        {
            throw new ArgumentException($"A map of {height} x {width} positions has tokens [batch, {height * width}, {_width}], not [{string.Join(", ", tokens.shape)}].", nameof(tokens));
        }

        using var scope = NewDisposeScope();
        return Map(tokens.reshape(tokens.shape[0], height, width, _width)).reshape(tokens.shape).MoveToOuterDisposeScope();
    }

    internal Tensor Map(Tensor map)
    {
        using var scope = NewDisposeScope();
        var mixed = _postNorm ? norm1.forward(modulation.forward(map)) : modulation.forward(norm1.forward(map));
        map = map + _drop.forward(Scaled(mixed, gamma_1));
        var fed = _postNorm ? norm2.forward(mlp.forward(map)) : mlp.forward(norm2.forward(map));
        return (map + _drop.forward(Scaled(fed, gamma_2))).MoveToOuterDisposeScope();
    }

    /// <summary>The modulator <c>[B, C, H, W]</c> for a map <c>[B, H, W, C]</c>.</summary>
    internal Tensor ModulatorOf(Tensor map)
    {
        using var scope = NewDisposeScope();
        return modulation.WithContext(_postNorm ? map : norm1.forward(map)).Context.Modulator.MoveToOuterDisposeScope();
    }

    private static Tensor Scaled(Tensor branch, Parameter? factors) => factors is null ? branch : branch * factors;
}
