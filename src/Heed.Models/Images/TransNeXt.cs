using Heed.Heads;
using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of a <see cref="TransNeXt"/>. Lists have one entry per stage.</summary>
public sealed record TransNeXtOptions
{
    /// <summary>Side of the (square) pictures.</summary>
    public int ImageSize { get; init; } = 224;

    /// <summary>Side of the pictures that the weights were trained on; 0: <see cref="ImageSize"/>. Relative positions are measured in it.</summary>
    public int TrainedSize { get; init; }

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Stride of the first patch embedding, whose kernel is twice that less one.</summary>
    public int PatchSize { get; init; } = 4;

    /// <summary>Width of the tokens.</summary>
    public required IReadOnlyList<int> Widths { get; init; }

    /// <summary>Number of heads.</summary>
    public required IReadOnlyList<int> Heads { get; init; }

    /// <summary>Number of blocks.</summary>
    public required IReadOnlyList<int> Depths { get; init; }

    /// <summary>Hidden width of the perceptrons over the width, before the two thirds of the gated form.</summary>
    public IReadOnlyList<double> FeedForwardRatios { get; init; } = [8, 8, 4, 4];

    /// <summary>How many times smaller the pooled picture is along each side; 1: attention over the whole picture.</summary>
    public IReadOnlyList<int> Reductions { get; init; } = [8, 4, 2, 1];

    /// <summary>How many heads every token uses; null: no router, as in TransNeXt itself.</summary>
    public IReadOnlyList<int>? SharedHeads { get; init; }

    /// <summary>How many of the other heads a token uses.</summary>
    public IReadOnlyList<int>? RoutedHeads { get; init; }

    /// <summary>Weight of the load-balance loss, the mean over the layers that have routed heads; it is attached to their outputs, so that a training loop need not add it.</summary>
    public double BalanceWeight { get; init; } = 0.01;

    /// <summary>Probability of dropping the last block's branches in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }
}

