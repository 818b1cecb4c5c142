using Heed.Layers;
using Heed.Models.Checkpoints;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.VideoTransformers;

/// <summary>The video diffusion transformer of Wan 2.1, text to video (arXiv 2503.20314): predicts the flow from noisy latents, a time step and a prompt's embeddings. Parameter names are those of diffusers, so that its
/// checkpoints load as they are.</summary>
public sealed class WanTransformer : nn.Module
{
    private const string ConfigurationFile = "config.json";
    private const string WeightsStem = "diffusion_pytorch_model";

    private readonly Conv3d patch_embedding;
    private readonly WanConditionEmbedder condition_embedder;
    private readonly ModuleList<WanBlock> blocks;
    private readonly Projection proj_out;
    private readonly Parameter scale_shift_table;
    private (VideoGrid Grid, ScalarType Type, PairRotaryTables Tables)? _rotary;

    /// <summary>Makes a model with random weights.</summary>
    /// <param name="configuration">Its shape.</param>
    /// <param name="seed">Seed of the weights.</param>
    /// <exception cref="ArgumentException">The shape is impossible.</exception>
    public WanTransformer(WanConfiguration configuration, int seed = 0)
        : this(configuration, seed, initialize: true)
    {
    }

    private WanTransformer(WanConfiguration configuration, int seed, bool initialize)
        : base(nameof(WanTransformer))
    {
        ArgumentNullException.ThrowIfNull(configuration);
        configuration.Validate();
        Configuration = configuration;
        using var generator = new Generator((ulong)seed);
        var (width, patch) = (configuration.Width, configuration.PatchSize);
        patch_embedding = nn.Conv3d(configuration.InputChannels, width, (patch.Frames, patch.Height, patch.Width), (patch.Frames, patch.Height, patch.Width));
        condition_embedder = new(configuration, generator, initialize);
        blocks = new([.. Enumerable.Range(0, configuration.Layers).Select(layer => new WanBlock(configuration, layer, Hooks, generator, initialize))]);
        proj_out = new(width, (long)configuration.OutputChannels * patch.Frames * patch.Height * patch.Width, true, generator, initialize);
        scale_shift_table = WanBlock.Table(2, width, generator);
        if (initialize)
        {
            using var quiet = no_grad();
            patch_embedding.weight.normal_(0, 1 / Math.Sqrt(configuration.InputChannels * patch.Frames * patch.Height * patch.Width), generator);
            patch_embedding.bias!.zero_();
        }

        RegisterComponents();
    }

    /// <summary>The model's shape.</summary>
    public WanConfiguration Configuration { get; }

    /// <summary>The hooks of its attention. Sites are named <c>blocks.0.attn1</c> (self) and <c>blocks.0.attn2</c> (cross).</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>The blocks.</summary>
    public IReadOnlyList<WanBlock> Blocks => [.. blocks];

