using Heed.Heads;
using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.VisionLanguage;

/// <summary>CLIP's vision transformer (arXiv 2103.00020): a class token before the patches, a norm before the first layer, pre-norm layers. Parameters have the names of the transformers library:
/// <c>vision_model.embeddings.{class_embedding,patch_embedding.weight,position_embedding.weight}</c>, <c>vision_model.pre_layrnorm</c> (as it is spelt there),
/// <c>vision_model.encoder.layers.{i}.{layer_norm1,self_attn.{q,k,v,out}_proj,layer_norm2,mlp.fc1,mlp.fc2}</c>, <c>vision_model.post_layernorm</c>.</summary>
public sealed class ClipVisionEncoder : nn.Module<Tensor, Tensor>
{
    private readonly VisionBody vision_model;

    /// <summary>Makes an encoder with random weights, drawn from libtorch's generator.</summary>
    /// <param name="configuration">Its shape.</param>
    /// <exception cref="ArgumentException">The configuration makes no model.</exception>
    public ClipVisionEncoder(ClipVisionConfiguration configuration)
        : base(nameof(ClipVisionEncoder))
    {
        ArgumentNullException.ThrowIfNull(configuration);
        configuration.Validate();
        Configuration = configuration;
        vision_model = new VisionBody(configuration, Hooks);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The encoder's shape.</summary>
    public ClipVisionConfiguration Configuration { get; }

    /// <summary>The hooks of all its attention calls, whose tokens are the class token and the patches row by row. Sites are named <c>vision_model.encoder.layers.{i}.self_attn</c>.</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>The tokens after the last layer, before the final norm.</summary>
    /// <param name="images"><c>[B, channels, side, side]</c>.</param>
    /// <returns><c>[B, 1 + patches, C]</c>, the class token first.</returns>
    /// <exception cref="ArgumentException">The pictures have another size.</exception>
    public override Tensor forward(Tensor images) => Tokens(images);

    /// <summary>The tokens after some layer, before the final norm.</summary>
    /// <param name="images"><c>[B, channels, side, side]</c>.</param>
    /// <param name="layer">How many layers they have been through, 0 to the number of layers; from the end where negative: -1 is after the last, -2 (LLaVA's choice) after the last but one. Later layers are not run.</param>
    /// <returns><c>[B, 1 + patches, C]</c>, the class token first.</returns>
    /// <exception cref="ArgumentException">The pictures have another size.</exception>
    /// <exception cref="ArgumentOutOfRangeException">There is no such layer.</exception>
    public Tensor Tokens(Tensor images, int layer = -1)
    {
        ArgumentNullException.ThrowIfNull(images);
        var (channels, side) = (Configuration.Channels, Configuration.ImageSize);
        if (images.dim() != 4 || images.shape[1] != channels || images.shape[2] != side || images.shape[3] != side)
        {
            throw new ArgumentException($"The vision encoder reads pictures [batch, {channels}, {side}, {side}], not [{string.Join(", ", images.shape)}]: resize them.", nameof(images));
        }

        return vision_model.Tokens(images, LayersUntil(layer));
    }

    /// <summary>What CLIP compares with texts before projecting it: the class token after all layers, normalised.</summary>
    /// <param name="tokens">What <see cref="forward(Tensor)"/> gave.</param>
    /// <returns><c>[B, C]</c>.</returns>
    public Tensor Pool(Tensor tokens) => vision_model.Pool(tokens);

    /// <summary>How many layers a feature layer, counted as in <see cref="Tokens"/>, stands for.</summary>
    internal int LayersUntil(int layer)
    {
        var layers = layer < 0 ? Configuration.Layers + 1 + layer : layer;
        return layers >= 0 && layers <= Configuration.Layers
            ? layers
            : throw new ArgumentOutOfRangeException(nameof(layer), $"The vision encoder has {Configuration.Layers} layers: features are taken after layer {-Configuration.Layers - 1} to {Configuration.Layers}, not {layer}.");
    }

    /// <summary>What checkpoints call <c>vision_model</c>.</summary>
    private sealed class VisionBody : nn.Module
    {
        private readonly PatchEmbeddings embeddings;
        private readonly LayerNorm pre_layrnorm;
        private readonly LayerStack encoder;
        private readonly LayerNorm post_layernorm;

        public VisionBody(ClipVisionConfiguration configuration, AttentionHooks hooks)
            : base(nameof(VisionBody))
        {
            embeddings = new(configuration);
            pre_layrnorm = nn.LayerNorm(configuration.HiddenSize, configuration.NormEpsilon);
            encoder = new(configuration, hooks);
            post_layernorm = nn.LayerNorm(configuration.HiddenSize, configuration.NormEpsilon);
            RegisterComponents();
        }

        public Tensor Tokens(Tensor images, int layers)
        {
            using var scope = NewDisposeScope();
            var tokens = pre_layrnorm.forward(embeddings.forward(images));
            foreach (var layer in encoder.Layers.Take(layers))
            {
                tokens = layer.forward(tokens);
            }

            return tokens.MoveToOuterDisposeScope();
        }

        public Tensor Pool(Tensor tokens)
        {
            using var scope = NewDisposeScope();
            return post_layernorm.forward(tokens.select(1, 0)).MoveToOuterDisposeScope();
        }
    }

    private sealed class PatchEmbeddings : nn.Module<Tensor, Tensor>
    {
        private readonly Parameter class_embedding;
        private readonly Conv2d patch_embedding;
        private readonly PositionEmbedding position_embedding;

        public PatchEmbeddings(ClipVisionConfiguration configuration)
            : base(nameof(PatchEmbeddings))
        {
            var deviation = 1 / Math.Sqrt(configuration.HiddenSize);
            class_embedding = Parameters.Make([configuration.HiddenSize], tensor => Parameters.DrawNormal(tensor, deviation));
            patch_embedding = nn.Conv2d(configuration.Channels, configuration.HiddenSize, configuration.PatchSize, stride: configuration.PatchSize, bias: false);
            position_embedding = new(1 + configuration.Patches, configuration.HiddenSize, deviation);
            RegisterComponents();
        }

        public override Tensor forward(Tensor images)
        {
            using var scope = NewDisposeScope();
            var patches = patch_embedding.forward(images).flatten(2).transpose(1, 2);
            return (cat([class_embedding.expand(images.shape[0], 1, -1), patches], 1) + position_embedding.Weight).MoveToOuterDisposeScope();
        }
    }

    private sealed class PositionEmbedding : nn.Module
    {
        private readonly Parameter weight;

        public PositionEmbedding(int tokens, int width, double deviation)
            : base(nameof(PositionEmbedding))
        {
            weight = Parameters.Make([tokens, width], tensor => Parameters.DrawNormal(tensor, deviation));
            RegisterComponents();
        }

        public Parameter Weight => weight;
    }

    private sealed class LayerStack : nn.Module
    {
        private readonly ModuleList<ClipLayer> layers;

        public LayerStack(ClipVisionConfiguration configuration, AttentionHooks hooks)
            : base(nameof(LayerStack))
        {
            layers = new([.. Enumerable.Range(0, configuration.Layers).Select(layer => new ClipLayer(configuration, layer, hooks))]);
            RegisterComponents();
        }

        public IEnumerable<ClipLayer> Layers => layers;
    }

    private sealed class ClipLayer : nn.Module<Tensor, Tensor>
    {
        private readonly LayerNorm layer_norm1;
        private readonly MultiHeadAttention self_attn;
        private readonly LayerNorm layer_norm2;
        private readonly Perceptron mlp;
        private readonly StreamPlace _place;

        public ClipLayer(ClipVisionConfiguration configuration, int layer, AttentionHooks hooks)
            : base(nameof(ClipLayer))
        {
            var name = $"vision_model.encoder.layers.{layer}";
            _place = new(hooks, layer, name);
            layer_norm1 = nn.LayerNorm(configuration.HiddenSize, configuration.NormEpsilon);
            self_attn = new(
                new()
                {
                    Width = configuration.HiddenSize, Heads = configuration.Heads, Names = new() { Query = "q_proj", Key = "k_proj", Value = "v_proj", Output = "out_proj" },
                },
                new AttentionSite(layer, AttentionKind.Self, $"{name}.self_attn"))
            {
                Hooks = hooks,
            };
            layer_norm2 = nn.LayerNorm(configuration.HiddenSize, configuration.NormEpsilon);
            mlp = new(configuration);
            RegisterComponents();
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            input = _place.Pass(StreamPoint.BlockInput, input);
            var attended = input + _place.Pass(StreamPoint.AttentionOutput, self_attn.forward(_place.Pass(StreamPoint.AttentionInput, layer_norm1.forward(input))));
            var fed = _place.Pass(StreamPoint.FeedForwardOutput, mlp.forward(_place.Pass(StreamPoint.FeedForwardInput, layer_norm2.forward(attended)), _place));
            return _place.Pass(StreamPoint.BlockOutput, attended + fed).MoveToOuterDisposeScope();
        }
    }

    private sealed class Perceptron : nn.Module
    {
        private readonly Projection fc1;
        private readonly Projection fc2;
        private readonly bool _quick;

        public Perceptron(ClipVisionConfiguration configuration)
            : base(nameof(Perceptron))
        {
            fc1 = new(configuration.HiddenSize, configuration.IntermediateSize, true);
            fc2 = new(configuration.IntermediateSize, configuration.HiddenSize, true);
            _quick = configuration.Activation == "quick_gelu";
            RegisterComponents();
        }

        public Tensor forward(Tensor input, StreamPlace place)
        {
            using var scope = NewDisposeScope();
            using TorchSharp.Scalar steepness = 1.702;
            var hidden = place.Pass(StreamPoint.Gate, fc1.forward(input));
            var active = place.Pass(StreamPoint.Activation, _quick ? hidden * (hidden * steepness).sigmoid() : nn.functional.gelu(hidden));
            return fc2.forward(active).MoveToOuterDisposeScope();
        }
    }
}
