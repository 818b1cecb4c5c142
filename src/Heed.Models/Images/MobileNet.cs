using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>Which MobileNet.</summary>
public enum MobileNetVersion
{
    /// <summary>Depth-wise separable layers one after another (arXiv 1704.04861).</summary>
    V1,

    /// <summary>Inverted residual blocks (arXiv 1801.04381).</summary>
    V2,
}

/// <summary>A row of blocks of a <see cref="MobileNet"/>.</summary>
/// <param name="Expansion">Hidden channels over input channels; V1 has none and does not read it.</param>
/// <param name="Channels">Channels of the output.</param>
/// <param name="Blocks">Number of blocks.</param>
/// <param name="Stride">Stride of the first block.</param>
public readonly record struct MobileNetStage(int Expansion, int Channels, int Blocks, int Stride);

/// <summary>The shape of a <see cref="MobileNet"/>.</summary>
public sealed record MobileNetOptions
{
    /// <summary>Which kind of block.</summary>
    public required MobileNetVersion Version { get; init; }

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Channels after the first convolution.</summary>
    public int Stem { get; init; } = 32;

    /// <summary>Stride of the first convolution.</summary>
    public int StemStride { get; init; } = 2;

    /// <summary>The blocks.</summary>
    public required IReadOnlyList<MobileNetStage> Stages { get; init; }

    /// <summary>Channels of the last 1 x 1 convolution; 0: there is none.</summary>
    public int Last { get; init; }

    /// <summary>Share of features dropped before the classifier in training.</summary>
    public double Dropout { get; init; }

    /// <summary>Numbers of the blocks, counted from 1, in whose place subspace attention stands. They must keep size and channels.</summary>
    public IReadOnlyList<int> Replace { get; init; } = [];

    /// <summary>Numbers of the blocks, counted from 1, behind which subspace attention stands.</summary>
    public IReadOnlyList<int> Insert { get; init; } = [];

    /// <summary>Subspaces of every <see cref="SubspaceAttention"/>.</summary>
    public int Splits { get; init; } = 4;
}

