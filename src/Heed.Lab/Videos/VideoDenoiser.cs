using Heed.Layers;
using Heed.Heads;
using Heed.Masks;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Videos;

/// <summary>Attention of a layer over the tokens of a video: query, key and value <c>[B, H, N, D]</c> in raster order and the layer's index give <c>[B, H, N, D]</c>.</summary>
public delegate Tensor VideoAttention(Tensor query, Tensor key, Tensor value, int layer);

/// <summary>A small transformer that denoises clips of <see cref="MovingDiscs"/> by flow matching: patches of 2 x 2 pixels of a frame are the tokens (8 x 8 x 8 of them), and every token attends to the tokens of all frames.</summary>
public sealed class VideoDenoiser : nn.Module<Tensor, Tensor, Tensor>
{
    /// <summary>Layers.</summary>
    public const int Layers = 3;

    /// <summary>Heads of a layer.</summary>
    public const int Heads = 4;

    /// <summary>Tokens along time, down and to the right.</summary>
    public const int Grid = 8;

    private const int Width = 64;
    private const int Patch = 2;
    private const int PatchValues = MovingDiscs.Channels * Patch * Patch;

    private readonly Linear embed;
    private readonly Parameter positions;
    private readonly Sequential time;
    private readonly ModuleList<Layer> layers;
    private readonly LayerNorm norm;
    private readonly Linear output;

    /// <summary>Makes a model with random weights.</summary>
    /// <param name="attention">The attention of its layers.</param>
    /// <param name="seed">Seed of the weights.</param>
    public VideoDenoiser(VideoAttention attention, int seed)
        : base(nameof(VideoDenoiser))
    {
        ArgumentNullException.ThrowIfNull(attention);
        using var scope = NewDisposeScope();
        manual_seed(seed);
        embed = nn.Linear(PatchValues, Width);
        positions = new Parameter((randn(1, Grid * Grid * Grid, Width) * 0.1).MoveToOuterDisposeScope());
        time = nn.Sequential(("inner", nn.Linear(Width, Width)), ("act", nn.SiLU()), ("outer", nn.Linear(Width, 2 * Width)));
        layers = new(Enumerable.Range(0, Layers).Select(index => new Layer(attention, index)).ToArray());
        norm = nn.LayerNorm(Width);
        output = nn.Linear(Width, PatchValues);
        positions.DetachFromDisposeScope();
        RegisterComponents();
    }

    /// <summary>Number of parameters.</summary>
    public long ParameterCount => parameters().Sum(parameter => parameter.numel());

    /// <summary>The velocity from clip to noise.</summary>
    /// <param name="input">Noisy clips <c>[B, frames, channels, side, side]</c>.</param>
    /// <param name="share">Share of the noise in each, <c>[B]</c>, 0 to 1.</param>
    public override Tensor forward(Tensor input, Tensor share)
    {
        using var scope = NewDisposeScope();
        var batch = input.shape[0];
        long[] cut = [batch, Grid, MovingDiscs.Channels, Grid, Patch, Grid, Patch];
        var tokens = embed.forward(input.view(cut).permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, Grid * Grid * Grid, PatchValues)) + positions;
        var frequencies = (arange(Width / 2, dtype: float32) * (-Math.Log(1000) / (Width / 2))).exp() * 100;
        var angles = share.unsqueeze(1) * frequencies;
        var moments = time.forward(cat([angles.sin(), angles.cos()], 1)).unsqueeze(1).chunk(2, -1);
        foreach (var layer in layers)
        {
            tokens = layer.forward(tokens, moments[0], moments[1]);
        }

        var patches = output.forward(norm.forward(tokens)).view(batch, Grid, Grid, Grid, MovingDiscs.Channels, Patch, Patch);
        return patches.permute(0, 1, 4, 2, 5, 3, 6).reshape(input.shape).MoveToOuterDisposeScope();
    }

    /// <summary>The flow-matching loss: noise and clip are mixed, <c>(1 - t) clip + t noise</c>, and the model tells the velocity <c>noise - clip</c>.</summary>
    /// <param name="clips">Clips.</param>
    /// <param name="seed">Seed of noise and shares.</param>
    public Tensor Loss(Tensor clips, int seed)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)seed);
        var share = rand([clips.shape[0]], generator: generator);
        var noise = randn(clips.shape, generator: generator);
        var wide = share.view(-1, 1, 1, 1, 1);
        return (forward((clips * (1 - wide)) + (noise * wide), share) - (noise - clips)).square().mean().MoveToOuterDisposeScope();
    }

    private sealed class Layer : nn.Module<Tensor, Tensor, Tensor, Tensor>
    {
        private readonly LayerNorm norm1;
        private readonly LayerNorm norm2;
        private readonly Linear to_q;
        private readonly Linear to_k;
        private readonly Linear to_v;
        private readonly Linear to_out;
        private readonly RmsNorm norm_q;
        private readonly RmsNorm norm_k;
        private readonly Sequential feed;
        private readonly VideoAttention _attention;
        private readonly int _index;

        public Layer(VideoAttention attention, int index)
            : base(nameof(Layer))
        {
            (_attention, _index) = (attention, index);
            (norm1, norm2, norm_q, norm_k) = (nn.LayerNorm(Width), nn.LayerNorm(Width), new(Width), new(Width));
            (to_q, to_k, to_v, to_out) = (nn.Linear(Width, Width), nn.Linear(Width, Width), nn.Linear(Width, Width), nn.Linear(Width, Width));
            feed = nn.Sequential(("up", nn.Linear(Width, 4 * Width)), ("act", nn.GELU()), ("down", nn.Linear(4 * Width, Width)));
            RegisterComponents();
        }

        public override Tensor forward(Tensor input, Tensor scale, Tensor shift)
        {
            using var scope = NewDisposeScope();
            var normal = (norm1.forward(input) * (1 + scale)) + shift;
            Tensor Split(Tensor tensor) => tensor.unflatten(2, [Heads, Width / Heads]).transpose(1, 2);
            var attended = _attention(Split(norm_q.forward(to_q.forward(normal))), Split(norm_k.forward(to_k.forward(normal))), Split(to_v.forward(normal)), _index);
            var sum = input + to_out.forward(attended.transpose(1, 2).flatten(2));
            return (sum + feed.forward((norm2.forward(sum) * (1 + scale)) + shift)).MoveToOuterDisposeScope();
        }
    }
}

