using Heed.Heads;
using Heed.Layers;
using Heed.Models.Checkpoints;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Diffusion;

/// <summary>The heads of a block of a <see cref="DiT"/>.</summary>
/// <param name="Heads">Number of heads.</param>
/// <param name="Shared">How many of them, the first ones, every token uses.</param>
/// <param name="Routed">How many of the others a token uses.</param>
public readonly record struct BlockHeads(int Heads, int Shared, int Routed)
{
    /// <summary>The same heads for some blocks in a row.</summary>
    public static IEnumerable<BlockHeads> Repeat(int blocks, int heads, int shared, int routed) => Enumerable.Repeat(new BlockHeads(heads, shared, routed), blocks);
}

/// <summary>The shape of a <see cref="DiT"/>.</summary>
public sealed record DiTOptions
{
    /// <summary>Side of the (square) latents.</summary>
    public int InputSize { get; init; } = 32;

    /// <summary>Side of a patch.</summary>
    public int PatchSize { get; init; } = 2;

    /// <summary>Channels of a latent.</summary>
    public int Channels { get; init; } = 4;

    /// <summary>Width C of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Head dimension D: the same in every block, so that the inner width follows the number of heads.</summary>
    public required int HeadWidth { get; init; }

    /// <summary>The heads of every block.</summary>
    public required IReadOnlyList<BlockHeads> Blocks { get; init; }

    /// <summary>Hidden width of the perceptrons over the width.</summary>
    public double FeedForwardRatio { get; init; } = 4;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Probability of dropping a label in training; above 0 the table has a row for "no label", the last one.</summary>
    public double LabelDropout { get; init; } = 0.1;

    /// <summary>Whether the model predicts a variance, too: twice the channels.</summary>
    public bool LearnVariance { get; init; } = true;

    /// <summary>Width of the sinusoidal features of a time step.</summary>
    public int FrequencyWidth { get; init; } = 256;

    /// <summary>Weight of the load-balance loss, the mean over the blocks that have routed heads; it is attached to their outputs, so that a training loop need not add it.</summary>
    public double BalanceWeight { get; init; } = 0.01;
}

