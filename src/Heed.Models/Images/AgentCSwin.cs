using Heed.Heads;
using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of an <see cref="AgentCSwin"/>.</summary>
public sealed record AgentCSwinOptions
{
    /// <summary>Side of the (square) pictures.</summary>
    public int ImageSize { get; init; } = 224;

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Width of the first stage; every further stage is twice as wide.</summary>
    public required int Width { get; init; }

    /// <summary>Blocks of the four stages.</summary>
    public required IReadOnlyList<int> Depths { get; init; }

    /// <summary>Heads of the four stages.</summary>
    public required IReadOnlyList<int> Heads { get; init; }

    /// <summary>Widths of the stripes of blocks without agents.</summary>
    public IReadOnlyList<int> Splits { get; init; } = [1, 2, 7, 7];

    /// <summary>Widths of the stripes of blocks with agents; as wide as the map: one stripe.</summary>
    public IReadOnlyList<int> AgentSplits { get; init; } = [56, 28, 14, 7];

    /// <summary>Which blocks have agents, as in <see cref="AgentSwinOptions.Types"/>.</summary>
    public string Types { get; init; } = "AABB";

    /// <summary>Agents of the four stages, square numbers.</summary>
    public IReadOnlyList<int> Agents { get; init; } = [9, 16, 49, 49];

    /// <summary>Hidden width of the perceptrons over the width.</summary>
    public double FeedForwardRatio { get; init; } = 4;

    /// <summary>Probability of dropping the last block's branches in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }
}

/// <summary>Agent-CSwin (arXiv 2312.08874): CSWin (arXiv 2107.00652) whose early stages attend over the whole map through agents instead of within stripes. Parameter names are the authors'.</summary>
public sealed class AgentCSwin : ImageClassifier
{
    private const int Stages = 4;
    private readonly AgentCSwinOptions _options;
    private readonly Sequential stage1_conv_embed;
    private readonly ModuleList<CSwinBlock> stage1;
    private readonly OverlappingMerge merge1;
    private readonly ModuleList<CSwinBlock> stage2;
    private readonly OverlappingMerge merge2;
    private readonly ModuleList<CSwinBlock> stage3;
    private readonly OverlappingMerge merge3;
    private readonly ModuleList<CSwinBlock> stage4;
    private readonly LayerNorm norm;
    private readonly Linear head;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">Lists do not have four values, or a size does not fit.</exception>
    public AgentCSwin(AgentCSwinOptions options)
        : base(nameof(AgentCSwin), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        _options = options;
        AgentStages.CheckLists(Stages, options.Depths, options.Heads, options.Splits, options.AgentSplits, options.Agents);
        AgentStages.CheckGrid(options.ImageSize, 32);
        var agents = AgentStages.Parse(options.Types, options.Depths);
        var drops = Heed.Layers.DropPath.Schedule(options.DropPath, options.Depths.Sum());
        var width = options.Width;
        stage1_conv_embed = nn.Sequential(nn.Conv2d(options.Channels, width, 7, stride: 4, padding: 2), new GridTokens(), nn.LayerNorm(width));
        (stage1, stage2, stage3, stage4) = (Blocks(0), Blocks(1), Blocks(2), Blocks(3));
        (merge1, merge2, merge3) = (new(width), new(2 * width), new(4 * width));
        norm = nn.LayerNorm(8 * width);
        head = nn.Linear(8 * width, options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(this, false);

        ModuleList<CSwinBlock> Blocks(int stage)
        {
            var first = options.Depths.Take(stage).Sum();
            return nn.ModuleList([.. Enumerable.Range(0, options.Depths[stage]).Select(block => new CSwinBlock(options, stage, first + block, agents[stage][block], drops[first + block], $"stage{stage + 1}.{block}", Hooks))]);
        }
    }

    /// <summary>The shape.</summary>
    public AgentCSwinOptions Options => _options;

    /// <summary>Agent-CSwin-T: 20.5 million parameters.</summary>
    /// <param name="classes">Number of classes.</param>
    public static AgentCSwin Tiny(int classes = 1000) => new(new() { Classes = classes, Width = 64, Depths = [2, 4, 18, 1], Heads = [2, 4, 8, 16], DropPath = 0.2 });

    /// <summary>Agent-CSwin-S: 33 million parameters.</summary>
    /// <param name="classes">Number of classes.</param>
    public static AgentCSwin Small(int classes = 1000) => new(new() { Classes = classes, Width = 64, Depths = [3, 6, 29, 2], Heads = [2, 4, 8, 16], DropPath = 0.4 });

    /// <summary>Agent-CSwin-B: 73 million parameters; at 384 pixels stripes are wider.</summary>
    /// <param name="imageSize">Side of the pictures: 224 or 384.</param>
    /// <param name="classes">Number of classes.</param>
    public static AgentCSwin Base(int imageSize = 224, int classes = 1000) => new(new()
    {
        ImageSize = imageSize, Classes = classes, Width = 96, Depths = [3, 6, 29, 2], Heads = [4, 8, 16, 32], DropPath = imageSize == 384 ? 0.7 : 0.5,
        Splits = [1, 2, imageSize / 32, imageSize / 32], AgentSplits = [imageSize / 4, imageSize / 8, imageSize / 16, imageSize / 32],
    });

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
        var side = _options.ImageSize / 32;
        return Tokens(images).transpose(1, 2).reshape(images.shape[0], -1, side, side).MoveToOuterDisposeScope();
    }