    /// <summary>Loads a diffusers folder: <c>config.json</c> and <c>diffusion_pytorch_model.safetensors</c> or its index and shards.</summary>
    /// <param name="folder">The folder (of the transformer, not of the whole pipeline).</param>
    /// <param name="type">The type to compute in.</param>
    /// <returns>The model in evaluation mode.</returns>
    /// <exception cref="FileNotFoundException">The folder has no configuration or no weights.</exception>
    /// <exception cref="InvalidDataException">A file is broken, the model is of another kind, or a tensor is missing, superfluous or of another shape; the message names it.</exception>
    public static WanTransformer Load(string folder, ScalarType type = ScalarType.Float32)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        var path = Path.Combine(folder, ConfigurationFile);
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"{folder} is not a folder of a video transformer: it has no {ConfigurationFile}.", path);
        }

        var configuration = WanConfiguration.Load(path);
        using var checkpoint = new ShardedCheckpoint(folder, WeightsStem);
        WanTransformer? model = null;
        try
        {
            model = new WanTransformer(configuration, seed: 0, initialize: false);
            model.to(type);
            var wanted = model.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter, StringComparer.Ordinal);
            if (wanted.Keys.FirstOrDefault(name => !checkpoint.Contains(name)) is { } missing)
            {
                throw new InvalidDataException($"The weights in {folder} lack the tensor '{missing}'.");
            }

            if (checkpoint.Names.FirstOrDefault(name => !wanted.ContainsKey(name)) is { } superfluous)
            {
                throw new InvalidDataException($"The weights in {folder} have the tensor '{superfluous}', which a model of this configuration does not have.");
            }

            foreach (var (name, parameter) in wanted)
            {
                if (!checkpoint.Entry(name).Shape.SequenceEqual(parameter.shape))
                {
                    throw new InvalidDataException(
                        $"The tensor '{name}' in {folder} is [{string.Join(", ", checkpoint.Entry(name).Shape)}]; [{string.Join(", ", parameter.shape)}] was expected.");
                }

                checkpoint.ReadInto(name, parameter);
            }

            model.eval();
            return model;
        }
        catch (Exception error)
        {
            model?.Dispose();
            if (error is ArgumentException)
            {
                throw new InvalidDataException($"{folder} is not a usable folder of a video transformer: {error.Message}", error);
            }

            throw;
        }
    }

    /// <summary>Saves the model as a folder that <see cref="Load"/> and diffusers read. Every file appears whole or not at all.</summary>
    /// <param name="folder">The folder; made if it does not exist. Its files of the same names are replaced.</param>
    /// <exception cref="IOException">The disk is full or the folder cannot be written.</exception>
    public void Save(string folder)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        Directory.CreateDirectory(folder);
        var tensors = named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal);
        SafetensorsWriter.Write(Path.Combine(folder, $"{WeightsStem}.safetensors"), tensors, new Dictionary<string, string> { ["format"] = "pt" }, ScalarType.Float32);
        AtomicFile.WriteText(Path.Combine(folder, ConfigurationFile), Configuration.ToJson() + "\n");
    }

    /// <summary>The grid of the tokens that latents become.</summary>
    /// <param name="latents"><c>[B, C, F, H, W]</c>.</param>
    /// <exception cref="ArgumentException">The latents have another number of dimensions or channels, or do not divide into patches.</exception>
    public VideoGrid GridOf(Tensor latents)
    {
        ArgumentNullException.ThrowIfNull(latents);
        var patch = Configuration.PatchSize;
        var shape = latents.shape;
        if (shape.Length != 5 || shape[1] != Configuration.InputChannels || shape[2] % patch.Frames != 0 || shape[3] % patch.Height != 0 || shape[4] % patch.Width != 0)
        {
            throw new ArgumentException(
                $"Latents are [B, {Configuration.InputChannels}, frames, height, width] with frames, height and width in patches of {patch.Frames} x {patch.Height} x {patch.Width}; "
                + $"[{string.Join(", ", shape)}] were given.", nameof(latents));
        }

        return new(shape[2] / patch.Frames, shape[3] / patch.Height, shape[4] / patch.Width);
    }

    /// <summary>The prediction.</summary>
    /// <param name="latents"><c>[B, C, F, H, W]</c>.</param>
    /// <param name="timestep">The time step of each item, <c>[B]</c> or <c>[1]</c>, 0 to 1000.</param>
    /// <param name="prompt">The prompt's embeddings, <c>[B, T, text width]</c> or <c>[1, T, text width]</c> for all.</param>
    /// <returns><c>[B, C, F, H, W]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit together.</exception>
    public Tensor forward(Tensor latents, Tensor timestep, Tensor prompt)
    {
        ArgumentNullException.ThrowIfNull(timestep);
        ArgumentNullException.ThrowIfNull(prompt);
        using var scope = NewDisposeScope();
        var grid = GridOf(latents);
        var batch = latents.shape[0];
        if (timestep.dim() != 1 || (timestep.shape[0] != batch && timestep.shape[0] != 1) || prompt.dim() != 3 || (prompt.shape[0] != batch && prompt.shape[0] != 1)
            || prompt.shape[2] != Configuration.TextWidth)
        {
            throw new ArgumentException(
                $"Beside {batch} latents, time steps are [{batch}] and prompts [{batch}, T, {Configuration.TextWidth}], or one for all; [{string.Join(", ", timestep.shape)}] and "
                + $"[{string.Join(", ", prompt.shape)}] were given.", nameof(prompt));
        }

        var rotary = Rotary(grid, latents.dtype);
        var hidden = patch_embedding.forward(latents).flatten(2).transpose(1, 2);
        var (time, modulation, text) = condition_embedder.forward(timestep.to(latents.dtype), prompt);
        foreach (var block in blocks)
        {
            hidden = block.forward(hidden, text, modulation, rotary, grid);
        }

        var table = (scale_shift_table + time.unsqueeze(1)).unbind(1);
        var output = proj_out.forward(WanBlock.Modulate(hidden, table[0].unsqueeze(1), table[1].unsqueeze(1), Configuration.Epsilon));
        var (patch, channels) = (Configuration.PatchSize, (long)Configuration.OutputChannels);
        return output.reshape([batch, grid.Frames, grid.Height, grid.Width, patch.Frames, patch.Height, patch.Width, channels]).permute(0, 7, 1, 4, 2, 5, 3, 6)
            .reshape(batch, channels, latents.shape[2], latents.shape[3], latents.shape[4]).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing && _rotary is { } last)
        {
            last.Tables.Cosine.Dispose();
            last.Tables.Sine.Dispose();
            _rotary = null;
        }

        base.Dispose(disposing);
    }

    private PairRotaryTables Rotary(VideoGrid grid, ScalarType type)
    {
        if (_rotary is not { } last || (last.Grid, last.Type) != (grid, type))
        {
            _rotary?.Tables.Cosine.Dispose();
            _rotary?.Tables.Sine.Dispose();
            var tables = PairRotaryTables.Of(grid, Configuration.HeadWidth, type);
            tables.Cosine.DetachFromDisposeScope();
            tables.Sine.DetachFromDisposeScope();
            _rotary = last = (grid, type, tables);
        }

        return last.Tables;
    }
}

