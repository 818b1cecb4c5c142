using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>A block in pre-norm form around any token mixer: <c>x += mixer(norm1(x))</c>, <c>x += mlp(norm2(x))</c>. Parameter names are timm's: <c>norm1</c>, <c>attn</c>, <c>norm2</c>, <c>mlp.fc1</c>, <c>mlp.fc2</c>, and where branches are scaled <c>ls1</c>, <c>ls2</c>.</summary>
public sealed class MixerBlock : nn.Module<Tensor, Tensor>
{
    private readonly LayerNorm norm1;
    private readonly nn.Module<Tensor, Tensor> attn;
    private readonly LayerNorm? norm2;
    private readonly GeluFeedForward? mlp;
    private readonly ChannelScale? ls1;
    private readonly ChannelScale? ls2;
    private readonly DropPath _drop;

    /// <summary>Makes a block.</summary>
    /// <param name="width">Width C of a token.</param>
    /// <param name="hidden">Hidden width of the perceptron; 0: there is none.</param>
    /// <param name="mixer">The token mixer, <c>[B, N, C]</c> to <c>[B, N, C]</c>.</param>
    /// <param name="normEpsilon">Epsilon of the norms.</param>
    /// <param name="dropPath">Probability of dropping a branch in training.</param>
    /// <param name="layerScale">What the branches' learned factors per channel (<c>ls1.gamma</c>, <c>ls2.gamma</c>) are at first; 0: there are none.</param>
    public MixerBlock(long width, long hidden, nn.Module<Tensor, Tensor> mixer, double normEpsilon = 1e-6, double dropPath = 0, double layerScale = 0)
        : base(nameof(MixerBlock))
    {
        norm1 = nn.LayerNorm(width, normEpsilon);
        attn = mixer;
        if (hidden > 0)
        {
            norm2 = nn.LayerNorm(width, normEpsilon);
            mlp = new(width, hidden);
            Parameters.InitializeNormal(mlp, false);
        }

        if (layerScale != 0)
        {
            ls1 = new(width, layerScale);
            ls2 = hidden > 0 ? new(width, layerScale) : null;
        }

        _drop = new(dropPath);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The token mixer.</summary>
    public nn.Module<Tensor, Tensor> Mixer => attn;

    /// <summary>Where the block stands in its model, whose hooks then see its hidden states.</summary>
    public StreamPlace Place { get; init; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        input = Place.Pass(StreamPoint.BlockInput, input);
        var mixed = attn.forward(Place.Pass(StreamPoint.AttentionInput, norm1.forward(input)));
        var tokens = input + _drop.forward(Place.Pass(StreamPoint.AttentionOutput, ls1?.forward(mixed) ?? mixed));
        if (mlp is not null)
        {
            var fed = mlp.forward(Place.Pass(StreamPoint.FeedForwardInput, norm2!.forward(tokens)));
            tokens = tokens + _drop.forward(Place.Pass(StreamPoint.FeedForwardOutput, ls2?.forward(fed) ?? fed));
        }

        return Place.Pass(StreamPoint.BlockOutput, tokens).MoveToOuterDisposeScope();
    }
}