    private Tensor Tokens(Tensor images)
    {
        CheckImages(images);
        AgentStages.CheckSize(images, _options.ImageSize);
        var tokens = stage1_conv_embed.forward(images);
        (OverlappingMerge? Merge, ModuleList<CSwinBlock> Blocks)[] stages = [(null, stage1), (merge1, stage2), (merge2, stage3), (merge3, stage4)];
        foreach (var (merge, blocks) in stages)
        {
            tokens = merge is null ? tokens : merge.forward(tokens);
            foreach (var block in blocks)
            {
                tokens = block.forward(tokens);
            }
        }

        return norm.forward(tokens);
    }

    /// <summary><c>[B, C, H, W]</c> to <c>[B, H W, C]</c>.</summary>
    private sealed class GridTokens() : nn.Module<Tensor, Tensor>(nameof(GridTokens))
    {
        public override Tensor forward(Tensor grid)
        {
            using var scope = NewDisposeScope();
            return grid.flatten(2).transpose(1, 2).MoveToOuterDisposeScope();
        }
    }

    /// <summary>Halves the sides and doubles the width, by an overlapping convolution.</summary>
    private sealed class OverlappingMerge : nn.Module<Tensor, Tensor>
    {
        private readonly Conv2d conv;
        private readonly LayerNorm norm;

        public OverlappingMerge(int width)
            : base(nameof(OverlappingMerge))
        {
            (conv, norm) = (nn.Conv2d(width, 2 * width, 3, stride: 2, padding: 1), nn.LayerNorm(2 * width));
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor tokens)
        {
            using var scope = NewDisposeScope();
            var side = (long)Math.Sqrt(tokens.shape[1]);
            var grid = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side);
            return norm.forward(conv.forward(grid).flatten(2).transpose(1, 2)).MoveToOuterDisposeScope();
        }
    }

    /// <summary>A block: one branch over the whole map, or two over stripes across each other, each with half of the channels and heads.</summary>
    private sealed class CSwinBlock : nn.Module<Tensor, Tensor>
    {
        private readonly Linear qkv;
        private readonly LayerNorm norm1;
        private readonly Linear proj;
        private readonly ModuleList<nn.Module<Tensor, Tensor>> attns;
        private readonly GeluFeedForward mlp;
        private readonly LayerNorm norm2;
        private readonly DropPath _drop;

        public CSwinBlock(AgentCSwinOptions options, int stage, int layer, bool agents, double dropPath, string name, AttentionHooks hooks)
            : base(nameof(CSwinBlock))
        {
            var (width, side) = (options.Width << stage, options.ImageSize / (4 << stage));
            var split = agents ? options.AgentSplits[stage] : options.Splits[stage];
            var branches = stage == Stages - 1 || side == split ? 1 : 2;
            (qkv, norm1, proj) = (nn.Linear(width, 3 * width), nn.LayerNorm(width), nn.Linear(width, width));
            attns = nn.ModuleList([.. Enumerable.Range(0, branches).Select(Branch)]);
            (mlp, norm2) = (new(width, (long)(width * options.FeedForwardRatio)), nn.LayerNorm(width));
            _drop = new(dropPath);
            RegisterComponents();
            Parameters.Keep(this);

            nn.Module<Tensor, Tensor> Branch(int branch)
            {
                var stripe = branches == 1 ? (side, side) : branch == 0 ? (side, split) : (split, side);
                var site = new AttentionSite(layer, AttentionKind.Self, $"{name}.attns.{branch}");
                return agents
                    ? new StripedAgentAttention(width / branches, options.Heads[stage] / branches, (side, side), stripe, options.Agents[stage]) { Site = site, Hooks = hooks }
                    : new StripedAttention(width / branches, options.Heads[stage] / branches, (side, side), stripe) { Site = site, Hooks = hooks };
            }
        }

        public override Tensor forward(Tensor tokens)
        {
            using var scope = NewDisposeScope();
            var (batch, length, width) = (tokens.shape[0], tokens.shape[1], tokens.shape[2]);
            var three = qkv.forward(norm1.forward(tokens)).view(batch, length, 3, width).permute(2, 0, 1, 3);
            var part = width / attns.Count;
            var mixed = cat([.. attns.Select((branch, index) => branch.forward(three.narrow(3, index * part, part)))], -1);
            tokens = tokens + _drop.forward(proj.forward(mixed));
            return (tokens + _drop.forward(mlp.forward(norm2.forward(tokens)))).MoveToOuterDisposeScope();
        }
    }
}