/// <summary>
/// MobileNet, version 1 or 2, with subspace attention (ULSAM, arXiv 2006.15102) behind or in place of any block. Parameter names of version 2 are torchvision's (<c>features.{i}.conv...</c>, <c>classifier.1</c>); version 1 has the
/// same outer names with <c>features.{i}.{0|1}.{0|1}</c> for the two convolutions of a layer and their norms. A replaced block keeps its number: <c>features.{i}.subspaces...</c>; an inserted one is
/// <c>attention.{i}.subspaces...</c>, after the number of the block before it.
/// </summary>
public sealed class MobileNet : ImageClassifier
{
    private readonly Sequential features;
    private readonly ModuleDict<SubspaceAttention> attention;
    private readonly Sequential classifier;
    private readonly nn.Module<Tensor, Tensor>[] _layers;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A replaced block changes size or channels, a number names no block, or the subspaces do not divide the channels.</exception>
    public MobileNet(MobileNetOptions options)
        : base(nameof(MobileNet), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        Options = options;
        var blocks = Blocks(options);
        if (options.Replace.Concat(options.Insert).Cast<int?>().FirstOrDefault(number => number < 1 || number > blocks.Count) is { } wrong)
        {
            throw new ArgumentException($"There is no block {wrong}: they are numbered 1 to {blocks.Count}.", nameof(options));
        }

        var layers = new List<nn.Module<Tensor, Tensor>> { ConvolutionNorm(options.Channels, options.Stem, 3, options.StemStride, options.Version) };
        foreach (var (number, block) in blocks.Index())
        {
            if (!options.Replace.Contains(number + 1))
            {
                layers.Add(options.Version == MobileNetVersion.V1 ? Separable(block) : new InvertedResidual(block));
                continue;
            }

            if (block.Input != block.Output || block.Stride != 1)
            {
                throw new ArgumentException(
                    $"Subspace attention keeps size and channels, but block {number + 1} goes from {block.Input} to {block.Output} channels with stride {block.Stride}: replace another, or insert behind it.", nameof(options));
            }

            layers.Add(new SubspaceAttention(block.Output, options.Splits));
        }

        var width = blocks[^1].Output;
        if (options.Last > 0)
        {
            layers.Add(ConvolutionNorm(width, options.Last, 1, 1, options.Version));
            width = options.Last;
        }

        _layers = [.. layers];
        features = nn.Sequential(_layers);
        attention = nn.ModuleDict([.. options.Insert.Order().Select(number =>
            ($"{number}", new SubspaceAttention(blocks[number - 1].Output, options.Splits)))]);
        classifier = nn.Sequential(nn.Dropout(options.Dropout), nn.Linear(width, options.Classes));
        RegisterComponents();
        Initialize();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public MobileNetOptions Options { get; }

    /// <summary>MobileNet-V1 at full width: 4.2 M parameters, 569 M multiply-adds on 224 x 224 pixels.</summary>
    public static MobileNetOptions V1Options { get; } = new()
    {
        Version = MobileNetVersion.V1, Stages = [new(1, 64, 1, 1), new(1, 128, 2, 2), new(1, 256, 2, 2), new(1, 512, 6, 2), new(1, 1024, 2, 2)],
    };

    /// <summary>MobileNet-V2 at full width: 3.5 M parameters (papers say 3.4 M), 300 M multiply-adds on 224 x 224 pixels.</summary>
    public static MobileNetOptions V2Options { get; } = new()
    {
        Version = MobileNetVersion.V2, Stages = [new(1, 16, 1, 1), new(6, 24, 2, 2), new(6, 32, 3, 2), new(6, 64, 4, 2), new(6, 96, 3, 1), new(6, 160, 3, 2), new(6, 320, 1, 1)], Last = 1280, Dropout = 0.2,
    };

    /// <summary>The placement whose cost is that of ULSAM's ImageNet row, 2.96 M parameters and 262 M multiply-adds: one block of 96 channels and one of 160 replaced. The paper does not say which: of all choices of
    /// blocks that can be replaced, only one of each of these widths gives both figures.</summary>
    public static MobileNetOptions UlsamImageNet { get; } = V2Options with { Replace = [13, 16] };

    /// <summary>The placement whose cost is that of ULSAM's fine-grained rows, 2.54 M parameters and 224 M multiply-adds: both blocks of 96 channels and both of 160 replaced.</summary>
    public static MobileNetOptions UlsamFineGrained { get; } = V2Options with { Replace = [12, 13, 15, 16] };

    /// <inheritdoc/>
    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return classifier.forward(Features(images).mean([2L, 3L])).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor Features(Tensor images)
    {
        CheckImages(images);
        using var scope = NewDisposeScope();
        var x = images;
        for (var i = 0; i < _layers.Length; i++)
        {
            x = _layers[i].forward(x);
            if (Options.Insert.Contains(i))
            {
                x = attention[$"{i}"].forward(x);
            }
        }

        return x.MoveToOuterDisposeScope();
    }

    /// <summary>Multiply-adds of a forward pass as the papers count them: those of convolutions and the classifier; norms, activations, pooling and softmax are not counted.</summary>
    /// <param name="options">The model's shape.</param>
    /// <param name="side">Side of the picture in pixels.</param>
    public static long MultiplyAdds(MobileNetOptions options, int side)
    {
        ArgumentNullException.ThrowIfNull(options);
        var blocks = Blocks(options);
        long here = Halved(side, options.StemStride);
        var sum = here * here * 9 * options.Channels * options.Stem;
        foreach (var (number, block) in blocks.Index())
        {
            var next = Halved(here, block.Stride);
            if (options.Replace.Contains(number + 1))
            {
                sum += Attention(next, block.Output);
            }
            else
            {
                var hidden = (long)block.Hidden;
                sum += (options.Version == MobileNetVersion.V2 && block.Expansion > 1 ? here * here * block.Input * hidden : 0) + (next * next * hidden * (9 + block.Output));
            }

            sum += options.Insert.Contains(number + 1) ? Attention(next, block.Output) : 0;
            here = next;
        }

        long width = blocks[^1].Output;
        return sum + (here * here * width * options.Last) + ((options.Last > 0 ? options.Last : width) * options.Classes);

        static long Halved(long length, int stride) => (length + stride - 1) / stride;
        // A factor per channel and one filter.
        static long Attention(long length, long channels) => length * length * 2 * channels;
    }

    private static List<Block> Blocks(MobileNetOptions options)
    {
        var (blocks, input) = (new List<Block>(), options.Stem);
        foreach (var stage in options.Stages)
        {
            for (var i = 0; i < stage.Blocks; i++)
            {
                blocks.Add(new(options.Version == MobileNetVersion.V1 ? 1 : stage.Expansion, input, stage.Channels, i == 0 ? stage.Stride : 1));
                input = stage.Channels;
            }
        }

        return blocks.Count > 0 ? blocks : throw new ArgumentException("A model needs at least one block.", nameof(options));
    }

    private static Sequential ConvolutionNorm(int input, int output, int size, int stride, MobileNetVersion version) => nn.Sequential(
        nn.Conv2d(input, output, size, stride: stride, padding: size / 2, bias: false), nn.BatchNorm2d(output), version == MobileNetVersion.V1 ? nn.ReLU() : nn.ReLU6());

    private static Sequential DepthwiseNorm(int channels, int stride, MobileNetVersion version) => nn.Sequential(
        Depthwise(channels, stride), nn.BatchNorm2d(channels), version == MobileNetVersion.V1 ? nn.ReLU() : nn.ReLU6());

    // The fast depth-wise convolution has stride 1; the few strided ones are libtorch's.
    private static nn.Module<Tensor, Tensor> Depthwise(int channels, int stride) => stride == 1
        ? new DepthwiseConvolution2d(channels, 3, hasBias: false)
        : nn.Conv2d(channels, channels, 3, stride: stride, padding: 1, groups: channels, bias: false);

    private static Sequential Separable(Block block) =>
        nn.Sequential(DepthwiseNorm(block.Input, block.Stride, MobileNetVersion.V1), ConvolutionNorm(block.Input, block.Output, 1, 1, MobileNetVersion.V1));

    // As torchvision does for both.
    private void Initialize()
    {
        using var quiet = no_grad();
        foreach (var part in modules())
        {
            switch (part)
            {
                case Conv2d { bias: null } convolution:
                    nn.init.kaiming_normal_(convolution.weight, mode: nn.init.FanInOut.FanOut, nonlinearity: nn.init.NonlinearityType.ReLU);
                    break;
                case DepthwiseConvolution2d depthwise:
                    nn.init.normal_(depthwise.Weight, 0, Math.Sqrt(2.0 / (9 * depthwise.Weight.shape[0])));
                    break;
                case Linear linear:
                    nn.init.normal_(linear.weight, 0, 0.01);
                    nn.init.zeros_(linear.bias!);
                    break;
            }
        }
    }

    private readonly record struct Block(int Expansion, int Input, int Output, int Stride)
    {
        public int Hidden => Input * Expansion;
    }

    /// <summary>Expansion, depth-wise convolution and linear projection, added to the input where both have the same shape.</summary>
    private sealed class InvertedResidual : nn.Module<Tensor, Tensor>
    {
        private readonly Sequential conv;
        private readonly bool _adds;

        public InvertedResidual(Block block)
            : base(nameof(InvertedResidual))
        {
            _adds = block.Stride == 1 && block.Input == block.Output;
            var parts = new List<nn.Module<Tensor, Tensor>>();
            if (block.Expansion > 1)
            {
                parts.Add(ConvolutionNorm(block.Input, block.Hidden, 1, 1, MobileNetVersion.V2));
            }

            parts.Add(DepthwiseNorm(block.Hidden, block.Stride, MobileNetVersion.V2));
            parts.Add(nn.Conv2d(block.Hidden, block.Output, 1, bias: false));
            parts.Add(nn.BatchNorm2d(block.Output));
            conv = nn.Sequential(parts);
            RegisterComponents();
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            var output = conv.forward(input);
            return (_adds ? input + output : output).MoveToOuterDisposeScope();
        }
    }
}
