using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Exact reductions of a stack of attention layers (arXiv 2410.13732, section 4).</summary>
public static class AttentionReduction
{
    /// <summary>Collapses a stack of single-head attention layers, one upon the other with nothing between: the value and output matrices of earlier layers move into the similarities of later ones on both sides, and
    /// one matrix at the end maps what all gathered. Parameters of S layers of width C fall from 4 S C^2 to (S + 1) C^2; the output stays.</summary>
    /// <param name="layers">The layers, first to last, at least one.</param>
    /// <returns>A module of its own: it shares no parameter with the layers.</returns>
    /// <exception cref="ArgumentException">There is no layer, a layer has several heads, or widths or causality differ.</exception>
    public static CollapsedAttention CollapseStack(IReadOnlyList<ReducedAttention> layers)
    {
        ArgumentNullException.ThrowIfNull(layers);
        if (layers.Count == 0)
        {
            throw new ArgumentException("There is no layer to collapse: give at least one.", nameof(layers));
        }

        var (width, causal) = (layers[0].Options.Width, layers[0].Options.Attention.Causal);
        for (var i = 0; i < layers.Count; i++)
        {
            var options = layers[i].Options;
            if (options.Heads != 1)
            {
                throw new ArgumentException(
                    $"Layer {i} has {options.Heads} heads, and a stack collapses with one only: every head would need a similarity matrix of its own, as wide as the tokens.", nameof(layers));
            }

            if (options.Width != width || options.Attention.Causal != causal)
            {
                throw new ArgumentException($"The layers of a stack have one width and one causality; layer {i} has the width {options.Width} and is {options.Attention.Causal}, layer 0 {width} and {causal}.", nameof(layers));
            }
        }

        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var similarities = new List<Tensor>();
        Tensor? passed = null;
        foreach (var layer in layers)
        {
            var similarity = layer.Similarity().squeeze(0);
            similarities.Add(passed is null ? similarity : passed.matmul(similarity).matmul(passed.t()));
            var map = layer.ValueOutput().squeeze(0);
            passed = passed is null ? map : passed.matmul(map);
        }

        return new CollapsedAttention(similarities, passed!, causal != Kernels.Causality.None);
    }

    /// <summary>Collapses the attention of encoder layers that consist of nothing else.</summary>
    /// <param name="layers">The layers, first to last, at least one.</param>
    /// <returns>A module of its own: it shares no parameter with the layers.</returns>
    /// <exception cref="ArgumentException">A layer has a residual connection, a norm or a perceptron, or <see cref="CollapseStack(IReadOnlyList{ReducedAttention})"/> refuses their attention.</exception>
    public static CollapsedAttention CollapseStack(IReadOnlyList<ReducedEncoder> layers)
    {
        ArgumentNullException.ThrowIfNull(layers);
        for (var i = 0; i < layers.Count; i++)
        {
            var options = layers[i].Options;
            var obstacle = options.Residual ? "residual connections" : options.Norm != NormPlacement.None ? "norms" : options.FeedForward ? "a perceptron" : null;
            if (obstacle is not null)
            {
                throw new ArgumentException($"Layer {i} has {obstacle}, and a stack collapses only where attention follows attention directly: train it without.", nameof(layers));
            }
        }

        return CollapseStack([.. layers.Select(layer => layer.Attention)]);
    }
}

/// <summary>A collapsed stack: attention layers with one similarity matrix each and no values, and one matrix at the end.</summary>
public sealed class CollapsedAttention : nn.Module<Tensor, Tensor>
{
    private readonly ModuleList<ReducedAttention> layers;
    private readonly Parameter w_vo;

    internal CollapsedAttention(IReadOnlyList<Tensor> similarities, Tensor valueOutput, bool causal)
        : base(nameof(CollapsedAttention))
    {
        var width = (int)valueOutput.shape[0];
        layers = nn.ModuleList([.. similarities.Select((_, layer) => new ReducedAttention(
            width, 1, QueryKeyMode.Collapsed, ValueOutputMode.None, causal, new(layer, AttentionKind.Self, $"layers.{layer}")))]);
        w_vo = Parameters.Make([width, width], null);
        RegisterComponents();
        this.to(valueOutput.dtype).to(valueOutput.device);
        Parameters.Keep(this);
        for (var i = 0; i < similarities.Count; i++)
        {
            layers[i].parameters().Single().copy_(similarities[i]);
        }

        w_vo.copy_(valueOutput);
    }

    /// <summary>The similarity matrices, first layer to last, each <c>[C, C]</c>.</summary>
    public IReadOnlyList<Tensor> QueryKey => [.. layers.Select(layer => layer.parameters().Single())];

    /// <summary>The matrix at the end, <c>[C, C]</c>.</summary>
    public Tensor ValueOutput => w_vo;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var tokens = input;
        foreach (var layer in layers)
        {
            tokens = layer.forward(tokens);
        }

        return tokens.matmul(w_vo).MoveToOuterDisposeScope();
    }
}

/// <summary>How many facts a trained number must account for.</summary>
public static class Overdetermination
{
    /// <summary>Training examples times outputs over trainable parameters (arXiv 2410.13732, section 2). Below 1 the data cannot determine the parameters, and a good training loss says little about new data.</summary>
    /// <param name="examples">Number of training examples, from 0.</param>
    /// <param name="outputs">Number of outputs of an example (classes), at least 1.</param>
    /// <param name="parameters">Number of trainable parameters, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public static double Ratio(long examples, long outputs, long parameters)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(examples);
        ArgumentOutOfRangeException.ThrowIfLessThan(outputs, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(parameters, 1);
        return (double)examples * outputs / parameters;
    }
}
