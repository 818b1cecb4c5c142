using Heed.Heads;
using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of an <see cref="AgentSwin"/>.</summary>
public sealed record AgentSwinOptions
{
    /// <summary>Side of the (square) pictures.</summary>
    public int ImageSize { get; init; } = 224;

    /// <summary>Side of a patch.</summary>
    public int PatchSize { get; init; } = 4;

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Width of the first stage; every further stage is twice as wide.</summary>
    public required int Width { get; init; }

    /// <summary>Blocks of every stage.</summary>
    public required IReadOnlyList<int> Depths { get; init; }

    /// <summary>Heads of every stage.</summary>
    public required IReadOnlyList<int> Heads { get; init; }

    /// <summary>Tokens on a side of the windows of blocks without agents; blocks with agents see the whole map.</summary>
    public int Window { get; init; } = 7;

    /// <summary>Which blocks have agents, a letter for each stage: A all, B none, M the first of the stage, as many as the number after the letters says (<c>AAMB2</c>).</summary>
    public string Types { get; init; } = "AAAB";

    /// <summary>Agents of every stage, square numbers.</summary>
    public IReadOnlyList<int> Agents { get; init; } = [9, 16, 49, 49];

    /// <summary>Hidden width of the perceptrons over the width.</summary>
    public double FeedForwardRatio { get; init; } = 4;

    /// <summary>Probability of dropping the last block's branches in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }
}

