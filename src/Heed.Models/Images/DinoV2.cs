using Heed.Heads;
using Heed.Layers;
using Heed.Models.Checkpoints;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of a <see cref="DinoV2"/>; the defaults are ViT-B/14's.</summary>
public sealed record DinoV2Options
{
    /// <summary>ViT-S/14.</summary>
    public static DinoV2Options Small { get; } = new() { Width = 384, Heads = 6 };

    /// <summary>ViT-B/14.</summary>
    public static DinoV2Options Base { get; } = new();

    /// <summary>ViT-L/14.</summary>
    public static DinoV2Options Large { get; } = new() { Width = 1024, Heads = 16, Depth = 24 };

    /// <summary>Side of a patch.</summary>
    public int PatchSize { get; init; } = 14;

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Side of the grid of patches that the stored positions stand for: 37, pictures of 518 pixels.</summary>
    public int PositionGrid { get; init; } = 37;

    /// <summary>Width C of a token.</summary>
    public int Width { get; init; } = 768;

    /// <summary>Heads.</summary>
    public int Heads { get; init; } = 12;

    /// <summary>Number of blocks.</summary>
    public int Depth { get; init; } = 12;
}

/// <summary>The vision transformer of DINOv2 (arXiv 2304.07193) as a frozen source of feature maps, for encoders of brains and other readouts: the output of any block, or the queries of its attention. Parameter names are the
/// authors': <c>patch_embed.proj</c>, <c>cls_token</c>, <c>pos_embed</c>, <c>blocks.{i}.norm1|attn.qkv|attn.proj|ls1.gamma|norm2|mlp.fc1|mlp.fc2|ls2.gamma</c>, <c>norm</c>.</summary>
/// <remarks>Left out: models with register tokens, and the giant, whose perceptrons are gated. Pictures are expected as the authors normalise them (ImageNet's mean and deviation).</remarks>
public sealed class DinoV2 : nn.Module<Tensor, Tensor>
{
    // What the authors add to the wanted number of patches before they divide, lest rounding loses one; it shifts the samples a little.
    private const double InterpolationOffset = 0.1;

