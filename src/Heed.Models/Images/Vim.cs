using Heed.Layers;
using Heed.Mixers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>Where the class token of a <see cref="Vim"/> stands.</summary>
public enum ClassTokenPlace
{
    /// <summary>There is none; the head reads what <see cref="VimOptions.Pool"/> says.</summary>
    None,

    /// <summary>In the middle, at index <c>patches / 2</c>, where the published models have it.</summary>
    Middle,

    /// <summary>Before the patches.</summary>
    First,

    /// <summary>Two, before and behind the patches; the head reads their mean.</summary>
    BothEnds,
}

/// <summary>What the head of a <see cref="Vim"/> without class token reads.</summary>
public enum TokenPool
{
    /// <summary>The last token: <c>none</c> of the authors' code.</summary>
    Last,

    /// <summary>The mean over the tokens.</summary>
    Mean,

    /// <summary>Every token; the logits are the largest of each class.</summary>
    Max,

    /// <summary>Every token; the logits are <c>[B, N, classes]</c>.</summary>
    All,
}

/// <summary>The shape of a <see cref="Vim"/>; the defaults are those of the published models but for the width.</summary>
public sealed record VimOptions
{
    /// <summary>Side of the (square) pictures.</summary>
    public int ImageSize { get; init; } = 224;

    /// <summary>Side of a patch.</summary>
    public int PatchSize { get; init; } = 16;

    /// <summary>Pixels from one patch to the next; 0: the patch's side.</summary>
    public int Stride { get; init; }

    /// <summary>Number of blocks.</summary>
    public int Depth { get; init; } = 24;

    /// <summary>Width of a token.</summary>
    public required int Width { get; init; }

    /// <summary>States N of every channel of the scans.</summary>
    public int States { get; init; } = 16;

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Whether norms are root-mean-square norms; otherwise layer norms.</summary>
    public bool RmsNorm { get; init; } = true;

    /// <summary>Epsilon of the norms.</summary>
    public double NormEpsilon { get; init; } = 1e-5;

    /// <summary>What the head reads where there is no class token.</summary>
    public TokenPool Pool { get; init; } = TokenPool.Mean;

    /// <summary>Whether learned positions are added to the tokens, class tokens included.</summary>
    public bool Positions { get; init; } = true;

    /// <summary>Whether tokens are turned by rotary positions, half of their pairs by the row and half by the column, before every block, and the residual with them (<c>if_rope</c>, <c>if_rope_residual</c>).
    /// Only without class token, and for widths that are multiples of 4.</summary>
    public bool Rotary { get; init; }

    /// <summary>Where the class token stands.</summary>
    public ClassTokenPlace ClassToken { get; init; } = ClassTokenPlace.Middle;

    /// <summary>How the mixers see what stands behind a token.</summary>
    public BackwardScan Backward { get; init; } = BackwardScan.OwnBranch;

    /// <summary>Whether the mixers halve the sum of their two directions.</summary>
    public bool DivideOutput { get; init; } = true;

    /// <summary>First value of a learned factor of every mixer's output channels; null: none.</summary>
    public double? LayerScale { get; init; }

    /// <summary>Probability of dropping the last block's branch in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }

    /// <summary>Positions along a side.</summary>
    public int Grid => ((ImageSize - PatchSize) / Step) + 1;

    /// <summary>Pixels from one patch to the next.</summary>
    internal int Step => Stride == 0 ? PatchSize : Stride;

    /// <summary>Places of the class tokens in the sequence.</summary>
    internal int[] ClassTokens => ClassToken switch
    {
        ClassTokenPlace.Middle => [Grid * Grid / 2],
        ClassTokenPlace.First => [0],
        ClassTokenPlace.BothEnds => [0, (Grid * Grid) + 1],
        _ => [],
    };
}

