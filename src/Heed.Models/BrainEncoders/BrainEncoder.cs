using Heed.Heads;
using Heed.Layers;
using Heed.Models.Checkpoints;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.BrainEncoders;

/// <summary>
/// A transformer brain encoder (arXiv 2505.17329): every brain area owns a learned query that picks, picture by picture, the places of a feature map that matter for it; a linear readout turns what it gathered into the
/// responses of the area's vertices. Where a query looked is the explanation.
/// </summary>
/// <remarks>Parameter names are the reference's. What its checkpoints hold beside that is never used (self-attention among the queries, <c>norm2</c> of pre-norm decoder layers, <c>memory_proj</c>) is passed over by <see cref="LoadCheckpoint"/>. Layers of hooks count encoder layers first, then decoder layers; the decoder's sites are <see cref="AttentionKind.Cross"/>.</remarks>
public sealed class BrainEncoder : TokenBrainModel
{
    private readonly BrainEncoderOptions _options;
    private readonly Conv2d? input_proj;
    private readonly LearnedMapPositions? position;
    private readonly Embedding query_embed;
    private readonly MapTransformer transformer;

    /// <summary>Makes a model from libtorch's own generator: matrices of the transformer from Xavier's uniform distribution, queries from the standard normal one.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">Sizes do not fit together; the message says which.</exception>
    public BrainEncoder(BrainEncoderOptions options)
        : base(nameof(BrainEncoder), Valid(options), options.Width)
    {
        _options = options;
        using var scope = NewDisposeScope();
        input_proj = options.ProjectsInput ? nn.Conv2d(options.Channels, options.Width, 1) : null;
        position = options.Position == MapPosition.Learned ? new(options.Width) : null;
        query_embed = nn.Embedding(options.Queries, options.Width);
        transformer = new(options, Hooks);
        RegisterComponents();
        Parameters.Keep(this);
        if (options.Dropout > 0)
        {
            Hooks.Install(new WeightDropout(this, options.Dropout));
        }
    }

    /// <summary>The shape.</summary>
    public BrainEncoderOptions Options => _options;

    /// <summary>The sites at which the queries read the map, in order.</summary>
    public IReadOnlyList<AttentionSite> ReadingSites => transformer.ReadingSites;

    /// <inheritdoc/>
    public override BrainPrediction Forward(Tensor features, Tensor? paddingMask = null, bool withAttention = false)
    {
        CheckMap(features, _options.Channels, paddingMask);
        using var scope = NewDisposeScope();
        using var probe = withAttention ? new AttentionMapProbe(at: site => site.Kind == AttentionKind.Cross, budget: long.MaxValue) : null;
        using var watched = probe is null ? null : Hooks.Install(probe);
        var map = input_proj?.forward(features) ?? features;
        var codes = Positions(features, paddingMask).flatten(2).transpose(1, 2);
        var tokens = transformer.Forward(map.flatten(2).transpose(1, 2), codes, query_embed.weight!, paddingMask?.flatten(1));
        var (left, right) = Read(tokens);
        Tensor[] maps = probe is null ? [] : [.. ReadingSites.Select(site => probe[site].mean([1L]).MoveToOuterDisposeScope())];
        return new(left.MoveToOuterDisposeScope(), right.MoveToOuterDisposeScope(), tokens.MoveToOuterDisposeScope(), maps);
    }

    /// <summary>The codes that are added to the keys.</summary>
    /// <param name="features">Feature maps, <c>[B, C, h, w]</c>.</param>
    /// <param name="paddingMask">Places that hold no picture, boolean <c>[B, h, w]</c>; null: there are none.</param>
    /// <returns><c>[B, D, h, w]</c>, in the type of the features.</returns>
    /// <exception cref="ArgumentException">A shape does not fit, or the map has more rows or columns than learned positions know.</exception>
    public Tensor Positions(Tensor features, Tensor? paddingMask = null)
    {
        CheckMap(features, _options.Channels, paddingMask);
        using var scope = NewDisposeScope();
        var (batch, height, width) = (features.shape[0], features.shape[2], features.shape[3]);
        var codes = position is not null
            ? position.Forward(height, width).expand(batch, -1, -1, -1)
            : MapPositions.Sine(paddingMask ?? zeros(batch, height, width, dtype: ScalarType.Bool, device: features.device), _options.Width);
        return codes.to(features.dtype).MoveToOuterDisposeScope();
    }