    private readonly DinoV2Options _options;
    private readonly PatchEmbedding patch_embed;
    private readonly Parameter cls_token;
    private readonly Parameter pos_embed;
    private readonly ModuleList<MixerBlock> blocks;
    private readonly LayerNorm norm;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A size is not positive, or the heads do not divide the width.</exception>
    public DinoV2(DinoV2Options options)
        : base(nameof(DinoV2))
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.PatchSize < 1 || options.Channels < 1 || options.PositionGrid < 1 || options.Width < 1 || options.Depth < 1)
        {
            throw new ArgumentException(
                $"Patch, channels, grid of positions, width and depth must be positive, not {options.PatchSize}, {options.Channels}, {options.PositionGrid}, {options.Width} and {options.Depth}.", nameof(options));
        }

        _options = options;
        patch_embed = new(options.Channels, options.Width, options.PatchSize);
        cls_token = Parameters.Make([1, 1, options.Width], tensor => Parameters.DrawNormal(tensor));
        pos_embed = Parameters.Make([1, 1 + ((long)options.PositionGrid * options.PositionGrid), options.Width], tensor => Parameters.DrawNormal(tensor));
        blocks = nn.ModuleList([.. Enumerable.Range(0, options.Depth).Select(layer =>
            new MixerBlock(
                options.Width, 4L * options.Width,
                new MultiHeadAttention(new() { Width = options.Width, Heads = options.Heads }, new(layer, AttentionKind.Self, $"blocks.{layer}.attn")) { Hooks = Hooks }, layerScale: 1e-5) { Place = new(Hooks, layer, $"blocks.{layer}") })]);
        norm = nn.LayerNorm(options.Width, 1e-6);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public DinoV2Options Options => _options;

    /// <summary>The hooks of every attention call in the model.</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>The tokens after the final norm, the class token first.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>, both sides multiples of the patch.</param>
    /// <returns><c>[B, 1 + h w, width]</c>.</returns>
    /// <exception cref="ArgumentException">The pictures have another shape.</exception>
    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return norm.forward(Run(images, _options.Depth - 1)).MoveToOuterDisposeScope();
    }

    /// <summary>The output of a block as a map over the picture, before any norm: what brain encoders call <c>dinov2</c>.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>, both sides multiples of the patch.</param>
    /// <param name="block">The block, from 0, or from the end where it is negative: -1 is the last.</param>
    /// <returns><c>[B, width, h, w]</c>.</returns>
    /// <exception cref="ArgumentException">The pictures have another shape, or there is no such block.</exception>
    public Tensor BlockFeatures(Tensor images, int block = -1)
    {
        using var scope = NewDisposeScope();
        var tokens = Run(images, IndexOf(block));
        return Map(tokens, images).MoveToOuterDisposeScope();
    }

    /// <summary>The queries of a block's attention, heads side by side, as a map over the picture: <c>dinov2_q</c>.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>, both sides multiples of the patch.</param>
    /// <param name="block">The block, from 0, or from the end where it is negative.</param>
    /// <returns><c>[B, width, h, w]</c>.</returns>
    /// <exception cref="ArgumentException">The pictures have another shape, or there is no such block.</exception>
    public Tensor QueryFeatures(Tensor images, int block = -1)
    {
        using var scope = NewDisposeScope();
        var reader = new QueryReader(IndexOf(block));
        using (Hooks.Install(reader))
        {
            Run(images, reader.Layer);
        }

        using var queries = reader.Queries!;
        return Map(queries.transpose(1, 2).flatten(2), images).MoveToOuterDisposeScope();
    }

    /// <summary>Fills the model from a checkpoint in the authors' names: all of it, or where anything does not fit, nothing.</summary>
    /// <param name="path">A file that PyTorch wrote (<c>.pth</c>), or a safetensors file.</param>
    /// <param name="key">For a file that PyTorch wrote: under which key the tensors lie; null: at the top or under a usual name.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">The file is broken, or tensors are missing, superfluous (register tokens, for example) or of another shape; the message names them.</exception>
    public void LoadCheckpoint(string path, string? key = null) => NamedTensors.Load(this, name => name == "mask_token" ? null : name, path, key);

    private int IndexOf(int block) => block < _options.Depth && block >= -_options.Depth ? (block + _options.Depth) % _options.Depth
        : throw new ArgumentException($"The model has blocks 0 to {_options.Depth - 1}; {block} is asked for.", nameof(block));

    private Tensor Run(Tensor images, int last)
    {
        var tokens = patch_embed.forward(images);
        tokens = cat([cls_token.expand(images.shape[0], 1, -1), tokens], 1) + Positions(images.shape[2] / _options.PatchSize, images.shape[3] / _options.PatchSize);
        for (var layer = 0; layer <= last; layer++)
        {
            tokens = blocks[layer].forward(tokens);
        }

        return tokens;
    }

    // Pictures of another size than the positions were trained at get them resampled, as the authors do.
    private Tensor Positions(long height, long width)
    {
        var side = _options.PositionGrid;
        if (height == side && width == side)
        {
            return pos_embed;
        }

        var grid = pos_embed.narrow(1, 1, (long)side * side).view(1, side, side, -1).permute(0, 3, 1, 2);
        var resampled = nn.functional.interpolate(
            grid, scale_factor: [(height + InterpolationOffset) / side, (width + InterpolationOffset) / side], mode: InterpolationMode.Bicubic, align_corners: false);
        return cat([pos_embed.narrow(1, 0, 1), resampled.flatten(2).transpose(1, 2)], 1);
    }

    private Tensor Map(Tensor tokens, Tensor images) =>
        tokens.narrow(1, 1, tokens.shape[1] - 1).transpose(1, 2).reshape(images.shape[0], _options.Width, images.shape[2] / _options.PatchSize, images.shape[3] / _options.PatchSize);

    /// <summary>Keeps the queries of one block.</summary>
    private sealed class QueryReader(int layer) : AttentionHook
    {
        public int Layer => layer;

        public Tensor? Queries { get; private set; }

        public override AttentionStages StagesAt(AttentionSite site) => site.Layer == layer ? AttentionStages.Inputs : AttentionStages.None;

        public override void OnInputs(AttentionCall call) => Queries = call.Query.alias().DetachFromDisposeScope();
    }
}
