using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of a <see cref="MambaOut"/>.</summary>
public sealed record MambaOutOptions
{
    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Blocks of every stage; the first stage stands on a grid of a quarter of the picture's side, each further one on half of that before.</summary>
    public required IReadOnlyList<int> Depths { get; init; }

    /// <summary>Width of every stage; the first is even.</summary>
    public required IReadOnlyList<int> Widths { get; init; }

    /// <summary>Hidden channels of a block over its width.</summary>
    public double ExpansionRatio { get; init; } = 8 / 3.0;

    /// <summary>Convolved channels of a block over its width.</summary>
    public double ConvRatio { get; init; } = 1;

    /// <summary>Side of the filters.</summary>
    public int KernelSize { get; init; } = 7;

    /// <summary>Probability of dropping the last block's branch in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }

    /// <summary>Makes the state-space model of every block, given its channels (see <see cref="GatedCnnBlock"/>); null: none, as in the paper.</summary>
    public Func<int, nn.Module<Tensor, Tensor>>? Scan { get; init; }

    /// <summary>mambaout_femto, 7.3 M parameters.</summary>
    public static MambaOutOptions Femto { get; } = new() { Depths = [3, 3, 9, 3], Widths = [48, 96, 192, 288], DropPath = 0.025 };

    /// <summary>mambaout_kobe, 9.1 M parameters.</summary>
    public static MambaOutOptions Kobe { get; } = Femto with { Depths = [3, 3, 15, 3] };

    /// <summary>mambaout_tiny, 26.5 M parameters.</summary>
    public static MambaOutOptions Tiny { get; } = new() { Depths = [3, 3, 9, 3], Widths = [96, 192, 384, 576], DropPath = 0.2 };

    /// <summary>mambaout_small, 48.5 M parameters.</summary>
    public static MambaOutOptions Small { get; } = Tiny with { Depths = [3, 4, 27, 3], DropPath = 0.4 };

    /// <summary>mambaout_base, 84.8 M parameters.</summary>
    public static MambaOutOptions Base { get; } = Small with { Widths = [128, 256, 512, 768], DropPath = 0.6 };
}

/// <summary>MambaOut (arXiv 2405.07992): stages of <see cref="GatedCnnBlock"/>, what visual Mamba models are without their state-space model. Parameter names are the authors':
/// <c>downsample_layers.0.conv1|norm1|conv2|norm2</c>, <c>downsample_layers.{i}.conv|norm</c>, <c>stages.{i}.{j}.norm|fc1|conv|fc2</c>, <c>norm</c>, <c>head.fc1|norm|fc2</c>.</summary>
public sealed class MambaOut : ImageClassifier
{
    private readonly ModuleList<nn.Module<Tensor, Tensor>> downsample_layers;
    private readonly ModuleList<Sequential> stages;
    private readonly LayerNorm norm;
    private readonly MambaOutHead head;

    /// <summary>Makes a model with fresh weights.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A number is out of range, or there are not as many widths as depths.</exception>
    public MambaOut(MambaOutOptions options)
        : base(nameof(MambaOut), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        if (options.Depths.Count == 0 || options.Depths.Count != options.Widths.Count || options.Depths.Any(depth => depth < 1) || options.Widths.Any(width => width < 2))
        {
            throw new ArgumentException(
                $"There must be as many depths as widths, depths from 1 and widths from 2, not {string.Join(", ", options.Depths)} and {string.Join(", ", options.Widths)}.", nameof(options));
        }

        Options = options;
        var drops = Layers.DropPath.Schedule(options.DropPath, options.Depths.Sum());
        downsample_layers = nn.ModuleList([.. options.Widths.Select((width, stage) =>
            stage == 0 ? (nn.Module<Tensor, Tensor>)new MambaOutStem(options.Channels, width) : new MambaOutDownsampling(options.Widths[stage - 1], width))]);
        stages = nn.ModuleList([.. options.Depths.Select((depth, stage) => nn.Sequential([.. Enumerable.Range(0, depth).Select(block =>
            (nn.Module<Tensor, Tensor>)new GatedCnnBlock(
                options.Widths[stage], options.ExpansionRatio, options.KernelSize, options.ConvRatio, drops[options.Depths.Take(stage).Sum() + block], options.Scan))]))]);
        norm = nn.LayerNorm(options.Widths[^1], 1e-6);
        head = new(options.Widths[^1], options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Initialize();
    }

    /// <summary>The shape.</summary>
    public MambaOutOptions Options { get; }

    /// <summary>The model with widths 48 to 288 and 18 blocks.</summary>
    public static MambaOut Femto(int classes = 1000) => new(MambaOutOptions.Femto with { Classes = classes });

    /// <summary>The model with widths 48 to 288 and 24 blocks.</summary>
    public static MambaOut Kobe(int classes = 1000) => new(MambaOutOptions.Kobe with { Classes = classes });

    /// <summary>The model with widths 96 to 576 and 18 blocks.</summary>
    public static MambaOut Tiny(int classes = 1000) => new(MambaOutOptions.Tiny with { Classes = classes });

    /// <summary>The model with widths 96 to 576 and 37 blocks.</summary>
    public static MambaOut Small(int classes = 1000) => new(MambaOutOptions.Small with { Classes = classes });

    /// <summary>The model with widths 128 to 768 and 37 blocks.</summary>
    public static MambaOut Base(int classes = 1000) => new(MambaOutOptions.Base with { Classes = classes });

    /// <inheritdoc/>
    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return head.forward(PooledFeatures(images)).MoveToOuterDisposeScope();
    }