/// <summary>The diffusion transformer DiT with adaLN-Zero (arXiv 2212.09748), its attention a mixture of heads: MoH-DiT (arXiv 2410.11842). Head counts may differ from block to block. Parameter names are the authors'.</summary>
public sealed class DiT : nn.Module<Tensor, Tensor, Tensor, Tensor>
{
    private const double Period = 10000;
    private readonly DiTOptions _options;
    private readonly PatchEmbedding x_embedder;
    private readonly TimestepEmbedder t_embedder;
    private readonly LabelEmbedder y_embedder;
    private readonly Parameter pos_embed;
    private readonly ModuleList<DiTBlock> blocks;
    private readonly DiTFinalLayer final_layer;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">The latent does not divide into patches, a size is not positive, the width is not a multiple of four, or counts of heads do not fit together.</exception>
    public DiT(DiTOptions options)
        : base(nameof(DiT))
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.PatchSize < 1 || options.InputSize < options.PatchSize || options.InputSize % options.PatchSize != 0 || options.Channels < 1 || options.Blocks.Count < 1)
        {
            throw new ArgumentException(
                $"Latents of side {options.InputSize} must divide into patches of side {options.PatchSize}, and there must be channels and blocks ({options.Channels}, {options.Blocks.Count}).", nameof(options));
        }

        if (options.Width < 4 || options.Width % 4 != 0)
        {
            throw new ArgumentException($"The positions take a quarter of the width for the sines of a row, its cosines, and the same of a column, so that it must be a multiple of 4, not {options.Width}.", nameof(options));
        }

        if (options.FrequencyWidth < 2 || options.Classes < 1 || !(options.LabelDropout is >= 0 and < 1))
        {
            throw new ArgumentException(
                $"A DiT needs at least 2 frequencies, a class, and a label dropout from 0 to below 1, not {options.FrequencyWidth}, {options.Classes} and {options.LabelDropout}.", nameof(options));
        }

        _options = options;
        var grid = options.InputSize / options.PatchSize;
        var routed = Math.Max(1, options.Blocks.Count(block => block.Routed > 0));
        x_embedder = new(options.Channels, options.Width, options.PatchSize);
        t_embedder = new(options.FrequencyWidth, options.Width);
        y_embedder = new(options);
        pos_embed = Parameters.Make([1, (long)grid * grid, options.Width], tensor =>
        {
            using var positions = Positions(grid, options.Width);
            tensor.copy_(positions);
        });
        pos_embed.requires_grad_(false);
        blocks = nn.ModuleList([.. options.Blocks.Select((heads, layer) => new DiTBlock(options, heads, grid, options.BalanceWeight / routed, layer, Hooks))]);
        final_layer = new(options);
        RegisterComponents();
        Parameters.Keep(this);
        Initialize();
    }

    /// <summary>The shape.</summary>
    public DiTOptions Options => _options;

    /// <summary>The hooks of every attention call in the model. Sites are named <c>blocks.{i}.attn</c>.</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>The blocks.</summary>
    public IReadOnlyList<DiTBlock> Blocks => [.. blocks];

    /// <summary>MoH-DiT-S/2 with 90 % of the heads, for latents of 32 x 32 x 4.</summary>
    public static DiTOptions S2Percent90 => Size(384, 64, [.. BlockHeads.Repeat(8, 6, 3, 2), .. BlockHeads.Repeat(4, 6, 6, 0)]);

    /// <summary>MoH-DiT-S/2 with 75 % of the heads.</summary>
    public static DiTOptions S2Percent75 => Size(384, 64, [
        .. BlockHeads.Repeat(2, 6, 2, 1), .. BlockHeads.Repeat(4, 6, 3, 1), .. BlockHeads.Repeat(4, 6, 3, 2), .. BlockHeads.Repeat(2, 6, 6, 0)]);

    /// <summary>MoH-DiT-B/2 with 90 % of the heads.</summary>
    public static DiTOptions B2Percent90 => Size(768, 64, [.. BlockHeads.Repeat(5, 12, 6, 4), .. BlockHeads.Repeat(5, 12, 7, 4), .. BlockHeads.Repeat(2, 12, 12, 0)]);

    /// <summary>MoH-DiT-B/2 with 75 % of the heads.</summary>
    public static DiTOptions B2Percent75 => Size(768, 64, [.. BlockHeads.Repeat(2, 12, 4, 2), .. BlockHeads.Repeat(8, 12, 6, 3), .. BlockHeads.Repeat(2, 12, 12, 0)]);

    /// <summary>MoH-DiT-L/2 with 90 % of the heads.</summary>
    public static DiTOptions L2Percent90 => Size(1024, 64, [.. BlockHeads.Repeat(8, 8, 8, 0), .. BlockHeads.Repeat(8, 16, 16, 0), .. BlockHeads.Repeat(8, 24, 16, 3)]);

    /// <summary>MoH-DiT-L/2 with 75 % of the heads.</summary>
    public static DiTOptions L2Percent75 => Size(1024, 64, [.. BlockHeads.Repeat(8, 8, 8, 0), .. BlockHeads.Repeat(8, 16, 8, 4), .. BlockHeads.Repeat(8, 24, 12, 4)]);

    /// <summary>MoH-DiT-XL/2 with 90 % of the heads.</summary>
    public static DiTOptions XL2Percent90 => Size(1152, 72, [.. BlockHeads.Repeat(9, 8, 8, 0), .. BlockHeads.Repeat(10, 16, 16, 0), .. BlockHeads.Repeat(9, 24, 16, 3)]);

    /// <summary>MoH-DiT-XL/2 with 75 % of the heads.</summary>
    public static DiTOptions XL2Percent75 => Size(1152, 72, [.. BlockHeads.Repeat(9, 8, 8, 0), .. BlockHeads.Repeat(10, 16, 10, 2), .. BlockHeads.Repeat(9, 24, 14, 2)]);

    /// <summary>Fills the model from a checkpoint in the authors' names: all of it, or where anything does not fit, nothing.</summary>
    /// <param name="path">A file that PyTorch wrote (<c>.pt</c>), or a safetensors file.</param>
    /// <param name="key">For a file that PyTorch wrote: under which key the tensors lie, for example <c>ema</c>; null: see <see cref="TorchCheckpointReader"/>.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">The file is broken, or tensors are missing, superfluous or of another shape; the message names the first of each. The model is as it was.</exception>
    public void LoadCheckpoint(string path, string? key = null) => NamedTensors.Load(this, name => name, path, key);

    /// <summary>What the model predicts of noisy latents.</summary>
    /// <param name="latents"><c>[B, channels, side, side]</c>.</param>
    /// <param name="times">Diffusion time steps <c>[B]</c>, possibly fractional.</param>
    /// <param name="labels">Classes, int64 <c>[B]</c>; the number of classes stands for no label.</param>
    /// <returns><c>[B, channels, side, side]</c>, twice the channels where it predicts a variance.</returns>
    /// <exception cref="ArgumentException">A tensor has another shape.</exception>
    public override Tensor forward(Tensor latents, Tensor times, Tensor labels)
    {
        ArgumentNullException.ThrowIfNull(latents);
        ArgumentNullException.ThrowIfNull(times);
        ArgumentNullException.ThrowIfNull(labels);
        var side = _options.InputSize;
        if (latents.dim() != 4 || latents.shape[1] != _options.Channels || latents.shape[2] != side || latents.shape[3] != side)
        {
            throw new ArgumentException($"Latents must be [batch, {_options.Channels}, {side}, {side}], not [{string.Join(", ", latents.shape)}].", nameof(latents));
        }

        if (times.dim() != 1 || times.shape[0] != latents.shape[0] || labels.dim() != 1 || labels.shape[0] != latents.shape[0] || labels.dtype != ScalarType.Int64)
        {
            throw new ArgumentException(
                $"There must be a time step and an int64 label for each of {latents.shape[0]} latents, not [{string.Join(", ", times.shape)}] and {labels.dtype} [{string.Join(", ", labels.shape)}].", nameof(labels));
        }

        using var scope = NewDisposeScope();
        var condition = t_embedder.forward(times) + y_embedder.forward(labels);
        var tokens = x_embedder.forward(latents) + pos_embed;
        foreach (var block in blocks)
        {
            tokens = block.forward(tokens, condition);
        }

        var (patch, grid) = (_options.PatchSize, side / _options.PatchSize);
        var patches = final_layer.forward(tokens, condition).view(latents.shape[0], grid, grid, patch, patch, -1);
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(latents.shape[0], -1, side, side).MoveToOuterDisposeScope();
    }

    /// <summary>Fixed positions <c>[1, grid^2, width]</c>: the first half of the channels from the column, the second from the row, each sines, then cosines.</summary>
    internal static Tensor Positions(int grid, int width)
    {
        var quarter = width / 4;
        var values = new float[grid * grid * width];
        for (var place = 0; place < grid * grid; place++)
        {
            for (var index = 0; index < quarter; index++)
            {
                var frequency = Math.Pow(Period, -(double)index / quarter);
                for (var half = 0; half < 2; half++)
                {
                    var angle = (half == 0 ? place % grid : place / grid) * frequency;
                    values[(place * width) + (2 * half * quarter) + index] = (float)Math.Sin(angle);
                    values[(place * width) + (((2 * half) + 1) * quarter) + index] = (float)Math.Cos(angle);
                }
            }
        }

        return tensor(values, [1, grid * grid, width]);
    }

    internal static Tensor Modulate(Tensor tokens, Tensor shift, Tensor scale)
    {
        using Scalar one = 1;
        return (tokens * (scale.unsqueeze(1) + one)) + shift.unsqueeze(1);
    }

    private static DiTOptions Size(int width, int headWidth, BlockHeads[] heads) => new() { Width = width, HeadWidth = headWidth, Blocks = heads };

    // As the authors do: Xavier for linear maps and the patches, small normal weights for the conditions, and zeros wherever a block or the output would speak at first.
    private void Initialize()
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        foreach (var (name, parameter) in named_parameters())
        {
            if (name.Contains("adaLN_modulation", StringComparison.Ordinal) || name.StartsWith("final_layer", StringComparison.Ordinal) || name.EndsWith("bias", StringComparison.Ordinal))
            {
                nn.init.zeros_(parameter);
            }
            else if (name.StartsWith("t_embedder", StringComparison.Ordinal) || name.StartsWith("y_embedder", StringComparison.Ordinal))
            {
                nn.init.normal_(parameter, 0, 0.02);
            }
            else if (name.EndsWith("proj.weight", StringComparison.Ordinal) && parameter.dim() == 4)
            {
                var matrix = parameter.view(parameter.shape[0], -1);
                nn.init.xavier_uniform_(matrix);
            }
            else if (parameter.dim() == 2)
            {
                nn.init.xavier_uniform_(parameter);
            }
        }
    }

    /// <summary>A perceptron over cosines and sines of the time step.</summary>
    private sealed class TimestepEmbedder : nn.Module<Tensor, Tensor>
    {
        private readonly int _frequencies;
        private readonly Sequential mlp;

        public TimestepEmbedder(int frequencies, int width)
            : base(nameof(TimestepEmbedder))
        {
            _frequencies = frequencies;
            mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width));
            RegisterComponents();
        }

        public override Tensor forward(Tensor times)
        {
            using var scope = NewDisposeScope();
            // In float64: at large steps the rounding of a frequency to float32 would show.
            var half = _frequencies / 2;
            var frequencies = Enumerable.Range(0, half).Select(index => Math.Pow(Period, -(double)index / half)).ToArray();
            var angles = times.to(float64).unsqueeze(1) * tensor(frequencies, dtype: float64, device: times.device);
            var features = nn.functional.pad(cat([angles.cos(), angles.sin()], -1), [0, _frequencies % 2]);
            return mlp.forward(features.to(mlp.parameters().First().dtype)).MoveToOuterDisposeScope();
        }
    }

    /// <summary>A table of labels, with a row for none where labels are dropped in training.</summary>
    private sealed class LabelEmbedder : nn.Module<Tensor, Tensor>
    {
        private readonly int _classes;
        private readonly double _dropout;
        private readonly Embedding embedding_table;

        public LabelEmbedder(DiTOptions options)
            : base(nameof(LabelEmbedder))
        {
            (_classes, _dropout) = (options.Classes, options.LabelDropout);
            embedding_table = nn.Embedding(options.Classes + (options.LabelDropout > 0 ? 1 : 0), options.Width);
            RegisterComponents();
        }

        public override Tensor forward(Tensor labels)
        {
            using var scope = NewDisposeScope();
            if (training && _dropout > 0)
            {
                using Scalar share = _dropout, none = (long)_classes;
                labels = labels.masked_fill(rand(labels.shape, device: labels.device).lt(share), none);
            }

            return embedding_table.forward(labels).MoveToOuterDisposeScope();
        }
    }
}