/// <summary>Vision Mamba (arXiv 2401.09417): patches, a class token in their middle, learned positions, and a stack of bidirectional <see cref="VimMixer"/>s, each behind a norm. Parameter names are those of hustvl/Vim.
/// Left out of the authors' code: flipped or shuffled sequences and layers that alternate in direction, none of which a published model uses.</summary>
public sealed class Vim : ImageClassifier
{
    private readonly VimOptions _options;
    private readonly PatchEmbedding patch_embed;
    private readonly Parameter? cls_token;
    private readonly Parameter? cls_token_head;
    private readonly Parameter? cls_token_tail;
    private readonly Parameter? pos_embed;
    private readonly ModuleList<VimBlock> layers;
    private readonly nn.Module<Tensor, Tensor> norm_f;
    private readonly Linear head;
    private readonly DropPath _drop;
    private readonly GridRotation? _rotation;

    /// <summary>Makes a model with fresh weights.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A size is not positive, the picture does not divide into patches, or the pool or rotary positions do not go with a class token.</exception>
    public Vim(VimOptions options)
        : this(options, _ => DefaultMixer(options))
    {
    }

    /// <summary>A model with other mixers between the same parts.</summary>
    internal Vim(VimOptions options, Func<int, nn.Module<Tensor, Tensor>> mixer)
        : base(nameof(Vim), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        if (options.PatchSize < 1 || options.Stride < 0 || options.ImageSize < options.PatchSize || (options.Step == options.PatchSize && options.ImageSize % options.PatchSize != 0) || options.Width < 1 || options.Depth < 1)
        {
            throw new ArgumentException(
                $"Pictures of side {options.ImageSize} must divide into patches of side {options.PatchSize} every {options.Step} pixels, and width and depth ({options.Width}, {options.Depth}) must be positive.",
                nameof(options));
        }

        if (options.ClassToken != ClassTokenPlace.None && options.Pool is TokenPool.Max or TokenPool.All)
        {
            throw new ArgumentException($"The pool {options.Pool} reads every token, and with a class token the head reads that one only: leave one of the two out.", nameof(options));
        }

        if (options.Rotary && (options.ClassToken != ClassTokenPlace.None || options.Width % 4 != 0))
        {
            throw new ArgumentException($"Rotary positions turn tokens whose width is a multiple of 4, without class token, not a width of {options.Width} with the class token {options.ClassToken}.", nameof(options));
        }

        _options = options;
        _rotation = options.Rotary ? new(options.Grid, options.Width) : null;
        static Parameter Token(long count, long width) => Parameters.Make([1, count, width], tensor => Parameters.DrawNormal(tensor));
        patch_embed = new(options.Channels, options.Width, options.PatchSize, options.Step);
        if (options.ClassToken == ClassTokenPlace.BothEnds)
        {
            (cls_token_head, cls_token_tail) = (Token(1, options.Width), Token(1, options.Width));
        }
        else if (options.ClassToken != ClassTokenPlace.None)
        {
            cls_token = Token(1, options.Width);
        }

        pos_embed = options.Positions ? Token((options.Grid * options.Grid) + options.ClassTokens.Length, options.Width) : null;
        // The first branch is dropped by the second block, where it joins the residual; the last one at the end.
        var drops = Layers.DropPath.Schedule(options.DropPath, options.Depth);
        layers = nn.ModuleList([.. Enumerable.Range(0, options.Depth).Select(layer => new VimBlock(options, mixer(layer), layer == 0 ? 0 : drops[layer - 1]))]);
        _drop = new(options.DropPath);
        norm_f = VimBlock.Norm(options);
        head = nn.Linear(options.Width, options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(head, false);
        InitializePatches();
    }

    /// <summary>The shape.</summary>
    public VimOptions Options => _options;

    /// <summary>Vim-Ti: width 192, 7.1 million parameters.</summary>
    /// <param name="classes">Number of classes.</param>
    public static Vim Tiny(int classes = 1000) => new(new() { Width = 192, Classes = classes });

    /// <summary>Vim-S: width 384, 26 million parameters.</summary>
    /// <param name="classes">Number of classes.</param>
    public static Vim Small(int classes = 1000) => new(new() { Width = 384, Classes = classes });

    /// <summary>Vim-B: width 768, 98 million parameters.</summary>
    /// <param name="classes">Number of classes.</param>
    public static Vim Base(int classes = 1000) => new(new() { Width = 768, Classes = classes });

    /// <inheritdoc/>
    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        var logits = head.forward(Pooled(images));
        return (_options.Pool == TokenPool.Max && _options.ClassToken == ClassTokenPlace.None ? logits.max(1).values : logits).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor Features(Tensor images)
    {
        using var scope = NewDisposeScope();
        return new TokenGrid(_options.Grid, _options.Grid) { Others = _options.ClassTokens }.Maps(Tokens(images).transpose(1, 2)).MoveToOuterDisposeScope();
    }

    /// <summary>What the head reads.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>.</param>
    /// <returns><c>[B, width]</c>; <c>[B, N, width]</c> where the pool reads every token.</returns>
    public Tensor Pooled(Tensor images)
    {
        using var scope = NewDisposeScope();
        var tokens = Tokens(images);
        using Scalar half = 0.5;
        var pooled = (_options.ClassTokens, _options.Pool) switch
        {
            ([var first, var second], _) => (tokens.select(1, first) + tokens.select(1, second)) * half,
            ([var only], _) => tokens.select(1, only),
            (_, TokenPool.Last) => tokens.select(1, tokens.shape[1] - 1),
            (_, TokenPool.Mean) => tokens.mean([1L]),
            _ => tokens,
        };
        return pooled.MoveToOuterDisposeScope();
    }

    private Tensor Tokens(Tensor images)
    {
        CheckImages(images);
        if (images.shape[2] != _options.ImageSize || images.shape[3] != _options.ImageSize)
        {
            throw new ArgumentException($"The model reads pictures of {_options.ImageSize} x {_options.ImageSize} pixels, not {images.shape[2]} x {images.shape[3]}: resize them.", nameof(images));
        }

        var hidden = patch_embed.forward(images);
        var (batch, patches) = (images.shape[0], hidden.shape[1]);
        if (cls_token is not null)
        {
            var at = _options.ClassTokens[0];
            hidden = cat([hidden.narrow(1, 0, at), cls_token.expand(batch, 1, -1), hidden.narrow(1, at, patches - at)], 1);
        }
        else if (cls_token_head is not null)
        {
            hidden = cat([cls_token_head.expand(batch, 1, -1), hidden, cls_token_tail!.expand(batch, 1, -1)], 1);
        }

        hidden = pos_embed is null ? hidden : hidden + pos_embed;
        Tensor? residual = null;
        var turn = _rotation?.Tables(hidden);
        foreach (var layer in layers)
        {
            if (turn is { } tables)
            {
                (hidden, residual) = (tables.Apply(hidden), residual is null ? null : tables.Apply(residual));
            }

            (hidden, residual) = layer.forward(hidden, residual);
        }

        return norm_f.forward(residual! + _drop.forward(hidden));
    }

    /// <summary>Knows that checkpoints may hold tables of rotary positions, which the model computes.</summary>
    /// <inheritdoc/>
    public override string? NameOf(string stored)
    {
        ArgumentNullException.ThrowIfNull(stored);
        return stored.StartsWith("rope.", StringComparison.Ordinal) ? null : stored;
    }

    private static VimMixer DefaultMixer(VimOptions options)
    {
        var mixer = new VimMixer(
            new() { Width = options.Width, States = options.States, Grid = new(options.Grid, options.Grid) { Others = options.ClassTokens } },
            options.Backward, options.DivideOutput, options.LayerScale);
        mixer.ScaleOutput(1 / Math.Sqrt(options.Depth));
        return mixer;
    }

    private void InitializePatches()
    {
        using var still = no_grad();
        var fan = _options.Channels * _options.PatchSize * (long)_options.PatchSize;
        foreach (var (name, parameter) in patch_embed.named_parameters())
        {
            if (name.EndsWith("bias", StringComparison.Ordinal))
            {
                nn.init.zeros_(parameter);
            }
            else
            {
                // LeCun's variance.
                Parameters.DrawNormal(parameter, Math.Sqrt(1.0 / fan));
            }
        }
    }
}

/// <summary>A block of a <see cref="Vim"/>: add, norm, mix. The residual travels beside the mixer's output and takes it up in the next block.</summary>
internal sealed class VimBlock : nn.Module<Tensor, Tensor?, (Tensor Hidden, Tensor Residual)>
{
    private readonly nn.Module<Tensor, Tensor> mixer;
    private readonly nn.Module<Tensor, Tensor> norm;
    private readonly DropPath _drop;