/// <summary>TransNeXt (arXiv 2311.17132) and MoH-ViT, which is TransNeXt with routed heads (arXiv 2410.11842): four stages of overlapping patch embedding, blocks of aggregated attention (attention over the whole picture in the last stage) and a convolutional
/// gated perceptron, and a norm; the mean of the tokens is classified. Parameter names are the authors'.</summary>
public sealed class TransNeXt : ImageClassifier
{
    private const double NormEpsilon = 1e-6;
    private readonly TransNeXtOptions _options;
    private readonly OverlappingPatchEmbedding[] _embeddings;
    private readonly ModuleList<TransNeXtBlock>[] _stages;
    private readonly LayerNorm[] _norms;
    private readonly Linear head;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">The lists are not of one length, the picture is too small, or counts of heads do not fit together.</exception>
    public TransNeXt(TransNeXtOptions options)
        : base(nameof(TransNeXt), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        _options = options;
        var stages = options.Widths.Count;
        int[] counts = [options.Heads.Count, options.Depths.Count, options.FeedForwardRatios.Count, options.Reductions.Count, options.SharedHeads?.Count ?? stages, options.RoutedHeads?.Count ?? stages];
        if (stages < 1 || counts.Any(count => count != stages))
        {
            throw new ArgumentException($"Every list of a TransNeXt has an entry per stage; there are {stages} widths, but lists of {string.Join(", ", counts.Where(count => count != stages).Distinct())} entries.", nameof(options));
        }

        var last = options.PatchSize * (1 << (stages - 1));
        if (options.PatchSize < 2 || options.ImageSize < last || options.ImageSize % last != 0)
        {
            throw new ArgumentException($"Pictures of side {options.ImageSize} must be a multiple of {last} pixels: the patch of {options.PatchSize} (at least 2), halved at every later stage.", nameof(options));
        }

        var routed = Enumerable.Range(0, stages).Sum(stage => options.RoutedHeads?[stage] > 0 ? options.Depths[stage] : 0);
        var drops = Layers.DropPath.Schedule(options.DropPath, options.Depths.Sum());
        (_embeddings, _stages, _norms) = (new OverlappingPatchEmbedding[stages], new ModuleList<TransNeXtBlock>[stages], new LayerNorm[stages]);
        for (int stage = 0, layer = 0; stage < stages; stage++)
        {
            var side = options.ImageSize / options.PatchSize >> stage;
            var trained = (options.TrainedSize > 0 ? options.TrainedSize : options.ImageSize) / options.PatchSize >> stage;
            var pooled = side / options.Reductions[stage];
            if (pooled < 1)
            {
                throw new ArgumentException($"A picture of {side} x {side} positions cannot be pooled {options.Reductions[stage]} times along each side: take a smaller reduction in stage {stage + 1}.", nameof(options));
            }

            var attention = new TransNeXtAttentionOptions
            {
                Width = options.Widths[stage],
                Heads = options.Heads[stage],
                Rows = side,
                Columns = side,
                SharedHeads = options.SharedHeads?[stage],
                RoutedHeads = options.RoutedHeads?[stage] ?? 0,
                Reduction = options.Reductions[stage],
                Positions = RelativePositions.Of(side, side, pooled, pooled, trained, trained),
                BalanceWeight = options.BalanceWeight / Math.Max(1, routed),
            };
            _embeddings[stage] = stage == 0
                ? new(options.Channels, options.Widths[0], (2 * options.PatchSize) - 1, options.PatchSize) : new(options.Widths[stage - 1], options.Widths[stage], 3, 2);
            var blocks = new List<TransNeXtBlock>();
            for (var block = 0; block < options.Depths[stage]; block++, layer++)
            {
                var site = new AttentionSite(layer, AttentionKind.Self, $"block{stage + 1}.{block}.attn");
                blocks.Add(new(attention, options.FeedForwardRatios[stage], NormEpsilon, drops[layer], site, Hooks));
            }

            _stages[stage] = nn.ModuleList([.. blocks]);
            _norms[stage] = nn.LayerNorm(options.Widths[stage], NormEpsilon);
            register_module($"patch_embed{stage + 1}", _embeddings[stage]);
            register_module($"block{stage + 1}", _stages[stage]);
            register_module($"norm{stage + 1}", _norms[stage]);
        }

        head = nn.Linear(options.Widths[^1], options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(head, false);
    }

    /// <summary>The shape.</summary>
    public TransNeXtOptions Options => _options;

    /// <summary>TransNeXt-Micro, 12.8 million parameters.</summary>
    public static TransNeXtOptions Micro => new() { Widths = [48, 96, 192, 384], Heads = [2, 4, 8, 16], Depths = [2, 2, 15, 2] };

    /// <summary>TransNeXt-Tiny, 28.2 million parameters.</summary>
    public static TransNeXtOptions Tiny => Micro with { Widths = [72, 144, 288, 576], Heads = [3, 6, 12, 24] };

    /// <summary>TransNeXt-Small, 49.7 million parameters.</summary>
    public static TransNeXtOptions Small => Tiny with { Depths = [5, 5, 22, 5] };

    /// <summary>TransNeXt-Base, 89.7 million parameters.</summary>
    public static TransNeXtOptions Base => new() { Widths = [96, 192, 384, 768], Heads = [4, 8, 16, 32], Depths = [5, 5, 23, 5] };

    /// <summary>MoH-ViT-S with 80 % of the heads, the authors' <c>moh_transnext_small_80</c>.</summary>
    public static TransNeXtOptions MoHSmall80 => Small with { SharedHeads = [3, 6, 3, 8], RoutedHeads = [0, 0, 6, 12] };

    /// <summary>MoH-ViT-S with 75 % of the heads, the authors' <c>moh_transnext_small_75</c>.</summary>
    public static TransNeXtOptions MoHSmall75 => Small with { SharedHeads = [3, 6, 3, 4], RoutedHeads = [0, 0, 6, 12] };

    /// <summary>MoH-ViT-B with 75 % of the heads, the authors' <c>moh_transnext_base_75</c>.</summary>
    public static TransNeXtOptions MoHBase75 => Base with { SharedHeads = [4, 8, 4, 5], RoutedHeads = [0, 0, 8, 16] };

    /// <summary>MoH-ViT-B with 50 % of the heads, the authors' <c>moh_transnext_base_50</c>.</summary>
    public static TransNeXtOptions MoHBase50 => Base with { SharedHeads = [2, 2, 2, 4], RoutedHeads = [2, 4, 6, 8] };

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
        var side = _options.ImageSize / _options.PatchSize >> (_stages.Length - 1);
        return Tokens(images).transpose(1, 2).reshape(images.shape[0], -1, side, side).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override string? NameOf(string stored)
    {
        ArgumentNullException.ThrowIfNull(stored);
        // Tables that the model computes.
        string[] tables = ["relative_pos_index", "relative_coords_table", "padding_mask", "seq_length_scale"];
        return tables.Any(table => stored.Contains(table, StringComparison.Ordinal)) ? null : stored;
    }

    private Tensor Tokens(Tensor images)
    {
        CheckImages(images);
        if (images.shape[2] != _options.ImageSize || images.shape[3] != _options.ImageSize)
        {
            throw new ArgumentException($"The model reads pictures of {_options.ImageSize} x {_options.ImageSize} pixels, not {images.shape[2]} x {images.shape[3]}: resize them.", nameof(images));
        }

        var map = images;
        for (var stage = 0; ; stage++)
        {
            var tokens = _embeddings[stage].forward(map);
            foreach (var block in _stages[stage])
            {
                tokens = block.forward(tokens);
            }

            tokens = _norms[stage].forward(tokens);
            if (stage == _stages.Length - 1)
            {
                return tokens;
            }

            var side = _options.ImageSize / _options.PatchSize >> stage;
            map = tokens.transpose(1, 2).reshape(images.shape[0], -1, side, side);
        }
    }
}

/// <summary>A block of a <see cref="TransNeXt"/>: <c>x += attn(norm1(x))</c>, <c>x += mlp(norm2(x))</c>, with attention over the whole picture where it is not pooled.</summary>
public sealed class TransNeXtBlock : nn.Module<Tensor, Tensor>
{
    private readonly LayerNorm norm1;
    private readonly nn.Module<Tensor, Tensor> attn;
    private readonly LayerNorm norm2;
    private readonly ConvolutionalGlu mlp;
    private readonly DropPath _drop;

