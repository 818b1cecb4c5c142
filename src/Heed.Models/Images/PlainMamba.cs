using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of a <see cref="PlainMamba"/>.</summary>
public sealed record PlainMambaModelOptions
{
    /// <summary>Side of the (square) pictures.</summary>
    public int ImageSize { get; init; } = 224;

    /// <summary>Side of a patch, even: a convolution of stride 2 comes first. Pictures of other sides are padded with zeros at the bottom and at the right.</summary>
    public int PatchSize { get; init; } = 16;

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Width of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Number of blocks.</summary>
    public required int Depth { get; init; }

    /// <summary>3 x 3 convolutions after the first one.</summary>
    public int StemConvolutions { get; init; } = 2;

    /// <summary>Channels of the stem; the published models have 64.</summary>
    public int StemWidth { get; init; } = 64;

    /// <summary>Blocks that end in a depth-wise 3 x 3 convolution with batch norm and GELU.</summary>
    public IReadOnlyList<int> ConvolvedBlocks { get; init; } = [];

    /// <summary>States N of every channel of the scans.</summary>
    public int States { get; init; } = 16;

    /// <summary>Side of the mixers' convolution, odd.</summary>
    public int Convolution { get; init; } = 7;

    /// <summary>Whether the mixers do what the paper says instead of what the authors' code does (<see cref="PlainMambaOptions.AsPaper"/>).</summary>
    public bool AsPaper { get; init; }

    /// <summary>Probability of dropping the last block's branch in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }

    /// <summary>Positions along a side.</summary>
    public int Grid => (((ImageSize + 1) / 2) + (PatchSize / 2) - 1) / (PatchSize / 2);
}