/// <summary>A block: self-attention, cross-attention to the prompt and a feed-forward layer; the first and the last are modulated by the time step.</summary>
public sealed class WanBlock : nn.Module
{
    private readonly WanAttention attn1;
    private readonly WanAttention attn2;
    private readonly LayerNorm norm2;
    private readonly WanFeedForward ffn;
    private readonly Parameter scale_shift_table;
    private readonly double _epsilon;

    internal WanBlock(WanConfiguration configuration, int layer, AttentionHooks hooks, Generator generator, bool initialize)
        : base(nameof(WanBlock))
    {
        var (heads, headWidth) = (configuration.Heads, configuration.HeadWidth);
        _epsilon = configuration.Epsilon;
        attn1 = new(heads, headWidth, _epsilon, new(layer, AttentionKind.Self, $"blocks.{layer}.attn1"), hooks, generator, initialize);
        attn2 = new(heads, headWidth, _epsilon, new(layer, AttentionKind.Cross, $"blocks.{layer}.attn2"), hooks, generator, initialize);
        norm2 = nn.LayerNorm(configuration.Width, _epsilon);
        ffn = new(configuration.Width, configuration.FeedForwardWidth, generator, initialize);
        scale_shift_table = Table(6, configuration.Width, generator);
        RegisterComponents();
    }

    /// <summary>Self-attention.</summary>
    public WanAttention SelfAttention => attn1;

    /// <summary>Cross-attention to the prompt.</summary>
    public WanAttention CrossAttention => attn2;

    /// <summary>The block's output.</summary>
    /// <param name="hidden"><c>[B, N, C]</c>.</param>
    /// <param name="text"><c>[B or 1, T, C]</c>.</param>
    /// <param name="modulation">Six vectors of the time step, <c>[B or 1, 6, C]</c>: shift, scale and gate of self-attention and of the feed-forward layer.</param>
    /// <param name="rotary">Positions of the tokens.</param>
    /// <param name="grid">The grid of the tokens.</param>
    public Tensor forward(Tensor hidden, Tensor text, Tensor modulation, PairRotaryTables rotary, VideoGrid grid)
    {
        using var scope = NewDisposeScope();
        var parts = (scale_shift_table + modulation).chunk(6, 1);
        hidden = hidden + (attn1.forward(Modulate(hidden, parts[0], parts[1], _epsilon), null, rotary, grid) * parts[2]);
        hidden = hidden + attn2.forward(norm2.forward(hidden), text, null, grid);
        hidden = hidden + (ffn.forward(Modulate(hidden, parts[3], parts[4], _epsilon)) * parts[5]);
        return hidden.MoveToOuterDisposeScope();
    }

    internal static Parameter Table(long rows, long width, Generator generator)
    {
        var table = new Parameter(randn([1, rows, width], generator: generator).mul_(1 / Math.Sqrt(width)));
        table.DetachFromDisposeScope();
        return table;
    }