    /// <summary>Fills the model from a checkpoint of the reference, or of Heed: all of it, or where anything does not fit, nothing.</summary>
    /// <param name="path">A file that PyTorch wrote (<c>.pth</c>), or a safetensors file.</param>
    /// <param name="key">For a file that PyTorch wrote: under which key the tensors lie; null: at the top or under a usual name.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">The file is broken, or tensors are missing, superfluous or of another shape; the message names them.</exception>
    public void LoadCheckpoint(string path, string? key = null) => NamedTensors.Load(this, NameOf, path, key);

    /// <summary>The name under which the model holds a tensor of the reference's checkpoints.</summary>
    /// <param name="stored">The name there.</param>
    /// <returns>The name here; null: the reference computes nothing with it, or it is part of the frozen backbone.</returns>
    public string? NameOf(string stored)
    {
        ArgumentNullException.ThrowIfNull(stored);
        const string decoder = "transformer.decoder.layers.";
        var isUnused = stored.StartsWith("backbone.", StringComparison.Ordinal) || stored.StartsWith("transformer.memory_proj.", StringComparison.Ordinal)
            || (stored.StartsWith(decoder, StringComparison.Ordinal) && (stored.Contains(".self_attn.", StringComparison.Ordinal) || (_options.PreNorm && stored.Contains(".norm2.", StringComparison.Ordinal))));
        return isUnused ? null : stored;
    }

    private static BrainEncoderOptions Valid(BrainEncoderOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        return options;
    }

    /// <summary>Drops attention weights in training, and scales up what is left.</summary>
    private sealed class WeightDropout(BrainEncoder model, double share) : AttentionHook
    {
        public override AttentionStages StagesAt(AttentionSite site) => model.training ? AttentionStages.Weights : AttentionStages.None;

        public override Tensor OnWeights(AttentionCall call, Tensor weights) => nn.functional.dropout(weights, share);
    }
}

/// <summary>The encoder and the decoder of a <see cref="BrainEncoder"/>, under the reference's names.</summary>
internal sealed class MapTransformer : nn.Module
{
    private readonly MapStack? encoder;
    private readonly MapStack decoder;
    private readonly int _encoderLayers;