/// <summary>PlainMamba (arXiv 2403.17695): a convolutional stem, learned positions, and a stack of <see cref="PlainMambaMixer"/>s without perceptrons or pyramid; the mean over the tokens goes to the head. Parameter names are the
/// authors' without the prefixes of their framework: <c>patch_embed.stem|convs|projection</c>, <c>pos_embed</c>, <c>layers.{i}.norm|mamba|dw</c>, <c>ln1</c>, <c>head</c>.</summary>
public sealed class PlainMamba : ImageClassifier
{
    private readonly PlainMambaModelOptions _options;
    private readonly PlainMambaStem patch_embed;
    private readonly Parameter pos_embed;
    private readonly ModuleList<PlainMambaBlock> layers;
    private readonly LayerNorm ln1;
    private readonly Linear head;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A size does not suit.</exception>
    public PlainMamba(PlainMambaModelOptions options)
        : base(nameof(PlainMamba), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        if (options.ImageSize < 1 || options.PatchSize < 2 || options.PatchSize % 2 != 0 || options.Width < 1 || options.Depth < 1 || options.StemConvolutions < 0 || options.StemWidth < 1)
        {
            throw new ArgumentException(
                $"PlainMamba needs pictures, a width, a depth and a stem of at least 1 and an even patch, not {options.ImageSize}, {options.Width}, {options.Depth}, {options.StemWidth} and {options.PatchSize}.", nameof(options));
        }

        _options = options;
        patch_embed = new(options);
        pos_embed = Parameters.Make([1, options.Grid * options.Grid, options.Width], tensor => Parameters.DrawNormal(tensor));
        var drops = Layers.DropPath.Schedule(options.DropPath, options.Depth);
        layers = nn.ModuleList([.. Enumerable.Range(0, options.Depth).Select(layer => new PlainMambaBlock(options, options.ConvolvedBlocks.Contains(layer), drops[layer]))]);
        ln1 = nn.LayerNorm(options.Width, 1e-6);
        head = nn.Linear(options.Width, options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(head, false);
    }

    /// <summary>The shape.</summary>
    public PlainMambaModelOptions Options => _options;

    /// <summary>PlainMamba-L1: 7.3 million parameters, 77.9 on ImageNet-1K in the authors' hands.</summary>
    /// <param name="classes">Number of classes.</param>
    public static PlainMamba L1(int classes = 1000) => new(new() { Width = 192, Depth = 24, StemConvolutions = 1, ConvolvedBlocks = [0], Classes = classes, DropPath = 0.2 });

    /// <summary>PlainMamba-L2: 25.7 million parameters, 81.6.</summary>
    /// <param name="classes">Number of classes.</param>
    public static PlainMamba L2(int classes = 1000) => new(new() { Width = 384, Depth = 24, Classes = classes, DropPath = 0.4 });

    /// <summary>PlainMamba-L3: 50.5 million parameters, 82.3.</summary>
    /// <param name="classes">Number of classes.</param>
    public static PlainMamba L3(int classes = 1000) => new(new() { Width = 448, Depth = 36, Classes = classes, DropPath = 0.5 });

    /// <inheritdoc/>
    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return head.forward(Tokens(images).mean([1L])).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor Features(Tensor images)
    {
        using var scope = NewDisposeScope();
        return Tokens(images).transpose(1, 2).reshape(images.shape[0], _options.Width, _options.Grid, _options.Grid).MoveToOuterDisposeScope();
    }

    /// <summary>Knows the prefixes of the authors' framework: <c>backbone.</c> and <c>head.fc.</c>.</summary>
    /// <inheritdoc/>
    public override string? NameOf(string stored)
    {
        ArgumentNullException.ThrowIfNull(stored);
        const string Backbone = "backbone.", Head = "head.fc.";
        return stored.StartsWith(Backbone, StringComparison.Ordinal) ? stored[Backbone.Length..]
            : stored.StartsWith(Head, StringComparison.Ordinal) ? "head." + stored[Head.Length..]
            : stored;
    }

    private Tensor Tokens(Tensor images)
    {
        CheckImages(images);
        if (images.shape[2] != _options.ImageSize || images.shape[3] != _options.ImageSize)
        {
            throw new ArgumentException($"The model reads pictures of {_options.ImageSize} x {_options.ImageSize} pixels, not {images.shape[2]} x {images.shape[3]}: resize them.", nameof(images));
        }

        var tokens = patch_embed.forward(images) + pos_embed;
        foreach (var layer in layers)
        {
            tokens = layer.forward(tokens);
        }

        return ln1.forward(tokens);
    }

    /// <summary>A convolution of stride 2, some more, and one that cuts what came out into patches of half the side.</summary>
    private sealed class PlainMambaStem : nn.Module<Tensor, Tensor>
    {
        private readonly int _patch;
        private readonly Sequential stem;
        private readonly Sequential? convs;
        private readonly Conv2d projection;

        public PlainMambaStem(PlainMambaModelOptions options)
            : base(nameof(PlainMambaStem))
        {
            _patch = options.PatchSize / 2;
            var width = options.StemWidth;
            stem = nn.Sequential(nn.Conv2d(options.Channels, width, 7, stride: 2, padding: 3, bias: false), nn.BatchNorm2d(width), nn.ReLU());
            convs = options.StemConvolutions == 0 ? null : nn.Sequential([.. Enumerable.Range(0, options.StemConvolutions).SelectMany(_ =>
                new nn.Module<Tensor, Tensor>[] { nn.Conv2d(width, width, 3, padding: 1, bias: false), nn.BatchNorm2d(width), nn.ReLU() })]);
            projection = nn.Conv2d(width, options.Width, _patch, stride: _patch);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor images)
        {
            using var scope = NewDisposeScope();
            var map = stem.forward(images);
            map = convs is null ? map : convs.forward(map);
            var (down, right) = (Missing(map.shape[2]), Missing(map.shape[3]));
            map = down + right > 0 ? nn.functional.pad(map, [0, right, 0, down]) : map;
            return projection.forward(map).flatten(2).transpose(1, 2).MoveToOuterDisposeScope();
        }

        private long Missing(long side) => ((side + _patch - 1) / _patch * _patch) - side;
    }

    private sealed class PlainMambaBlock : nn.Module<Tensor, Tensor>
    {
        private readonly int _grid;
        private readonly LayerNorm norm;
        private readonly PlainMambaMixer mamba;
        private readonly ModuleList<nn.Module<Tensor, Tensor>>? dw;
        private readonly DropPath _drop;

        public PlainMambaBlock(PlainMambaModelOptions options, bool isConvolved, double dropPath)
            : base(nameof(PlainMambaBlock))
        {
            _grid = options.Grid;
            norm = nn.LayerNorm(options.Width);
            mamba = new(new()
            {
                Width = options.Width, GridHeight = options.Grid, GridWidth = options.Grid, States = options.States, Convolution = options.Convolution, AsPaper = options.AsPaper,
            });
            dw = isConvolved ? nn.ModuleList<nn.Module<Tensor, Tensor>>(nn.Conv2d(options.Width, options.Width, 3, padding: 1, groups: options.Width, bias: false), nn.BatchNorm2d(options.Width)) : null;
            _drop = new(dropPath);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor tokens)
        {
            using var scope = NewDisposeScope();
            tokens = tokens + _drop.forward(mamba.forward(norm.forward(tokens)));
            if (dw is not null)
            {
                var map = tokens.transpose(1, 2).unflatten(2, [_grid, _grid]);
                map = dw[1].forward(DepthwiseConvolution.Apply(map, ((Conv2d)dw[0]).weight));
                tokens = nn.functional.gelu(map).flatten(2).transpose(1, 2);
            }

            return tokens.alias().MoveToOuterDisposeScope();
        }
    }
}