/// <summary>A block of a <see cref="DiT"/>: attention and perceptron, each shifted, scaled and gated by the condition.</summary>
public sealed class DiTBlock : nn.Module<Tensor, Tensor, Tensor>
{
    private readonly LayerNorm norm1;
    private readonly MixtureOfHeadAttention attn;
    private readonly LayerNorm norm2;
    private readonly GeluFeedForward mlp;
    private readonly Sequential adaLN_modulation;

    internal DiTBlock(DiTOptions options, BlockHeads heads, int grid, double balanceWeight, int layer, AttentionHooks hooks)
        : base(nameof(DiTBlock))
    {
        norm1 = nn.LayerNorm(options.Width, 1e-6, elementwise_affine: false);
        attn = new(new()
        {
            Width = options.Width,
            Heads = heads.Heads,
            HeadWidth = options.HeadWidth,
            SharedHeads = heads.Shared,
            RoutedHeads = heads.Routed,
            BalanceWeight = balanceWeight,
            Grid = (grid, grid),
        }, new(layer, AttentionKind.Self, $"blocks.{layer}.attn"))
        {
            Hooks = hooks,
        };
        norm2 = nn.LayerNorm(options.Width, 1e-6, elementwise_affine: false);
        mlp = new(options.Width, (long)(options.Width * options.FeedForwardRatio), tanhGelu: true);
        adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(options.Width, 6 * options.Width));
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The attention.</summary>
    public MixtureOfHeadAttention Attention => attn;

