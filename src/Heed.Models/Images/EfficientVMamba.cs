using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>A block of EfficientVMamba (arXiv 2403.09977, section 3.3): <c>x + g(SS2D(n)) + g(conv(n))</c> with <c>n = norm(x)</c>, an <see cref="SS2D"/> over atrous routes, a convolutional branch, and one gate g over channels for
/// both; then a perceptron where there is one. Parameter names <c>norm</c>, <c>op</c>, <c>conv_branch</c>, <c>se</c>, <c>norm2</c>, <c>mlp</c>.</summary>
public sealed class EfficientVssBlock : nn.Module<Tensor, Tensor>
{
    private readonly LayerNorm norm;
    private readonly SS2D op;
    private readonly ModuleList<nn.Module<Tensor, Tensor>> conv_branch;
    private readonly ChannelGate se;
    private readonly LayerNorm? norm2;
    private readonly GeluFeedForward? mlp;
    private readonly DropPath _drop;

    /// <summary>Makes a block.</summary>
    /// <param name="width">Width M of a token, at least 8.</param>
    /// <param name="states">Number N of states per channel.</param>
    /// <param name="feedForwardRatio">Hidden width of the perceptron over the width; 0: none, as in the published models.</param>
    /// <param name="dropPath">Probability of dropping the branches in training.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is out of range.</exception>
    public EfficientVssBlock(int width, int states = 16, double feedForwardRatio = 0, double dropPath = 0)
        : base(nameof(EfficientVssBlock))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 8);
        ArgumentOutOfRangeException.ThrowIfNegative(feedForwardRatio);
        norm = nn.LayerNorm(width);
        op = new(new() { Width = width, States = states, Pattern = ScanPattern.Atrous });
        conv_branch = nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Conv2d(width, width, 3, padding: 1, groups: width), nn.BatchNorm2d(width), nn.Identity(), nn.Conv2d(width, width, 1));
        se = new(width);
        if (feedForwardRatio > 0)
        {
            norm2 = nn.LayerNorm(width);
            mlp = new(width, (long)(width * feedForwardRatio));
        }

        _drop = new(dropPath);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>Computes the block.</summary>
    /// <param name="input"><c>[B, H, W, M]</c>.</param>
    /// <returns>The same shape.</returns>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var normal = norm.forward(input);
        var depthwise = (Conv2d)conv_branch[0];
        var near = conv_branch[1].forward(DepthwiseConvolution.Apply(normal.permute(0, 3, 1, 2), depthwise.weight, depthwise.bias));
        near = conv_branch[3].forward(nn.functional.gelu(near)).permute(0, 2, 3, 1);
        var map = input + _drop.forward(se.forward(op.forward(normal)) + se.forward(near));
        return (mlp is null ? map : map + _drop.forward(mlp.forward(norm2!.forward(map)))).MoveToOuterDisposeScope();
    }
}

/// <summary>The shape of an <see cref="EfficientVMamba"/>.</summary>
public sealed record EfficientVMambaOptions
{
    /// <summary>Blocks of each of four stages.</summary>
    public required IReadOnlyList<int> Depths { get; init; }

    /// <summary>Width of the first stage; it doubles from stage to stage.</summary>
    public required int Width { get; init; }

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Side of a patch.</summary>
    public int PatchSize { get; init; } = 4;

    /// <summary>States N of every channel of the scans.</summary>
    public int States { get; init; } = 16;

    /// <summary>How many stages, from the first on, scan; the others are inverted residuals.</summary>
    public int ScannedStages { get; init; } = 2;

    /// <summary>Probability of dropping the last block's branches in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }
}

/// <summary>EfficientVMamba (arXiv 2403.09977): stages of <see cref="EfficientVssBlock"/>s, then stages of inverted residuals with squeeze and excitation, for pictures of any size. Parameter names are those of TerryPei/EfficientVMamba.</summary>
public sealed class EfficientVMamba : ScanningClassifier
{
    private readonly EfficientVMambaOptions _options;
    private readonly ModuleList<nn.Module<Tensor, Tensor>> patch_embed;
    private readonly ModuleList<nn.Module<Tensor, Tensor>> layers;
    private readonly ClassifierHead classifier;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">There is no stage, or a size does not suit.</exception>
    public EfficientVMamba(EfficientVMambaOptions options)
        : base(nameof(EfficientVMamba), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        if (options.Depths.Count == 0 || options.Depths.Any(depth => depth < 1) || options.Width < 8 || options.PatchSize < 1)
        {
            throw new ArgumentException(
                $"EfficientVMamba needs a depth of at least 1 for each stage, a width of at least 8 and a patch of at least 1, not {string.Join(", ", options.Depths)}, {options.Width} and {options.PatchSize}.", nameof(options));
        }

        _options = options;
        patch_embed = nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Conv2d(options.Channels, options.Width, options.PatchSize, stride: options.PatchSize), nn.Identity(), nn.LayerNorm(options.Width));
        var drops = Layers.DropPath.Schedule(options.DropPath, options.Depths.Sum());
        layers = nn.ModuleList([.. options.Depths.Select((depth, stage) =>
        {
            var width = options.Width << stage;
            nn.Module<Tensor, Tensor> downsample = stage + 1 < options.Depths.Count ? new PatchMerging(width, 2 * width) : nn.Identity();
            var own = drops.Skip(options.Depths.Take(stage).Sum()).Take(depth);
            return stage < options.ScannedStages
                ? (nn.Module<Tensor, Tensor>)new ScanStage([.. own.Select(drop => new EfficientVssBlock(width, options.States, dropPath: drop))], downsample)
                : new ResidualStage([.. own.Select(drop => new InvertedResidual(width, drop))], downsample);
        })]);
        classifier = new(options.Width << (options.Depths.Count - 1), options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(this, false);
    }

