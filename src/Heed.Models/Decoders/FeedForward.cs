using Heed.Layers;
using static TorchSharp.torch;

namespace Heed.Models.Decoders;

/// <summary>The gated feed-forward layer of the Llama block, <c>down(act(gate(x)) * up(x))</c> (arXiv 2002.05202, equation 6).</summary>
public sealed class FeedForward : nn.Module<Tensor, Tensor>
{
    private readonly Projection gate_proj;
    private readonly Projection up_proj;
    private readonly Projection down_proj;
    private readonly string _activation;

    // Held, so that no collection frees them while libtorch reads them.
    private static readonly TorchSharp.Scalar s_half = 0.5, s_one = 1, s_three = 3, s_cubic = 0.044715, s_slope = Math.Sqrt(2 / Math.PI);

    /// <summary>Makes the layer.</summary>
    /// <param name="configuration">A decoder's shape, of which widths, activation and bias are read.</param>
    /// <param name="generator">Draws the weights; null: libtorch's own.</param>
    /// <param name="initialize">Whether weights are drawn at all, or left as memory comes for a checkpoint to fill.</param>
    public FeedForward(DecoderConfiguration configuration, Generator? generator = null, bool initialize = true)
        : base(nameof(FeedForward))
    {
        ArgumentNullException.ThrowIfNull(configuration);
        var (width, inner, bias) = (configuration.HiddenSize, configuration.IntermediateSize, configuration.FeedForwardBias);
        _activation = configuration.Activation;
        gate_proj = new Projection(width, inner, bias, generator, initialize);
        up_proj = new Projection(width, inner, bias, generator, initialize);
        down_proj = new Projection(inner, width, bias, generator, initialize);
        RegisterComponents();
    }

    /// <summary>Names of the activations, as <c>config.json</c> has them.</summary>
    internal static IReadOnlyList<string> Activations { get; } = ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"];

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, default);

    /// <summary>The layer's output, with its stages shown to the model's hooks.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="place">Where the layer stands.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    public Tensor forward(Tensor input, StreamPlace place)
    {
        using var scope = NewDisposeScope();
        var gate = place.Pass(StreamPoint.Gate, gate_proj.forward(input));
        var active = place.Pass(StreamPoint.Activation, _activation switch
        {
            "silu" => nn.functional.silu(gate),
            "relu" => nn.functional.relu(gate),
            "gelu" => nn.functional.gelu(gate),
            _ => TanhGelu(gate),
        });
        var product = place.Pass(StreamPoint.Product, active * place.Pass(StreamPoint.Up, up_proj.forward(input)));
        return down_proj.forward(product).MoveToOuterDisposeScope();
    }

    private static Tensor TanhGelu(Tensor input) => input * s_half * (((input + (input.pow(s_three) * s_cubic)) * s_slope).tanh() + s_one);
}
