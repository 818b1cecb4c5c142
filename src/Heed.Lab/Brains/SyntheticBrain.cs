using static TorchSharp.torch;

namespace Heed.Lab.Brains;

/// <summary>Feature maps of scenes, and the responses to them.</summary>
/// <param name="Features"><c>[N, 32, 7, 7]</c>.</param>
/// <param name="Left">Responses of the content areas, <c>[N, 80]</c>.</param>
/// <param name="Right">Those of the location areas, <c>[N, 80]</c>.</param>
/// <param name="Places">The patch of each category's object, int64 <c>[N, 4]</c>, row by row.</param>
public sealed record BrainScenes(Tensor Features, Tensor Left, Tensor Right, Tensor Places)
{
    /// <summary>Number of scenes.</summary>
    public int Count => (int)Features.shape[0];
}

/// <summary>
/// A brain whose rule is known, for encoding models: scenes of 7 x 7 patches with an object of each of four categories at patches drawn at random; four <em>content</em> areas (the left hemisphere) respond linearly to the
/// attributes of one category's object, wherever it stands; four <em>location</em> areas (the right) respond linearly to the features at one patch, whatever stands there. Responses have variance 1 and noise of 0.25, so that
/// the best possible correlation is 0.89.
/// </summary>
public sealed class SyntheticBrain
{
    /// <summary>Patches of a side.</summary>
    public const int Side = 7;

    /// <summary>Channels of the feature map.</summary>
    public const int Channels = 32;

    /// <summary>Categories, and areas of each hemisphere.</summary>
    public const int Areas = 4;

    /// <summary>Vertices of an area.</summary>
    public const int AreaVertices = 20;

    /// <summary>Vertices of a hemisphere.</summary>
    public const int Vertices = Areas * AreaVertices;

    /// <summary>The best correlation that any model can reach: the noise is not to be predicted.</summary>
    public static readonly double Ceiling = 1 / Math.Sqrt(1 + (Noise * Noise));

    private const double Background = 0.5, Noise = 0.5, AttributeStrength = 1.5;
    private const int FirstAttribute = 8, Attributes = 8;
    private readonly float[] _content;
    private readonly float[] _location;
    private readonly double _contrast;

    /// <summary>Draws the rule.</summary>
    /// <param name="seed">Its seed.</param>
    /// <param name="contrast">How much an object stands out in its category's channel.</param>
    /// <exception cref="ArgumentException">The contrast is negative.</exception>
    public SyntheticBrain(int seed, double contrast = 3)
    {
        if (!(contrast >= 0))
        {
            throw new ArgumentException($"The contrast of objects is a number from 0 on, not {contrast}.", nameof(contrast));
        }

        _contrast = contrast;
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)seed);
        _content = [.. randn([Areas, AreaVertices, Attributes], generator: generator).data<float>()];
        _location = [.. randn([Areas, AreaVertices, Channels], generator: generator).data<float>()];
        LocationPatches = [.. randperm(Side * Side, generator: generator).narrow(0, 0, Areas).contiguous().data<long>()];
    }

    /// <summary>The patch that each location area responds to.</summary>
    public IReadOnlyList<long> LocationPatches { get; }

    /// <summary>Which vertices belong to which area, float32 <c>[4, 80]</c>, the same for both hemispheres.</summary>
    public static Tensor Masks()
    {
        using var scope = NewDisposeScope();
        return eye(Areas).repeat_interleave(AreaVertices, 1).MoveToOuterDisposeScope();
    }

    /// <summary>Scenes and responses; the same seed gives the same.</summary>
    /// <param name="count">How many, from 1.</param>
    /// <param name="seed">Their seed.</param>
    public BrainScenes Draw(int count, int seed)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(count, 1);
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)seed);
        var patches = Side * Side;
        var features = randn([count, patches, Channels], generator: generator).mul_(Background);
        var places = rand([count, patches], generator: generator).argsort(-1).narrow(1, 0, Areas).contiguous();
        var attributes = randn([count, Areas, Attributes], generator: generator);
        var objects = zeros([count, Areas, Channels]);
        objects.narrow(2, 0, Areas).copy_(eye(Areas).mul(_contrast));
        objects.narrow(2, FirstAttribute, Attributes).copy_(attributes.mul(AttributeStrength));
        features.scatter_add_(1, places.unsqueeze(-1).expand(-1, -1, Channels), objects);
        var content = einsum("nka,kva->nkv", attributes, tensor(_content, [Areas, AreaVertices, Attributes])).flatten(1);
        var seen = features.index_select(1, tensor(LocationPatches.ToArray()));
        var location = einsum("nkc,kvc->nkv", seen, tensor(_location, [Areas, AreaVertices, Channels])).flatten(1);
        Tensor Measured(Tensor responses) => ((responses - responses.mean([0L], keepdim: true)) / responses.std(0, keepdim: true)) + randn(responses.shape, generator: generator).mul_(Noise);
        return new(
            features.transpose(1, 2).reshape(count, Channels, Side, Side).MoveToOuterDisposeScope(), Measured(content).MoveToOuterDisposeScope(), Measured(location).MoveToOuterDisposeScope(), places.MoveToOuterDisposeScope());
    }
}
