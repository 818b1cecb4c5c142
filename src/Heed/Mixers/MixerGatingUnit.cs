using Heed.Heads;
using Heed.Layers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The token mixer of NiNformer (arXiv 2403.02411, section 3): tokens, projected, times what a whole MLP-Mixer block makes of the same tokens. The inner block mixes with weights that do not
/// depend on the input, but as its output is a factor, the whole does. The factors are not squashed, so the product is unbounded.</summary>
/// <remarks>As a probe it shows the gate over the picture: its mean and its root mean square over the channels, and the channels that vary most over the tokens. Parameter names are the authors':
/// <c>proj</c>, <c>Mixer.token_mix.{0,2}</c>, <c>Mixer.channel_mix.{0,1}</c>.</remarks>
public sealed class MixerGatingUnit : nn.Module<Tensor, Tensor>, IMapSource
{
    private const int ChannelsShown = 4;

    private readonly Linear proj;
    private readonly InnerMixer Mixer;
    private readonly GateCombination _combination;
    private readonly (int Dim, int Tokens) _sizes;

    /// <summary>Makes the module.</summary>
    /// <param name="dim">Width d of a token, at least 1.</param>
    /// <param name="tokens">Number n of tokens, at least 1.</param>
    /// <param name="tokenHidden">Hidden width of the perceptron along the tokens, at least 1.</param>
    /// <param name="channelHidden">Hidden width of the perceptron along the width, at least 1.</param>
    /// <param name="dropout">Share of activations dropped in training, from 0 to below 1.</param>
    /// <param name="combination">The paper's product, or a sum in its place to tell what the gating itself is worth.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is below 1, or the dropout out of range.</exception>
    public MixerGatingUnit(int dim, int tokens, int tokenHidden, int channelHidden, double dropout = 0, GateCombination combination = GateCombination.Multiply)
        : base(nameof(MixerGatingUnit))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(dim, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(tokens, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(tokenHidden, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(channelHidden, 1);
        (_sizes, _combination) = ((dim, tokens), combination);
        proj = nn.Linear(dim, dim);
        Mixer = new(dim, tokens, tokenHidden, channelHidden, dropout);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>The gated tokens.</summary>
    /// <param name="input"><c>[B, n, d]</c>, already normalised.</param>
    /// <returns><c>[B, n, d]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var gate = Gate(input);
        if (Recorder is not null)
        {
            Record(gate);
        }

        var projected = proj.forward(input);
        return (_combination == GateCombination.Multiply ? projected * gate : projected + gate).MoveToOuterDisposeScope();
    }

    /// <summary>The gate: what the inner MLP-Mixer block makes of the tokens.</summary>
    /// <param name="input"><c>[B, n, d]</c>, already normalised.</param>
    /// <returns><c>[B, n, d]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public Tensor Gate(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[1] != _sizes.Tokens || input.shape[2] != _sizes.Dim)
        {
            throw new ArgumentException(
                $"The input must be [batch, {_sizes.Tokens}, {_sizes.Dim}], not [{string.Join(", ", input.shape)}]: the unit works for the number of tokens it was made for.", nameof(input));
        }

        return Mixer.forward(input);
    }

    private void Record(Tensor gate)
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        var side = (long)Math.Sqrt(_sizes.Tokens);
        var (height, width) = side * side == _sizes.Tokens ? (side, side) : (1, _sizes.Tokens);
        var channels = gate.transpose(1, 2);
        var shown = channels.var(2).mean([0L]).topk(Math.Min(ChannelsShown, _sizes.Dim)).indexes;
        var maps = cat([channels.mean([1L], keepdim: true), channels.square().mean([1L], keepdim: true).sqrt(), channels.index_select(1, shown)], 1);
        Recorder!.Record(this, "gate", maps.reshape(gate.shape[0], maps.shape[1], height, width), ["mean", "root mean square", .. shown.data<long>().Select(channel => $"channel {channel}")]);
    }

    /// <summary>An MLP-Mixer block with residuals and norms of its own.</summary>
    private sealed class InnerMixer : nn.Module<Tensor, Tensor>
    {
        private readonly NormalizedPerceptron token_mix;
        private readonly NormalizedPerceptron channel_mix;

        public InnerMixer(int dim, int tokens, int tokenHidden, int channelHidden, double dropout)
            : base(nameof(InnerMixer))
        {
            // In the authors' sequence a transposition stands between norm and perceptron, and counts.
            token_mix = new(dim, new(tokens, tokenHidden, dropout), "2");
            channel_mix = new(dim, new(dim, channelHidden, dropout), "1");
            RegisterComponents();
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            var mixed = input + token_mix.Perceptron.forward(token_mix.Norm.forward(input).transpose(1, 2)).transpose(1, 2);
            return (mixed + channel_mix.Perceptron.forward(channel_mix.Norm.forward(mixed))).MoveToOuterDisposeScope();
        }
    }

    /// <summary>A norm and a perceptron under the names that a sequence gives them.</summary>
    private sealed class NormalizedPerceptron : nn.Module
    {
        public NormalizedPerceptron(int dim, NumberedPerceptron perceptron, string name)
            : base(nameof(NormalizedPerceptron))
        {
            (Norm, Perceptron) = (nn.LayerNorm(dim), perceptron);
            register_module("0", Norm);
            register_module(name, Perceptron);
        }

        public LayerNorm Norm { get; }

        public NumberedPerceptron Perceptron { get; }
    }
}