    /// <summary>The shape.</summary>
    public EfficientVMambaOptions Options => _options;

    /// <summary>EfficientVMamba-T: 6 million parameters, 76.5 on ImageNet-1K in the authors' hands.</summary>
    /// <param name="classes">Number of classes.</param>
    public static EfficientVMamba Tiny(int classes = 1000) => new(new() { Depths = [2, 2, 4, 2], Width = 48, Classes = classes, DropPath = 0.2 });

    /// <summary>EfficientVMamba-S: 11 million parameters, 78.7.</summary>
    /// <param name="classes">Number of classes.</param>
    public static EfficientVMamba Small(int classes = 1000) => new(new() { Depths = [2, 2, 4, 2], Width = 64, Classes = classes, DropPath = 0.2 });

    /// <summary>EfficientVMamba-B: 33 million parameters, 81.8.</summary>
    /// <param name="classes">Number of classes.</param>
    public static EfficientVMamba Base(int classes = 1000) => new(new() { Depths = [2, 2, 9, 2], Width = 96, Classes = classes, DropPath = 0.2 });

    private protected override ClassifierHead Head => classifier;

    private protected override IEnumerable<nn.Module<Tensor, Tensor>> Stages => layers;

    private protected override Tensor Embed(Tensor images) => patch_embed[2].forward(ChannelsLast.Convolve(patch_embed[0], images));

    /// <summary>Inverted residuals and what halves their map, numbered as the authors number them: 1 to n, and n + 2.</summary>
    private sealed class ResidualStage : nn.Module<Tensor, Tensor>
    {
        private readonly InvertedResidual[] _blocks;
        private readonly nn.Module<Tensor, Tensor> _downsample;

        public ResidualStage(InvertedResidual[] blocks, nn.Module<Tensor, Tensor> downsample)
            : base(nameof(ResidualStage))
        {
            (_blocks, _downsample) = (blocks, downsample);
            for (var block = 0; block < blocks.Length; block++)
            {
                register_module($"{block + 1}", blocks[block]);
            }

            register_module($"{blocks.Length + 2}", downsample);
        }

        public override Tensor forward(Tensor map)
        {
            using var scope = NewDisposeScope();
            map = map.permute(0, 3, 1, 2);
            foreach (var block in _blocks)
            {
                map = block.forward(map);
            }

            return _downsample.forward(map.permute(0, 2, 3, 1)).alias().MoveToOuterDisposeScope();
        }
    }

    /// <summary>Widen, convolve each channel, weigh channels, narrow (arXiv 1801.04381 and 1709.01507).</summary>
    private sealed class InvertedResidual : nn.Module<Tensor, Tensor>
    {
        private const int Widening = 4;
        private const int Reduction = 8;

        private readonly ModuleList<nn.Module<Tensor, Tensor>> conv_pw;
        private readonly ModuleList<nn.Module<Tensor, Tensor>> conv_dw;
        private readonly SqueezeExcitation se;
        private readonly ModuleList<nn.Module<Tensor, Tensor>> conv_pw2;
        private readonly DropPath _drop;

        public InvertedResidual(int width, double dropPath)
            : base(nameof(InvertedResidual))
        {
            var wide = Widening * width;
            conv_pw = nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Conv2d(width, wide, 1, bias: false), nn.BatchNorm2d(wide));
            conv_dw = nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Conv2d(wide, wide, 3, padding: 1, groups: wide, bias: false), nn.BatchNorm2d(wide));
            se = new(wide, wide / Reduction);
            conv_pw2 = nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Conv2d(wide, width, 1, bias: false), nn.BatchNorm2d(width));
            _drop = new(dropPath);
            RegisterComponents();
            Parameters.Keep(this);
        }

        // [B, C, H, W]
        public override Tensor forward(Tensor map)
        {
            using var scope = NewDisposeScope();
            var inner = nn.functional.relu(conv_pw[1].forward(conv_pw[0].forward(map)));
            inner = nn.functional.relu(conv_dw[1].forward(DepthwiseConvolution.Apply(inner, ((Conv2d)conv_dw[0]).weight)));
            inner = conv_pw2[1].forward(conv_pw2[0].forward(se.forward(inner)));
            return (map + _drop.forward(inner)).MoveToOuterDisposeScope();
        }
    }

    private sealed class SqueezeExcitation : nn.Module<Tensor, Tensor>
    {
        private readonly Conv2d conv_reduce;
        private readonly Conv2d conv_expand;

        public SqueezeExcitation(int width, int hidden)
            : base(nameof(SqueezeExcitation))
        {
            conv_reduce = nn.Conv2d(width, hidden, 1);
            conv_expand = nn.Conv2d(hidden, width, 1);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor map)
        {
            using var scope = NewDisposeScope();
            var whole = map.mean([2L, 3L], keepdim: true);
            return (map * conv_expand.forward(nn.functional.relu(conv_reduce.forward(whole))).sigmoid()).MoveToOuterDisposeScope();
        }
    }
}
