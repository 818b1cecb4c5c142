using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Texts;

/// <summary>The shape of a <see cref="CausalTransformer"/>.</summary>
public sealed record CausalTransformerOptions
{
    /// <summary>Number of different tokens.</summary>
    public required int Vocabulary { get; init; }

    /// <summary>Most tokens read at once.</summary>
    public required int Length { get; init; }

    /// <summary>Width C of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Number of blocks.</summary>
    public required int Depth { get; init; }

    /// <summary>Hidden width of the perceptrons; 0: blocks without perceptron.</summary>
    public required int FeedForwardWidth { get; init; }

    /// <summary>Whether learned positions are added to the tokens.</summary>
    public bool Positions { get; init; } = true;

    /// <summary>Epsilon of the norms.</summary>
    public double NormEpsilon { get; init; } = 1e-5;
}

/// <summary>Where a token mixer stands in a <see cref="CausalTransformer"/>.</summary>
/// <param name="Layer">The block, from 0.</param>
/// <param name="Width">Width C of a token.</param>
/// <param name="Length">Most tokens read at once.</param>
/// <param name="Hooks">The model's hooks.</param>
public readonly record struct CausalMixerPlace(int Layer, int Width, int Length, AttentionHooks Hooks)
{
    /// <summary>The site of the mixer's attention calls.</summary>
    public AttentionSite Site => new(Layer, AttentionKind.Self, $"blocks.{Layer}.attn");
}

/// <summary>A causal language model in pre-norm form whose token mixer is exchangeable, the counterpart of <see cref="Images.VisionTransformer"/>. Parameter names: <c>embedding</c>, <c>positions</c>,
/// <c>blocks.{i}.norm1|attn|norm2|mlp.fc1|mlp.fc2</c>, <c>norm</c>, <c>head</c>.</summary>
public sealed class CausalTransformer : LanguageModel
{
    private readonly Embedding embedding;
    private readonly Parameter? positions;
    private readonly ModuleList<MixerBlock> blocks;
    private readonly LayerNorm norm;
    private readonly Projection head;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <param name="mixer">Makes the token mixer of a block, <c>[B, N, C]</c> to <c>[B, N, C]</c>, in which no token may see a later one.</param>
    /// <exception cref="ArgumentException">A size is not positive.</exception>
    public CausalTransformer(CausalTransformerOptions options, Func<CausalMixerPlace, nn.Module<Tensor, Tensor>> mixer)
        : base(nameof(CausalTransformer), (options ?? throw new ArgumentNullException(nameof(options))).Vocabulary, options.Length)
    {
        ArgumentNullException.ThrowIfNull(mixer);
        if (options.Width < 1 || options.Depth < 1 || options.FeedForwardWidth < 0)
        {
            throw new ArgumentException($"Width and depth must be positive and the perceptron's width not negative, not {options.Width}, {options.Depth} and {options.FeedForwardWidth}.", nameof(options));
        }

        Options = options;
        embedding = nn.Embedding(options.Vocabulary, options.Width);
        nn.init.normal_(embedding.weight!, 0, Projection.InitialDeviation);
        positions = options.Positions ? Parameters.Make([options.Length, options.Width], tensor => tensor.normal_(0, Projection.InitialDeviation)) : null;
        blocks = nn.ModuleList([.. Enumerable.Range(0, options.Depth).Select(layer =>
            new MixerBlock(options.Width, options.FeedForwardWidth, mixer(new(layer, options.Width, options.Length, Hooks)), options.NormEpsilon) { Place = new(Hooks, layer, $"blocks.{layer}") })]);
        norm = nn.LayerNorm(options.Width, options.NormEpsilon);
        head = new(options.Width, options.Vocabulary, hasBias: true);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public CausalTransformerOptions Options { get; }

    /// <summary>The blocks.</summary>
    public IReadOnlyList<MixerBlock> Blocks => [.. blocks];

    /// <inheritdoc/>
    public override Tensor? ExtraLoss() => blocks.Select(block => (block.Mixer as IExtraLoss)?.ExtraLoss()).OfType<Tensor>().Aggregate((Tensor?)null, (sum, part) => sum is null ? part : sum + part);

    /// <inheritdoc/>
    public override Tensor forward(Tensor tokens) => forward(tokens, null);

    /// <summary>The logits, and on request what leads to them.</summary>
    /// <param name="tokens">int64 <c>[B, N]</c>.</param>
    /// <param name="hiddenStates">Receives the output of every block <c>[B, N, C]</c>, which belong to the caller's dispose scope; null: not wanted.</param>
    /// <returns><c>[B, N, V]</c>.</returns>
    /// <exception cref="ArgumentException">They are not int64 <c>[B, N]</c> with N from 1 to the model's length.</exception>
    public Tensor forward(Tensor tokens, ICollection<Tensor>? hiddenStates)
    {
        CheckTokens(tokens);
        using var scope = NewDisposeScope();
        var states = embedding.forward(tokens);
        states = positions is null ? states : states + positions.narrow(0, 0, tokens.shape[1]);
        foreach (var block in blocks)
        {
            states = block.forward(states);
            hiddenStates?.Add(states.alias().MoveToOuterDisposeScope());
        }

        return head.forward(norm.forward(states)).MoveToOuterDisposeScope();
    }
}