    internal VimBlock(VimOptions options, nn.Module<Tensor, Tensor> mixer, double dropPath)
        : base(nameof(VimBlock))
    {
        this.mixer = mixer;
        norm = Norm(options);
        _drop = new(dropPath);
        RegisterComponents();
    }

    /// <summary>The mixer.</summary>
    public nn.Module<Tensor, Tensor> Mixer => mixer;

    /// <summary>Computes the block.</summary>
    /// <param name="hidden">What the block before mixed, <c>[B, N, C]</c>.</param>
    /// <param name="residual">The residual so far; null in the first block.</param>
    public override (Tensor Hidden, Tensor Residual) forward(Tensor hidden, Tensor? residual)
    {
        using var scope = NewDisposeScope();
        var sum = residual is null ? hidden.alias() : residual + _drop.forward(hidden);
        return (mixer.forward(norm.forward(sum)).MoveToOuterDisposeScope(), sum.MoveToOuterDisposeScope());
    }

    internal static nn.Module<Tensor, Tensor> Norm(VimOptions options)
    {
        if (options.RmsNorm)
        {
            return new RmsNorm(options.Width, options.NormEpsilon);
        }

        var norm = nn.LayerNorm(options.Width, options.NormEpsilon);
        Parameters.Keep(norm);
        return norm;
    }
}

/// <summary>Rotary positions of a grid over whole tokens (arXiv 2104.09864, over two axes as EVA-02 has them, 2303.11331): neighbouring channels turn together, the first half of them by the row, the second by the column.</summary>
internal sealed class GridRotation(int grid, int width)
{
    // The published models were trained on this many positions along a side; larger grids are squeezed into them.
    private const int TrainedGrid = 14;
    private const double Base = 10000;

    /// <summary>The tables for tokens like these, in the scope of the caller.</summary>
    public GridRotationTables Tables(Tensor like)
    {
        var pairs = width / 4;
        var angles = new double[grid * grid, width];
        for (var token = 0; token < grid * grid; token++)
        {
            for (var channel = 0; channel < width; channel++)
            {
                var (axis, pair) = (channel / (2 * pairs) == 0 ? token / grid : token % grid, channel % (2 * pairs) / 2);
                angles[token, channel] = (double)axis / grid * TrainedGrid * Math.Pow(Base, -(double)pair / pairs);
            }
        }

        var table = tensor(angles);
        return new(table.cos().to(like.dtype, like.device), table.sin().to(like.dtype, like.device));
    }
}

/// <summary>Cosines and sines <c>[N, width]</c>.</summary>
internal readonly record struct GridRotationTables(Tensor Cosine, Tensor Sine)
{
    public Tensor Apply(Tensor tokens)
    {
        var pairs = tokens.unflatten(2, [tokens.shape[2] / 2, 2]);
        var turned = stack([pairs.select(3, 1).neg(), pairs.select(3, 0)], 3).flatten(2);
        return (tokens * Cosine) + (turned * Sine);
    }
}