    /// <summary>Layer norm without parameters, scaled and shifted.</summary>
    internal static Tensor Modulate(Tensor hidden, Tensor shift, Tensor scale, double epsilon)
    {
        using Scalar one = 1;
        return (nn.functional.layer_norm(hidden, [hidden.shape[^1]], eps: epsilon) * scale.add(one)) + shift;
    }
}

/// <summary>Two projections with a GELU between them.</summary>
internal sealed class WanFeedForward : nn.Module<Tensor, Tensor>
{
    private readonly ModuleList<nn.Module<Tensor, Tensor>> net;

    public WanFeedForward(long width, long inner, Generator generator, bool initialize)
        : base(nameof(WanFeedForward))
    {
        // Published weights have a dropout in the middle.
        net = new(new Inner(width, inner, generator, initialize), nn.Identity(), new Projection(inner, width, true, generator, initialize));
        RegisterComponents();
    }

    public override Tensor forward(Tensor input) => net[2].forward(net[0].forward(input));

    private sealed class Inner : nn.Module<Tensor, Tensor>
    {
        private readonly Projection proj;

        public Inner(long width, long inner, Generator generator, bool initialize)
            : base(nameof(Inner))
        {
            proj = new(width, inner, true, generator, initialize);
            RegisterComponents();
        }

        public override Tensor forward(Tensor input) => WanConditionEmbedder.TanhGelu(proj.forward(input));
    }
}

/// <summary>What the blocks know of the time step and the prompt.</summary>
internal sealed class WanConditionEmbedder : nn.Module
{
    private readonly WanTwoLayers time_embedder;
    private readonly Projection time_proj;
    private readonly WanTwoLayers text_embedder;
    private readonly int _frequencyWidth;

    public WanConditionEmbedder(WanConfiguration configuration, Generator generator, bool initialize)
        : base(nameof(WanConditionEmbedder))
    {
        _frequencyWidth = configuration.FrequencyWidth;
        time_embedder = new(_frequencyWidth, configuration.Width, input => nn.functional.silu(input), generator, initialize);
        time_proj = new(configuration.Width, 6L * configuration.Width, true, generator, initialize);
        text_embedder = new(configuration.TextWidth, configuration.Width, TanhGelu, generator, initialize);
        RegisterComponents();
    }

    /// <summary>The time step's embedding <c>[B, C]</c>, its six vectors <c>[B, 6, C]</c>, and the prompt <c>[B, T, C]</c>.</summary>
    public (Tensor Time, Tensor Modulation, Tensor Text) forward(Tensor timestep, Tensor prompt)
    {
        var half = _frequencyWidth / 2;
        var frequencies = tensor(Enumerable.Range(0, half).Select(i => Math.Exp(-Math.Log(10000) * i / half)).ToArray(), dtype: float64, device: timestep.device);
        var angles = timestep.to(float64).unsqueeze(-1) * frequencies;
        var time = time_embedder.forward(cat([angles.cos(), angles.sin()], -1).to(prompt.dtype));
        return (time, time_proj.forward(nn.functional.silu(time)).reshape(time.shape[0], 6, -1), text_embedder.forward(prompt));
    }

    /// <summary>GELU by tanh, as the published weights were trained with. Scalars are held: TorchSharp may free a temporary one while libtorch still reads it.</summary>
    internal static Tensor TanhGelu(Tensor input)
    {
        using var scope = NewDisposeScope();
        using Scalar cubic = 0.044715, slope = Math.Sqrt(2 / Math.PI), one = 1, half = 0.5;
        return (input + (input * input * input).mul(cubic)).mul(slope).tanh().add(one).mul(input).mul(half).MoveToOuterDisposeScope();
    }
}

/// <summary>Two projections with an activation between them, named as embedders are.</summary>
internal sealed class WanTwoLayers : nn.Module<Tensor, Tensor>
{
    private readonly Projection linear_1;
    private readonly Projection linear_2;
    private readonly Func<Tensor, Tensor> _activation;

    public WanTwoLayers(long inputs, long width, Func<Tensor, Tensor> activation, Generator generator, bool initialize)
        : base(nameof(WanTwoLayers))
    {
        _activation = activation;
        linear_1 = new(inputs, width, true, generator, initialize);
        linear_2 = new(width, width, true, generator, initialize);
        RegisterComponents();
    }

    public override Tensor forward(Tensor input) => linear_2.forward(_activation(linear_1.forward(input)));
}