/// <summary>The attention of a <see cref="VideoDenoiser"/> by its name on the command line.</summary>
public static class VideoAttentions
{
    /// <summary>How they are written.</summary>
    public const string Usage = "full, moba:block=32,k=3, vmoba:threshold=0.25,scope=head,cycle=123 or psa:block=32,full=0.4,half=0.5,quarter=0.6,eighth=0.8";

    /// <summary>Reads a specification.</summary>
    /// <param name="text">For example <c>vmoba:threshold=0.25</c>; see <see cref="Usage"/>.</param>
    /// <param name="kept">Told the share of (query, block) pairs, or of the work, that every call keeps; null: nobody.</param>
    /// <exception cref="ArgumentException">There is no such attention, or an option is wrong.</exception>
    public static VideoAttention Of(string text, Action<double>? kept = null)
    {
        var specification = Specification.Parse(text);
        var attention = specification.Name switch
        {
            "full" => (query, key, value, _) => Attention.Compute(query, key, value),
            "moba" => Blocks(
                new()
                {
                    BlockSize = specification.Integer("block", 32, 1), TopK = specification.Integer("k", 3, 1), Mode = BlockSelectionMode.TopK, Scope = BlockSelectionScope.QueryHead,
                },
                kept),
            "vmoba" => VideoBlocks(specification, kept),
            "psa" => Pyramid(specification, kept),
            _ => throw new ArgumentException($"There is no video attention '{specification.Name}'; there are: {Usage}."),
        };
        specification.RefuseUnread();
        return attention;
    }

    private static VideoAttention Blocks(MixtureOfBlocksOptions options, Action<double>? kept) => (query, key, value, _) =>
    {
        using var selection = MixtureOfBlocks.Select(query, key, options);
        kept?.Invoke(selection.KeptShare);
        return MixtureOfBlockAttention.Apply(query, key, value, selection);
    };

    private static VideoAttention VideoBlocks(Specification specification, Action<double>? kept)
    {
        const int grid = VideoDenoiser.Grid;
        var cycle = (specification.Text("cycle") ?? "123").Select(digit => digit - '0').ToArray();
        var layer = new VMoBALayerOptions
        {
            Width = 1, Heads = 1, Resolution = [grid, grid, grid], TemporalBlock = 0.5, SpatialBlock = (2, 2), SpatioTemporalBlock = (2, 4, 4), Cycle = cycle,
        };
        var topK = specification.Integer("k", 0, 0);
        var options = new MixtureOfBlocksOptions
        {
            BlockSize = 1, Threshold = specification.Number("threshold", 0.25), TopK = Math.Max(1, topK), Mode = topK > 0 ? BlockSelectionMode.TopK : BlockSelectionMode.Threshold,
            Scope = specification.Text("scope") switch
            {
                null or "head" => BlockSelectionScope.HeadGlobal,
                "query" => BlockSelectionScope.QueryHead,
                var other => throw new ArgumentException($"scope of 'vmoba' is head (all pairs of a head compete) or query (the blocks of one query do), not '{other}'."),
            },
        };
        options.Validate();
        var partitions = Enumerable.Range(0, cycle.Length).Select(index => VMoBALayer.PartitionOf(index, layer)).ToArray();
        return (query, key, value, index) =>
        {
            using var scope = NewDisposeScope();
            var partition = partitions[index % partitions.Length];
            var output = Blocks(options with { BlockSize = partition.BlockSize }, kept)(partition.Apply(query, 2), partition.Apply(key, 2), partition.Apply(value, 2), index);
            return partition.Restore(output, 2).MoveToOuterDisposeScope();
        };
    }

    private static VideoAttention Pyramid(Specification specification, Action<double>? kept)
    {
        var block = specification.Integer("block", 32, 8);
        double[] ends = [0, specification.Number("full", 0.4), specification.Number("half", 0.5), specification.Number("quarter", 0.6), specification.Number("eighth", 0.8), 1];
        var options = new PyramidOptions
        {
            QueryBlock = block, KeyBlock = block, Tile = block, Ranking = PyramidRanking.Cumulative,
            Levels = [.. new[] { 1, 2, 4, 8, 0 }.Select((level, index) => new PyramidLevel(level, ends[index], ends[index + 1]))],
        };
        var module = new PyramidSparseAttention(options, GilbertCurve.Order(VideoDenoiser.Grid, VideoDenoiser.Grid, VideoDenoiser.Grid));
        return (query, key, value, _) =>
        {
            var (output, level) = module.forward(query, key, value, null, null);
            using (level)
            {
                kept?.Invoke(PyramidLevels.Density(level));
            }

            return output;
        };
    }
}
