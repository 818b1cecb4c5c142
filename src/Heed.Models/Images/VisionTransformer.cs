using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of a <see cref="VisionTransformer"/>.</summary>
public sealed record VisionTransformerOptions
{
    /// <summary>Side of the (square) pictures, a multiple of the patch.</summary>
    public required int ImageSize { get; init; }

    /// <summary>Side of a patch.</summary>
    public required int PatchSize { get; init; }

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Width C of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Number of blocks.</summary>
    public required int Depth { get; init; }

    /// <summary>Hidden width of the perceptrons over the width; 0: blocks without perceptron.</summary>
    public double FeedForwardRatio { get; init; } = 4;

    /// <summary>Whether a class token stands before the patches and is what the head reads; otherwise the head reads the mean of the tokens.</summary>
    public bool ClassToken { get; init; }

    /// <summary>Whether learned positions are added to the tokens.</summary>
    public bool Positions { get; init; } = true;

    /// <summary>Epsilon of the norms.</summary>
    public double NormEpsilon { get; init; } = 1e-6;

    /// <summary>Probability of dropping the last block's branches in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }

    /// <summary>Positions along a side.</summary>
    public int Grid => ImageSize / PatchSize;
}

/// <summary>Where a token mixer stands in a <see cref="VisionTransformer"/>.</summary>
/// <param name="Layer">The block, from 0.</param>
/// <param name="Width">Width C of a token.</param>
/// <param name="Grid">Positions along a side.</param>
/// <param name="ClassToken">Whether a class token stands before them.</param>
/// <param name="Hooks">The model's hooks.</param>
public readonly record struct TokenMixerPlace(int Layer, int Width, int Grid, bool ClassToken, AttentionHooks Hooks)
{
    /// <summary>The site of the mixer's attention calls.</summary>
    public AttentionSite Site => new(Layer, AttentionKind.Self, $"blocks.{Layer}.attn");
}

/// <summary>An isotropic vision model in pre-norm form (arXiv 2010.11929, 2012.12877) whose token mixer is exchangeable: <c>x += mixer(norm1(x))</c>, <c>x += mlp(norm2(x))</c>. Parameter names are timm's:
/// <c>patch_embed.proj</c>, <c>cls_token</c>, <c>pos_embed</c>, <c>blocks.{i}.norm1|attn|norm2|mlp.fc1|mlp.fc2</c>, <c>norm</c>, <c>head</c>.</summary>
public sealed class VisionTransformer : ImageClassifier
{
    private readonly VisionTransformerOptions _options;
    private readonly PatchEmbedding patch_embed;
    private readonly Parameter? cls_token;
    private readonly Parameter? pos_embed;
    private readonly ModuleList<MixerBlock> blocks;
    private readonly LayerNorm norm;
    private readonly Linear head;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <param name="mixer">Makes the token mixer of a block, <c>[B, N, C]</c> to <c>[B, N, C]</c> (N counts the class token where there is one).</param>
    /// <exception cref="ArgumentException">The picture does not divide into patches, or a size is not positive.</exception>
    public VisionTransformer(VisionTransformerOptions options, Func<TokenMixerPlace, nn.Module<Tensor, Tensor>> mixer)
        : base(nameof(VisionTransformer), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        ArgumentNullException.ThrowIfNull(mixer);
        if (options.ImageSize < 1 || options.PatchSize < 1 || options.ImageSize % options.PatchSize != 0 || options.Width < 1 || options.Depth < 1)
        {
            throw new ArgumentException(
                $"Pictures of side {options.ImageSize} must divide into patches of side {options.PatchSize}, and width and depth ({options.Width}, {options.Depth}) must be positive.", nameof(options));
        }

        _options = options;
        var tokens = (options.Grid * options.Grid) + (options.ClassToken ? 1 : 0);
        patch_embed = new(options.Channels, options.Width, options.PatchSize);
        cls_token = options.ClassToken ? Parameters.Make([1, 1, options.Width], tensor => Parameters.DrawNormal(tensor)) : null;
        pos_embed = options.Positions ? Parameters.Make([1, tokens, options.Width], tensor => Parameters.DrawNormal(tensor)) : null;
        var drops = Layers.DropPath.Schedule(options.DropPath, options.Depth);
        blocks = nn.ModuleList([.. Enumerable.Range(0, options.Depth).Select(layer =>
            new MixerBlock(options.Width, (long)(options.Width * options.FeedForwardRatio), mixer(new(layer, options.Width, options.Grid, options.ClassToken, Hooks)), options.NormEpsilon, drops[layer]) { Place = new(Hooks, layer, $"blocks.{layer}") })]);
        norm = nn.LayerNorm(options.Width, options.NormEpsilon);
        head = nn.Linear(options.Width, options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(patch_embed, false);
        Parameters.InitializeNormal(head, false);
    }

    /// <summary>The shape.</summary>
    public VisionTransformerOptions Options => _options;

    /// <summary>The blocks.</summary>
    public IReadOnlyList<MixerBlock> Blocks => [.. blocks];

    /// <inheritdoc/>
    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        var tokens = Tokens(images);
        return head.forward(_options.ClassToken ? tokens.select(1, 0) : tokens.mean([1L])).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor Features(Tensor images)
    {
        using var scope = NewDisposeScope();
        var tokens = Tokens(images);
        tokens = _options.ClassToken ? tokens.narrow(1, 1, tokens.shape[1] - 1) : tokens;
        return tokens.transpose(1, 2).reshape(images.shape[0], _options.Width, _options.Grid, _options.Grid).MoveToOuterDisposeScope();
    }

    /// <summary>The tokens after every block (before the final norm), for heads that read all layers.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>.</param>
    /// <returns><c>[B, layers, N, C]</c>.</returns>
    public Tensor LayerTokens(Tensor images)
    {
        using var scope = NewDisposeScope();
        var tokens = Embed(images);
        var layers = new List<Tensor>();
        foreach (var block in blocks)
        {
            tokens = block.forward(tokens);
            layers.Add(tokens);
        }

        return stack(layers, 1).MoveToOuterDisposeScope();
    }

    private Tensor Tokens(Tensor images)
    {
        var tokens = Embed(images);
        foreach (var block in blocks)
        {
            tokens = block.forward(tokens);
        }

        return norm.forward(tokens);
    }

    private Tensor Embed(Tensor images)
    {
        CheckImages(images);
        if (images.shape[2] != _options.ImageSize || images.shape[3] != _options.ImageSize)
        {
            throw new ArgumentException($"The model reads pictures of {_options.ImageSize} x {_options.ImageSize} pixels, not {images.shape[2]} x {images.shape[3]}: resize them.", nameof(images));
        }

        var tokens = patch_embed.forward(images);
        if (cls_token is not null)
        {
            tokens = cat([cls_token.expand(images.shape[0], 1, -1), tokens], 1);
        }

        return pos_embed is null ? tokens : tokens + pos_embed;
    }
}