    /// <summary>What the head reads: the normalised mean over the last map.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>.</param>
    /// <returns><c>[B, C']</c>.</returns>
    public Tensor PooledFeatures(Tensor images)
    {
        using var scope = NewDisposeScope();
        return norm.forward(Map(images).mean([1L, 2L])).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor Features(Tensor images)
    {
        using var scope = NewDisposeScope();
        return Map(images).permute(0, 3, 1, 2).MoveToOuterDisposeScope();
    }

    // [B, H, W, C].
    private Tensor Map(Tensor images)
    {
        CheckImages(images);
        var map = images.permute(0, 2, 3, 1);
        for (var stage = 0; stage < stages.Count; stage++)
        {
            map = stages[stage].forward(downsample_layers[stage].forward(map));
        }

        return map;
    }

    // A state-space model keeps its own initialisation: its step sizes and decays are chosen, not drawn.
    private void Initialize()
    {
        foreach (var (name, module) in named_modules())
        {
            if (module is Linear or Conv2d && !name.Contains(".ssm.", StringComparison.Ordinal))
            {
                Parameters.InitializeNormal(module, convolutions: true);
            }
        }
    }
}

/// <summary>The stem: two convolutions of stride 2. Channels last on both sides.</summary>
internal sealed class MambaOutStem : nn.Module<Tensor, Tensor>
{
    private readonly Conv2d conv1;
    private readonly LayerNorm norm1;
    private readonly Conv2d conv2;
    private readonly LayerNorm norm2;

    public MambaOutStem(int channels, int width)
        : base(nameof(MambaOutStem))
    {
        conv1 = nn.Conv2d(channels, width / 2, 3, stride: 2, padding: 1);
        norm1 = nn.LayerNorm(width / 2, 1e-6);
        conv2 = nn.Conv2d(width / 2, width, 3, stride: 2, padding: 1);
        norm2 = nn.LayerNorm(width, 1e-6);
        RegisterComponents();
    }

    public override Tensor forward(Tensor map)
    {
        using var scope = NewDisposeScope();
        var half = nn.functional.gelu(norm1.forward(conv1.forward(map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)));
        return norm2.forward(conv2.forward(half.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).MoveToOuterDisposeScope();
    }
}

/// <summary>The step between stages: a convolution of stride 2. Channels last on both sides.</summary>
internal sealed class MambaOutDownsampling : nn.Module<Tensor, Tensor>
{
    private readonly Conv2d conv;
    private readonly LayerNorm norm;

    public MambaOutDownsampling(int channels, int width)
        : base(nameof(MambaOutDownsampling))
    {
        conv = nn.Conv2d(channels, width, 3, stride: 2, padding: 1);
        norm = nn.LayerNorm(width, 1e-6);
        RegisterComponents();
    }

    public override Tensor forward(Tensor map)
    {
        using var scope = NewDisposeScope();
        return norm.forward(conv.forward(map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).MoveToOuterDisposeScope();
    }
}

/// <summary>The head: a perceptron with a norm between its layers.</summary>
internal sealed class MambaOutHead : nn.Module<Tensor, Tensor>
{
    private readonly Linear fc1;
    private readonly LayerNorm norm;
    private readonly Linear fc2;

    public MambaOutHead(int width, int classes)
        : base(nameof(MambaOutHead))
    {
        fc1 = nn.Linear(width, 4 * width);
        norm = nn.LayerNorm(4 * width, 1e-6);
        fc2 = nn.Linear(4 * width, classes);
        RegisterComponents();
    }

    public override Tensor forward(Tensor features)
    {
        using var scope = NewDisposeScope();
        return fc2.forward(norm.forward(nn.functional.gelu(fc1.forward(features)))).MoveToOuterDisposeScope();
    }
}