/// <summary>Agent-Swin (arXiv 2312.08874): Swin (arXiv 2103.14030) whose early stages attend over the whole map through agents instead of within windows. Parameter names are the authors'.</summary>
public sealed class AgentSwin : ImageClassifier
{
    private readonly AgentSwinOptions _options;
    private readonly NormedPatches patch_embed;
    private readonly ModuleList<SwinStage> layers;
    private readonly LayerNorm norm;
    private readonly Linear head;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">Lists do not have a value for each stage, or a size does not fit.</exception>
    public AgentSwin(AgentSwinOptions options)
        : base(nameof(AgentSwin), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        _options = options;
        var stages = options.Depths.Count;
        var agents = AgentStages.Parse(options.Types, options.Depths);
        AgentStages.CheckGrid(options.ImageSize, options.PatchSize << (stages - 1));
        AgentStages.CheckLists(stages, options.Heads, options.Agents);
        patch_embed = new(options.Channels, options.Width, options.PatchSize, 1e-5);
        var drops = Heed.Layers.DropPath.Schedule(options.DropPath, options.Depths.Sum());
        layers = nn.ModuleList([.. Enumerable.Range(0, stages).Select(stage =>
            new SwinStage(options, stage, agents[stage], drops.AsSpan(options.Depths.Take(stage).Sum(), options.Depths[stage]), Hooks))]);
        var width = options.Width << (stages - 1);
        norm = nn.LayerNorm(width);
        head = nn.Linear(width, options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(this, false);
    }

    /// <summary>The shape.</summary>
    public AgentSwinOptions Options => _options;

    /// <summary>Agent-Swin-T: 29 million parameters.</summary>
    /// <param name="imageSize">Side of the pictures, a multiple of 32; the windows of the last stage are <c>max(7, size / 32)</c>.</param>
    /// <param name="classes">Number of classes.</param>
    public static AgentSwin Tiny(int imageSize = 224, int classes = 1000) => new(Published(imageSize, classes, 96, [2, 2, 6, 2], [3, 6, 12, 24], "AAAB", 0.2));

    /// <summary>Agent-Swin-S: 50 million parameters.</summary>
    /// <param name="imageSize">Side of the pictures: 224 or 288.</param>
    /// <param name="classes">Number of classes.</param>
    public static AgentSwin Small(int imageSize = 224, int classes = 1000) => new(Published(imageSize, classes, 96, [2, 2, 18, 2], [3, 6, 12, 24], "AABB", 0.3));

    /// <summary>Agent-Swin-B: 88 million parameters.</summary>
    /// <param name="imageSize">Side of the pictures: 224 or 384.</param>
    /// <param name="classes">Number of classes.</param>
    public static AgentSwin Base(int imageSize = 224, int classes = 1000) => new(Published(imageSize, classes, 128, [2, 2, 18, 2], [4, 8, 16, 32], "AAMB2", 0.5));

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
        var tokens = Tokens(images);
        var side = _options.ImageSize / (_options.PatchSize << (_options.Depths.Count - 1));
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override string? NameOf(string stored)
    {
        ArgumentNullException.ThrowIfNull(stored);
        return stored.EndsWith("relative_position_index", StringComparison.Ordinal) || stored.EndsWith("attn_mask", StringComparison.Ordinal) ? null : stored;
    }

    private static AgentSwinOptions Published(int imageSize, int classes, int width, int[] depths, int[] heads, string types, double dropPath) => new()
    {
        ImageSize = imageSize, Classes = classes, Width = width, Depths = depths, Heads = heads, Types = types, DropPath = dropPath, Window = Math.Max(7, imageSize / 32),
    };

    private Tensor Tokens(Tensor images)
    {
        CheckImages(images);
        AgentStages.CheckSize(images, _options.ImageSize);
        var tokens = patch_embed.forward(images);
        foreach (var layer in layers)
        {
            tokens = layer.forward(tokens);
        }

        return norm.forward(tokens);
    }

    private sealed class SwinStage : nn.Module<Tensor, Tensor>
    {
        private readonly ModuleList<MixerBlock> blocks;
        private readonly PatchMerging? downsample;

        public SwinStage(AgentSwinOptions options, int stage, bool[] agents, ReadOnlySpan<double> drops, AttentionHooks hooks)
            : base(nameof(SwinStage))
        {
            var (width, side) = (options.Width << stage, options.ImageSize / (options.PatchSize << stage));
            var first = options.Depths.Take(stage).Sum();
            var window = Math.Min(options.Window, side);
            var made = new List<MixerBlock>();
            for (var block = 0; block < agents.Length; block++)
            {
                var site = new AttentionSite(first + block, AttentionKind.Self, $"layers.{stage}.blocks.{block}.attn");
                nn.Module<Tensor, Tensor> mixer = agents[block]
                    ? new AgentAttention2d(new() { Width = width, Heads = options.Heads[stage], Grid = (side, side), Agents = options.Agents[stage] }) { Site = site, Hooks = hooks }
                    : new WindowAttention(width, options.Heads[stage], (side, side), window, block % 2 == 0 || window == side ? 0 : window / 2) { Site = site, Hooks = hooks };
                made.Add(new(width, (long)(width * options.FeedForwardRatio), mixer, 1e-5, drops[block]));
            }

            blocks = nn.ModuleList([.. made]);
            downsample = stage < options.Depths.Count - 1 ? new(width, side) : null;
            RegisterComponents();
        }

        public override Tensor forward(Tensor tokens)
        {
            using var scope = NewDisposeScope();
            foreach (var block in blocks)
            {
                tokens = block.forward(tokens);
            }

            return (downsample is null ? tokens : downsample.forward(tokens)).MoveToOuterDisposeScope();
        }
    }

    /// <summary>Joins the tokens of every 2 x 2 square: top left, bottom left, top right, bottom right.</summary>
    private sealed class PatchMerging : nn.Module<Tensor, Tensor>
    {
        private readonly Linear reduction;
        private readonly LayerNorm norm;
        private readonly int _side;

        public PatchMerging(int width, int side)
            : base(nameof(PatchMerging))
        {
            _side = side;
            (reduction, norm) = (nn.Linear(4 * width, 2 * width, hasBias: false), nn.LayerNorm(4 * width));
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor tokens)
        {
            using var scope = NewDisposeScope();
            var (batch, width) = (tokens.shape[0], tokens.shape[2]);
            var squares = tokens.view(batch, _side / 2, 2, _side / 2, 2, width).permute(0, 1, 3, 4, 2, 5).reshape(batch, -1, 4 * width);
            return reduction.forward(norm.forward(squares)).MoveToOuterDisposeScope();
        }
    }
}