    public MapTransformer(BrainEncoderOptions options, AttentionHooks hooks)
        : base(nameof(MapTransformer))
    {
        // Layers behind the one that is read are part of checkpoints and of no result.
        _encoderLayers = options.LayersBeforeOutput;
        encoder = options.EncoderLayers == 0 ? null
            : new([.. Enumerable.Range(0, options.EncoderLayers).Select(layer => new MapLayer(options, false, layer, layer, hooks))], options.PreNorm ? options.Width : 0);
        decoder = new([.. Enumerable.Range(0, options.DecoderLayers).Select(layer => new MapLayer(options, true, options.EncoderLayers + layer, layer, hooks))], options.Width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    public IReadOnlyList<AttentionSite> ReadingSites => [.. decoder.Layers.Select(layer => layer.Site)];

    /// <summary>The queries' tokens <c>[B, R, D]</c> from the map's <c>[B, P, D]</c>.</summary>
    public Tensor Forward(Tensor memory, Tensor codes, Tensor queries, Tensor? padding)
    {
        memory = encoder?.Forward(memory, _encoderLayers, layer => states => layer.Encode(states, codes, padding)) ?? memory;
        var (keys, asked) = (memory + codes, queries.unsqueeze(0).expand(memory.shape[0], -1, -1));
        return decoder.Forward(zeros_like(asked), decoder.Layers.Count, layer => states => layer.Decode(states, asked, keys, memory, padding));
    }
}

/// <summary>Layers, and the norm behind the last.</summary>
internal sealed class MapStack : nn.Module
{
    private readonly ModuleList<MapLayer> layers;
    private readonly LayerNorm? norm;

    public MapStack(MapLayer[] layers, int normWidth)
        : base(nameof(MapStack))
    {
        this.layers = nn.ModuleList(layers);
        norm = normWidth > 0 ? nn.LayerNorm(normWidth) : null;
        RegisterComponents();
    }

    public IReadOnlyList<MapLayer> Layers => [.. layers];

    public Tensor Forward(Tensor states, int count, Func<MapLayer, Func<Tensor, Tensor>> run)
    {
        foreach (var layer in layers.Take(count))
        {
            states = run(layer)(states);
        }

        return norm?.forward(states) ?? states;
    }
}

/// <summary>A layer of a <see cref="BrainEncoder"/>: of the encoder (self-attention among places: <c>self_attn</c>, <c>norm1</c>, <c>norm2</c>) or of the decoder (queries read places: <c>multihead_attn</c>, <c>norm1</c>, <c>norm3</c> and, post-norm,
/// <c>norm2</c>), with the perceptron <c>linear1</c>, ReLU, <c>linear2</c>.</summary>
internal sealed class MapLayer : nn.Module
{
    private readonly PackedAttention? self_attn;
    private readonly PackedAttention? multihead_attn;
    private readonly Linear linear1;
    private readonly Linear linear2;
    private readonly LayerNorm norm1;
    private readonly LayerNorm? norm2;
    private readonly LayerNorm? norm3;
    private readonly StreamPlace _place;
    private readonly bool _preNorm;
    private readonly double _dropout;

    public MapLayer(BrainEncoderOptions options, bool isDecoder, int layer, int index, AttentionHooks hooks)
        : base(nameof(MapLayer))
    {
        (_preNorm, _dropout) = (options.PreNorm, options.Dropout);
        _place = new(hooks, layer, $"transformer.{(isDecoder ? "decoder" : "encoder")}.layers.{index}");
        Site = new(layer, isDecoder ? AttentionKind.Cross : AttentionKind.Self, $"{_place.Name}.{(isDecoder ? "multihead_attn" : "self_attn")}");
        var attention = new PackedAttention(options.Width, options.Heads, Site, hooks);
        (self_attn, multihead_attn) = isDecoder ? ((PackedAttention?)null, attention) : (attention, null);
        (linear1, linear2) = (nn.Linear(options.Width, options.FeedForwardWidth), nn.Linear(options.FeedForwardWidth, options.Width));
        norm1 = nn.LayerNorm(options.Width);
        norm2 = isDecoder && _preNorm ? null : nn.LayerNorm(options.Width);
        norm3 = isDecoder ? nn.LayerNorm(options.Width) : null;
        RegisterComponents();
        Parameters.Keep(this);
        foreach (var linear in new[] { linear1, linear2 })
        {
            using var still = no_grad();
            var bound = Math.Sqrt(6.0 / (options.Width + options.FeedForwardWidth));
            linear.weight.uniform_(-bound, bound);
        }
    }

    public AttentionSite Site { get; }

    /// <summary>A layer of the encoder.</summary>
    public Tensor Encode(Tensor states, Tensor codes, Tensor? padding)
    {
        using var scope = NewDisposeScope();
        states = _place.Pass(StreamPoint.BlockInput, states);
        var input = _place.Pass(StreamPoint.AttentionInput, _preNorm ? norm1.forward(states) : states);
        var placed = input + codes;
        states = states + Attended(self_attn!, placed, placed, input, padding);
        states = _preNorm ? states + FeedForward(norm2!.forward(states)) : Then(norm1.forward(states), norm2!);
        return _place.Pass(StreamPoint.BlockOutput, states).MoveToOuterDisposeScope();
    }

    /// <summary>A layer of the decoder. The first norm stands before attention in both forms.</summary>
    public Tensor Decode(Tensor states, Tensor queries, Tensor keys, Tensor values, Tensor? padding)
    {
        using var scope = NewDisposeScope();
        states = _place.Pass(StreamPoint.BlockInput, states);
        var normal = norm1.forward(states);
        var input = _place.Pass(StreamPoint.AttentionInput, normal);
        states = (_preNorm ? states : normal) + Attended(multihead_attn!, input + queries, keys, values, padding);
        states = _preNorm ? states + FeedForward(norm3!.forward(states)) : Then(norm2!.forward(states), norm3!);
        return _place.Pass(StreamPoint.BlockOutput, states).MoveToOuterDisposeScope();
    }

    private Tensor Then(Tensor states, LayerNorm norm) => norm.forward(states + FeedForward(states));

    private Tensor Attended(PackedAttention attention, Tensor query, Tensor key, Tensor value, Tensor? padding) =>
        Dropped(_place.Pass(StreamPoint.AttentionOutput, attention.forward(query, key, value, padding)));

    private Tensor FeedForward(Tensor input)
    {
        var hidden = _place.Pass(StreamPoint.Gate, linear1.forward(_place.Pass(StreamPoint.FeedForwardInput, input)));
        hidden = _place.Pass(StreamPoint.Activation, nn.functional.relu(hidden));
        return Dropped(_place.Pass(StreamPoint.FeedForwardOutput, linear2.forward(Dropped(hidden))));
    }

    private Tensor Dropped(Tensor states) => training && _dropout > 0 ? nn.functional.dropout(states, _dropout) : states;
}
