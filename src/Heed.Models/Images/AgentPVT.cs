using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of an <see cref="AgentPVT"/>.</summary>
public sealed record AgentPVTOptions
{
    /// <summary>Side of the (square) pictures.</summary>
    public int ImageSize { get; init; } = 224;

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Widths of the four stages.</summary>
    public IReadOnlyList<int> Widths { get; init; } = [64, 128, 320, 512];

    /// <summary>Blocks of the four stages.</summary>
    public required IReadOnlyList<int> Depths { get; init; }

    /// <summary>Heads of the four stages.</summary>
    public IReadOnlyList<int> Heads { get; init; } = [1, 2, 5, 8];

    /// <summary>Hidden widths of the perceptrons over the widths.</summary>
    public IReadOnlyList<int> FeedForwardRatios { get; init; } = [8, 8, 4, 4];

    /// <summary>Agents of the four stages, square numbers.</summary>
    public IReadOnlyList<int> Agents { get; init; } = [9, 16, 49, 49];

    /// <summary>By how much keys and values of the four stages are reduced on each side.</summary>
    public IReadOnlyList<int> Reductions { get; init; } = [1, 1, 1, 1];

    /// <summary>Probability of dropping the last block's branches in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }
}

/// <summary>Agent-PVT (arXiv 2312.08874): the pyramid of PVT (arXiv 2102.12122) with agents in every block. Agents make reduced keys and values needless: all reductions are 1. Parameter names are the authors'.</summary>
public sealed class AgentPVT : ImageClassifier
{
    private const int Stages = 4;
    private readonly AgentPVTOptions _options;
    private readonly NormedPatches patch_embed1;
    private readonly NormedPatches patch_embed2;
    private readonly NormedPatches patch_embed3;
    private readonly NormedPatches patch_embed4;
    private readonly Parameter pos_embed1;
    private readonly Parameter pos_embed2;
    private readonly Parameter pos_embed3;
    private readonly Parameter pos_embed4;
    private readonly ModuleList<MixerBlock> block1;
    private readonly ModuleList<MixerBlock> block2;
    private readonly ModuleList<MixerBlock> block3;
    private readonly ModuleList<MixerBlock> block4;
    private readonly Linear head;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">Lists do not have four values, or a size does not fit.</exception>
    public AgentPVT(AgentPVTOptions options)
        : base(nameof(AgentPVT), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        _options = options;
        AgentStages.CheckLists(Stages, options.Widths, options.Depths, options.Heads, options.FeedForwardRatios, options.Agents, options.Reductions);
        AgentStages.CheckGrid(options.ImageSize, 32);
        var drops = Heed.Layers.DropPath.Schedule(options.DropPath, options.Depths.Sum());
        (patch_embed1, patch_embed2, patch_embed3, patch_embed4) = (Patches(0), Patches(1), Patches(2), Patches(3));
        (pos_embed1, pos_embed2, pos_embed3, pos_embed4) = (Positions(0), Positions(1), Positions(2), Positions(3));
        (block1, block2, block3, block4) = (Blocks(0, drops), Blocks(1, drops), Blocks(2, drops), Blocks(3, drops));
        head = nn.Linear(options.Widths[^1], options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(this, false);
    }

    /// <summary>The shape.</summary>
    public AgentPVTOptions Options => _options;

    /// <summary>Agent-PVT-T: 11.6 million parameters.</summary>
    /// <param name="imageSize">Side of the pictures, a multiple of 32.</param>
    /// <param name="classes">Number of classes.</param>
    public static AgentPVT Tiny(int imageSize = 224, int classes = 1000) => new(new() { ImageSize = imageSize, Classes = classes, Depths = [2, 2, 2, 2], DropPath = 0.1 });

    /// <summary>Agent-PVT-S: 20.6 million parameters.</summary>
    /// <param name="imageSize">Side of the pictures, a multiple of 32.</param>
    /// <param name="classes">Number of classes.</param>
    public static AgentPVT Small(int imageSize = 224, int classes = 1000) => new(new() { ImageSize = imageSize, Classes = classes, Depths = [3, 4, 6, 3], DropPath = 0.1 });

    /// <summary>Agent-PVT-M: 35.9 million parameters, 36.1 at 256 pixels.</summary>
    /// <param name="imageSize">Side of the pictures, a multiple of 32.</param>
    /// <param name="classes">Number of classes.</param>
    public static AgentPVT Medium(int imageSize = 224, int classes = 1000) => new(new() { ImageSize = imageSize, Classes = classes, Depths = [3, 4, 18, 3], DropPath = 0.3 });

    /// <summary>Agent-PVT-L: 48.7 million parameters.</summary>
    /// <param name="imageSize">Side of the pictures, a multiple of 32.</param>
    /// <param name="classes">Number of classes.</param>
    public static AgentPVT Large(int imageSize = 224, int classes = 1000) => new(new() { ImageSize = imageSize, Classes = classes, Depths = [3, 8, 27, 3], DropPath = 0.3 });

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
        return Picture(Tokens(images), Stages - 1).MoveToOuterDisposeScope();
    }

    private int Side(int stage) => _options.ImageSize / (4 << stage);

    private NormedPatches Patches(int stage) => new(stage == 0 ? _options.Channels : _options.Widths[stage - 1], _options.Widths[stage], stage == 0 ? 4 : 2, 1e-5);

    private Parameter Positions(int stage) => Parameters.Make([1, (long)Side(stage) * Side(stage), _options.Widths[stage]], tensor => Parameters.DrawNormal(tensor));

    private ModuleList<MixerBlock> Blocks(int stage, double[] drops)
    {
        var first = _options.Depths.Take(stage).Sum();
        return nn.ModuleList([.. Enumerable.Range(0, _options.Depths[stage]).Select(block =>
        {
            var mixer = new AgentAttention2d(new()
            {
                Width = _options.Widths[stage], Heads = _options.Heads[stage], Grid = (Side(stage), Side(stage)), Agents = _options.Agents[stage], Reduction = _options.Reductions[stage], SeparateQuery = true,
            }) { Site = new(first + block, AttentionKind.Self, $"block{stage + 1}.{block}.attn"), Hooks = Hooks };
            return new MixerBlock(_options.Widths[stage], (long)(_options.Widths[stage] * _options.FeedForwardRatios[stage]), mixer, 1e-6, drops[first + block]);
        })]);
    }

    private Tensor Tokens(Tensor images)
    {
        CheckImages(images);
        AgentStages.CheckSize(images, _options.ImageSize);
        var picture = images;
        Tensor? tokens = null;
        (NormedPatches Patches, Parameter Positions, ModuleList<MixerBlock> Blocks)[] stages =
            [(patch_embed1, pos_embed1, block1), (patch_embed2, pos_embed2, block2), (patch_embed3, pos_embed3, block3), (patch_embed4, pos_embed4, block4)];
        for (var stage = 0; stage < Stages; stage++)
        {
            tokens = stages[stage].Patches.forward(picture) + stages[stage].Positions;
            foreach (var block in stages[stage].Blocks)
            {
                tokens = block.forward(tokens);
            }

            picture = Picture(tokens, stage);
        }

        return tokens!;
    }

    private Tensor Picture(Tensor tokens, int stage) => tokens.transpose(1, 2).reshape(tokens.shape[0], -1, Side(stage), Side(stage));
}
