using Heed.Layers;
using Heed.Mixers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Diffusion;

/// <summary>How an attention layer of a latent-diffusion model reads through agents without having been trained for it (arXiv 2312.08874, AgentSD).</summary>
/// <param name="BroadcastExponent">k2: the second product is scaled by <c>scale^k2</c>, more than the <c>scale</c> of the first: at a width of 64, by 0.536 and not 0.125.</param>
/// <param name="ValueShortcut">How much of each token's own value is added.</param>
public sealed record AgentReading(double BroadcastExponent = 0.3, double ValueShortcut = 0.075);

/// <summary>Attention of latent-diffusion models (arXiv 2112.10752), with the parameter names of Stable Diffusion's checkpoints: <c>to_q</c>, <c>to_k</c>, <c>to_v</c> without biases, <c>to_out.0</c>.</summary>
public sealed class CrossAttention : nn.Module<Tensor, Tensor>
{
    private readonly Linear to_q;
    private readonly Linear to_k;
    private readonly Linear to_v;
    private readonly Sequential to_out;
    private readonly int _heads;
    private readonly double _scale;

    /// <summary>Makes a layer.</summary>
    /// <param name="width">Width of the tokens.</param>
    /// <param name="heads">Heads, from 1.</param>
    /// <param name="headWidth">Width of a head, from 1.</param>
    /// <param name="contextWidth">Width of the context's tokens; 0: that of the tokens.</param>
    /// <param name="scale">Factor of the products; null: 1 / sqrt(head width).</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public CrossAttention(int width, int heads, int headWidth, int contextWidth = 0, double? scale = null)
        : base(nameof(CrossAttention))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(heads, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(headWidth, 1);
        ArgumentOutOfRangeException.ThrowIfNegative(contextWidth);
        var (inner, source) = (heads * headWidth, contextWidth == 0 ? width : contextWidth);
        (_heads, _scale) = (heads, scale ?? 1 / Math.Sqrt(headWidth));
        (to_q, to_k, to_v) = (nn.Linear(width, inner, hasBias: false), nn.Linear(source, inner, hasBias: false), nn.Linear(source, inner, hasBias: false));
        to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(0));
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>Where the layer stands in its model.</summary>
    public AttentionSite Site { get; set; }

    /// <summary>The model's hooks; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    /// <summary>Whether attention ran through agents in the latest call.</summary>
    public bool UsedAgents { get; private set; }

    /// <summary>Self-attention.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>Attention over a context, perhaps through agents.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="context"><c>[B, M, context width]</c>; null: the tokens themselves.</param>
    /// <param name="agents"><c>[B, n, C]</c>, tokens that are projected as queries are. They are used where 2 n is below N; null: none.</param>
    /// <param name="reading">How agents are read; null: as published.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">A value shortcut is asked for where the context has another length than the tokens, or shapes do not fit.</exception>
    public Tensor forward(Tensor input, Tensor? context, Tensor? agents = null, AgentReading? reading = null)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();
        var source = context ?? input;
        var (query, key, value) = (Split(to_q.forward(input)), Split(to_k.forward(source)), Split(to_v.forward(source)));
        UsedAgents = agents is not null && 2 * agents.shape[1] < input.shape[1];
        Tensor mixed;
        if (UsedAgents)
        {
            reading ??= new();
            mixed = AgentAttention.Compute(query, Split(to_q.forward(agents!)), key, value, null, null, _scale, Math.Pow(_scale, reading.BroadcastExponent), Site, Hooks);
            if (reading.ValueShortcut != 0)
            {
                if (source.shape[1] != input.shape[1])
                {
                    throw new ArgumentException(
                        $"A token's own value can be added only where there are as many values as tokens, not {source.shape[1]} and {input.shape[1]}: set {nameof(AgentReading.ValueShortcut)} to 0 for cross-attention.",
                        nameof(context));
                }

                using Scalar shortcut = reading.ValueShortcut;
                mixed = mixed + (value * shortcut);
            }
        }
        else
        {
            mixed = Attention.Compute(query, key, value, new() { Scale = _scale }, Site, Hooks);
        }

        return to_out.forward(mixed.transpose(1, 2).reshape(input.shape[0], input.shape[1], -1)).MoveToOuterDisposeScope();
    }

    private Tensor Split(Tensor tokens) => tokens.view(tokens.shape[0], tokens.shape[1], _heads, -1).transpose(1, 2);
}
