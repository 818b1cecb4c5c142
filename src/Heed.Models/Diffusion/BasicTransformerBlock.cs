using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Diffusion;

/// <summary>The transformer block of Stable Diffusion 1.x (arXiv 2112.10752): self-attention, cross-attention to the text, gated perceptron, each behind a norm and beside the identity. Parameters <c>norm1</c>, <c>attn1</c>,
/// <c>norm2</c>, <c>attn2</c>, <c>norm3</c>, <c>ff.net.0.proj</c>, <c>ff.net.2</c>, as the checkpoints have them under <c>transformer_blocks.{i}</c>.</summary>
public sealed class BasicTransformerBlock : nn.Module<Tensor, Tensor?, Tensor>
{
    private readonly LayerNorm norm1;
    private readonly CrossAttention attn1;
    private readonly LayerNorm norm2;
    private readonly CrossAttention attn2;
    private readonly LayerNorm norm3;
    private readonly GatedFeedForward ff;

    /// <summary>Makes a block.</summary>
    /// <param name="width">Width C of the tokens.</param>
    /// <param name="heads">Heads.</param>
    /// <param name="headWidth">Width of a head.</param>
    /// <param name="contextWidth">Width of the text's tokens; 0: <c>attn2</c> is self-attention, too.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public BasicTransformerBlock(int width, int heads, int headWidth, int contextWidth = 0)
        : base(nameof(BasicTransformerBlock))
    {
        (attn1, attn2) = (new(width, heads, headWidth), new(width, heads, headWidth, contextWidth));
        (norm1, norm2, norm3) = (nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width));
        ff = new(width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The self-attention.</summary>
    public CrossAttention SelfAttention => attn1;

    /// <summary>The attention to the context.</summary>
    public CrossAttention ContextAttention => attn2;

    /// <summary>Merges tokens in this block; null: nobody does. Set by <see cref="AgentEdit"/>.</summary>
    internal AgentEdit? Edit { get; set; }

    /// <summary>The block's output.</summary>
    /// <param name="input"><c>[B, N, C]</c>, a grid row by row.</param>
    /// <param name="context"><c>[B, M, context width]</c>; null: the tokens themselves.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    public override Tensor forward(Tensor input, Tensor? context = null)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();
        using var step = Edit?.Plan(input);
        input = input + Branch(norm1.forward(input), step, step?.MergesSelf, (tokens, agents) => attn1.forward(tokens, null, agents, step?.Reading));
        input = input + Branch(norm2.forward(input), step, step?.MergesContext, (tokens, agents) => attn2.forward(tokens, context, agents, step?.Reading));
        input = input + Branch(norm3.forward(input), step, step?.MergesFeedForward, (tokens, _) => ff.forward(tokens));
        return input.MoveToOuterDisposeScope();
    }

    private static Tensor Branch(Tensor tokens, AgentEdit.BlockStep? step, bool? merges, Func<Tensor, Tensor?, Tensor> layer) =>
        merges == true ? step!.Merge.Unmerge(layer(step.Merge.Merge(tokens), step.Merge.MergeAgents(tokens))) : layer(tokens, null);
}

/// <summary>A perceptron whose hidden units are gated by GELU (arXiv 2002.05202), hidden width 4 C.</summary>
internal sealed class GatedFeedForward : nn.Module<Tensor, Tensor>
{
    private readonly Sequential net;

    public GatedFeedForward(int width)
        : base(nameof(GatedFeedForward))
    {
        net = nn.Sequential(new GatedUnits(width, 4 * width), nn.Dropout(0), nn.Linear(4 * width, width));
        RegisterComponents();
        Parameters.Keep(this);
    }

    public override Tensor forward(Tensor input) => net.forward(input);

    private sealed class GatedUnits : nn.Module<Tensor, Tensor>
    {
        private readonly Linear proj;

        public GatedUnits(int width, int hidden)
            : base(nameof(GatedUnits))
        {
            proj = nn.Linear(width, 2 * hidden);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            var halves = proj.forward(input).chunk(2, -1);
            return (halves[0] * nn.functional.gelu(halves[1])).MoveToOuterDisposeScope();
        }
    }
}