    /// <summary>The block's output.</summary>
    /// <param name="tokens"><c>[B, N, C]</c>.</param>
    /// <param name="condition"><c>[B, C]</c>.</param>
    public override Tensor forward(Tensor tokens, Tensor condition)
    {
        using var scope = NewDisposeScope();
        var parts = adaLN_modulation.forward(condition).chunk(6, 1);
        tokens = tokens + (attn.forward(DiT.Modulate(norm1.forward(tokens), parts[0], parts[1])) * parts[2].unsqueeze(1));
        return (tokens + (mlp.forward(DiT.Modulate(norm2.forward(tokens), parts[3], parts[4])) * parts[5].unsqueeze(1))).MoveToOuterDisposeScope();
    }
}

/// <summary>Norm, shift and scale by the condition, and a linear map to patches.</summary>
internal sealed class DiTFinalLayer : nn.Module<Tensor, Tensor, Tensor>
{
    private readonly LayerNorm norm_final;
    private readonly Linear linear;
    private readonly Sequential adaLN_modulation;

    public DiTFinalLayer(DiTOptions options)
        : base(nameof(DiTFinalLayer))
    {
        norm_final = nn.LayerNorm(options.Width, 1e-6, elementwise_affine: false);
        linear = nn.Linear(options.Width, (long)options.PatchSize * options.PatchSize * options.Channels * (options.LearnVariance ? 2 : 1));
        adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(options.Width, 2 * options.Width));
        RegisterComponents();
        Parameters.Keep(this);
    }

    public override Tensor forward(Tensor tokens, Tensor condition)
    {
        using var scope = NewDisposeScope();
        var parts = adaLN_modulation.forward(condition).chunk(2, 1);
        return linear.forward(DiT.Modulate(norm_final.forward(tokens), parts[0], parts[1])).MoveToOuterDisposeScope();
    }
}