    /// <summary>Makes a block.</summary>
    /// <param name="attention">The shape of its attention; a <see cref="TransNeXtAttentionOptions.Reduction"/> of 1 means attention over the whole picture.</param>
    /// <param name="feedForwardRatio">Hidden width of the perceptron over the width, before the two thirds of the gated form.</param>
    /// <param name="normEpsilon">Epsilon of the norms.</param>
    /// <param name="dropPath">Probability of dropping a branch in training.</param>
    /// <param name="site">Where its attention calls stand in a model.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <exception cref="ArgumentException">The sizes or the counts of heads do not fit together.</exception>
    public TransNeXtBlock(
        TransNeXtAttentionOptions attention, double feedForwardRatio = 4, double normEpsilon = 1e-6, double dropPath = 0, AttentionSite site = default, AttentionHooks? hooks = null)
        : base(nameof(TransNeXtBlock))
    {
        ArgumentNullException.ThrowIfNull(attention);
        norm1 = nn.LayerNorm(attention.Width, normEpsilon);
        attn = attention.Reduction == 1 ? new TransNeXtAttention(attention, site) { Hooks = hooks } : new AggregatedAttention(attention);
        norm2 = nn.LayerNorm(attention.Width, normEpsilon);
        mlp = new(attention.Width, 2 * (int)(attention.Width * feedForwardRatio) / 3, attention.Rows, attention.Columns);
        _drop = new(dropPath);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor tokens)
    {
        using var scope = NewDisposeScope();
        tokens = tokens + _drop.forward(attn.forward(norm1.forward(tokens)));
        return (tokens + _drop.forward(mlp.forward(norm2.forward(tokens)))).MoveToOuterDisposeScope();
    }
}

/// <summary>A convolution whose patches overlap, and a norm: <c>proj</c>, <c>norm</c>.</summary>
internal sealed class OverlappingPatchEmbedding : nn.Module<Tensor, Tensor>
{
    private readonly Conv2d proj;
    private readonly LayerNorm norm;

    public OverlappingPatchEmbedding(int channels, int width, int kernel, int stride)
        : base(nameof(OverlappingPatchEmbedding))
    {
        proj = nn.Conv2d(channels, width, kernel, stride: stride, padding: kernel / 2);
        norm = nn.LayerNorm(width);
        RegisterComponents();
        Parameters.Keep(this);
        nn.init.normal_(proj.weight!, 0, Math.Sqrt(2.0 / (kernel * kernel * width)));
        nn.init.zeros_(proj.bias!);
    }

    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return norm.forward(proj.forward(images).flatten(2).transpose(1, 2)).MoveToOuterDisposeScope();
    }
}
