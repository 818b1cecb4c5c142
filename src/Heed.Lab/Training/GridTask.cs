using Heed.Heads;
using Heed.Masks;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Training;

/// <summary>Pictures made of nothing but numbers: a disc of one striped texture on the ground of another, 32 x 32, values from -1 to 1. To take the noise off a stripe one must look along it.</summary>
internal static class GridTextures
{
    /// <summary>Pixels of a side.</summary>
    public const int Side = 32;

    /// <summary>Standard deviation of the noise.</summary>
    public const double Noise = 0.7;

    /// <summary>A batch of clean and of noisy pictures, <c>[B, side, side]</c>; the same seed gives the same batch.</summary>
    public static (Tensor Clean, Tensor Noisy) Batch(int count, ulong seed)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(seed);
        Tensor Uniform(double from, double to) => (rand([count, 1, 1], generator: generator) * (to - from)) + from;
        var (y, x) = (arange(Side, dtype: float32).view(1, Side, 1), arange(Side, dtype: float32).view(1, 1, Side));
        Tensor Stripes()
        {
            var (angle, frequency, phase) = (Uniform(0, Math.PI), Uniform(0.4, 1.2), Uniform(0, 2 * Math.PI));
            return (((x * angle.cos()) + (y * angle.sin())) * frequency + phase).sin();
        }

        var (row, column, radius) = (Uniform(8, Side - 8), Uniform(8, Side - 8), Uniform(5, 10));
        var inside = (y - row).square() + (x - column).square() < radius.square();
        var clean = where(inside, Stripes(), Stripes());
        return (clean.MoveToOuterDisposeScope(), (clean + (randn(clean.shape, generator: generator) * Noise)).MoveToOuterDisposeScope());
    }
}

/// <summary>A small transformer that takes noise off pictures: tokens of 2 x 2 pixels on a grid of 16 x 16, four layers of attention on it.</summary>
internal sealed class GridDenoiser : nn.Module<Tensor, Tensor>
{
    private const int Patch = 2, Tokens = GridTextures.Side / Patch, Width = 64, Heads = 4, Layers = 4;

    private readonly Linear embed;
    private readonly Parameter position;
    private readonly ModuleList<Layer> layers;
    private readonly Linear head;

    /// <summary>Makes the model from libtorch's own generator.</summary>
    /// <param name="attention"><c>full</c>, or <c>gna:w=4,stride=2,dilation=1</c> with one number for both axes or two with an x between them.</param>
    /// <exception cref="ArgumentException">There is no such attention, or a window does not fit the grid.</exception>
    public GridDenoiser(string attention)
        : base(nameof(GridDenoiser))
    {
        var (window, stride, dilation) = Knobs(attention);
        // Checks what the layers would find out at the first picture only.
        Neighborhood.Of([Tokens, Tokens], window, stride, dilation);
        embed = nn.Linear(Patch * Patch, Width);
        position = new Parameter(randn(1, Tokens, Tokens, Width).mul_(0.02));
        layers = new([.. Enumerable.Range(0, Layers).Select(_ => new Layer(window, stride, dilation))]);
        head = nn.Linear(Width, Patch * Patch);
        RegisterComponents();
    }

    /// <summary>Clean pictures from noisy ones, <c>[B, side, side]</c>.</summary>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var patches = input.view(-1, Tokens, Patch, GridTextures.Side / Patch * Patch).reshape([input.shape[0], Tokens, Patch, Tokens, Patch]).permute(0, 1, 3, 2, 4).reshape(input.shape[0], Tokens, Tokens, Patch * Patch);
        var hidden = embed.forward(patches) + position;
        foreach (var layer in layers)
        {
            hidden = layer.forward(hidden);
        }

        return head.forward(hidden).reshape([input.shape[0], Tokens, Tokens, Patch, Patch]).permute(0, 1, 3, 2, 4).reshape(input.shape).MoveToOuterDisposeScope();
    }

    private static (long[] Window, long[] Stride, long[] Dilation) Knobs(string attention)
    {
        var specification = Specification.Parse(attention);
        var knobs = specification.Name switch
        {
            "full" => ([Neighborhood.WholeAxis], [1], [1]),
            "gna" => (specification.Lengths("w", 2, allowsWhole: true) ?? [4], specification.Lengths("stride", 1) ?? [1], specification.Lengths("dilation", 1) ?? [1]),
            _ => throw new ArgumentException($"The recipe trains with full or gna:w=4,stride=2,dilation=1, not '{attention}'."),
        };
        specification.RefuseUnread();
        return knobs;
    }

    private sealed class Layer : nn.Module<Tensor, Tensor>
    {
        private readonly LayerNorm norm1;
        private readonly NeighborhoodAttention2d attention;
        private readonly LayerNorm norm2;
        private readonly Linear up;
        private readonly Linear down;

        public Layer(long[] window, long[] stride, long[] dilation)
            : base(nameof(Layer))
        {
            norm1 = nn.LayerNorm(Width);
            attention = new(Width, Heads, window, stride, dilation);
            norm2 = nn.LayerNorm(Width);
            up = nn.Linear(Width, 2 * Width);
            down = nn.Linear(2 * Width, Width);
            RegisterComponents();
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            var hidden = input + attention.forward(norm1.forward(input));
            return (hidden + down.forward(nn.functional.gelu(up.forward(norm2.forward(hidden))))).MoveToOuterDisposeScope();
        }
    }
}

/// <summary>Training and measuring the denoiser, for the recipe and the reproduction alike.</summary>
internal static class GridTraining
{
    private const int Batch = 16, HeldOut = 64;

    // Far from every training seed, which counts up from a multiple of a million.
    private const ulong HeldOutSeed = 999_999_999;

    public static TrainingPlan PlanOf(long steps) => new() { Steps = steps, WarmupSteps = Math.Min(20, steps / 10), LearningRate = 3e-3, WeightDecay = 0.01, Beta2 = 0.99, ValidateEvery = Math.Max(10, steps / 4) };

    /// <summary>A loop over fresh pictures.</summary>
    public static TrainingLoop Loop(GridDenoiser model, string attention, long steps, int seed, string? checkpoint = null) => new(
        model, PlanOf(steps), $"recipe=grid\nattention={attention}\nseed={seed}\n{TrainingCheckpoint.StepsLine(steps)}", checkpoint)
    {
        Loss = step =>
        {
            var (clean, noisy) = GridTextures.Batch(Batch, ((ulong)seed * 1_000_000) + (ulong)step);
            return nn.functional.mse_loss(model.forward(noisy), clean);
        },
        Items = _ => Batch,
        Validation = () => Decibels(model),
    };

    /// <summary>Peak signal-to-noise ratio on held-out pictures, in decibels (peak to peak is 2).</summary>
    public static double Decibels(GridDenoiser model)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (clean, noisy) = GridTextures.Batch(HeldOut, HeldOutSeed);
        return 10 * Math.Log10(4 / nn.functional.mse_loss(model.forward(noisy), clean).item<float>());
    }
}
