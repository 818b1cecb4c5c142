using Heed.Layers;
using Heed.Masks;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>What a <see cref="VMoBALayer"/> is made of.</summary>
public sealed record VMoBALayerOptions
{
    /// <summary>Width of the model, a multiple of the heads.</summary>
    public required int Width { get; init; }

    /// <summary>Number of heads.</summary>
    public required int Heads { get; init; }

    /// <summary>Frames, rows and columns of the latent grid.</summary>
    public required IReadOnlyList<long> Resolution { get; init; }

    /// <summary>Frames of a temporal block; may be fractional.</summary>
    public required double TemporalBlock { get; init; }

    /// <summary>Rows and columns of a spatial block.</summary>
    public required (long Rows, long Columns) SpatialBlock { get; init; }

    /// <summary>Frames, rows and columns of a spatio-temporal block.</summary>
    public required (long Frames, long Rows, long Columns) SpatioTemporalBlock { get; init; }

    /// <summary>Which kind of block a layer cuts: layer l uses element l modulo the length, 1 for temporal, 2 for spatial, 3 for spatio-temporal. The paper's is 1, 2, 3.</summary>
    public IReadOnlyList<int> Cycle { get; init; } = [1, 2, 3];

    /// <summary>How many pairs are selected.</summary>
    public BlockSelectionMode Mode { get; init; } = BlockSelectionMode.Threshold;

    /// <summary>Which pairs compete.</summary>
    public BlockSelectionScope Scope { get; init; } = BlockSelectionScope.HeadGlobal;

    /// <summary>The share of similarity to reach.</summary>
    public double Threshold { get; init; } = 0.25;

    /// <summary>Blocks per query in top-k mode, the own block among them.</summary>
    public int TopK { get; init; } = 3;

    /// <summary>Whether queries and keys are normalised over the whole width before they are cut into heads, as in Wan 2.1.</summary>
    public bool QueryKeyNorm { get; init; } = true;

    /// <summary>What the normalisation adds to the mean square.</summary>
    public double NormEpsilon { get; init; } = 1e-6;
}

/// <summary>
/// A self-attention layer of a video transformer with VMoBA (arXiv 2506.23858): tokens are cut into blocks along time, space or both in turn with the layer's index, queries select blocks, and the
/// output is put back in raster order.
/// </summary>
/// <remarks>Parameters are named as in Wan 2.1's <c>attn1</c>: <c>to_q</c>, <c>to_k</c>, <c>to_v</c>, <c>to_out.0</c>, <c>norm_q</c>, <c>norm_k</c>.</remarks>
public sealed class VMoBALayer : nn.Module<Tensor, Tensor>
{
    private readonly Projection to_q;
    private readonly Projection to_k;
    private readonly Projection to_v;
    private readonly ModuleList<Projection> to_out;
    private readonly RmsNorm? norm_q;
    private readonly RmsNorm? norm_k;
    private readonly VMoBALayerOptions _options;

    /// <summary>Initializes a layer with random weights.</summary>
    /// <param name="layerIndex">Index of the layer, from 0; decides how blocks are cut.</param>
    /// <param name="options">Sizes and selection.</param>
    /// <param name="generator">Where initial weights are drawn from; null: libtorch's own generator.</param>
    /// <exception cref="ArgumentException">A size is out of its range, or blocks do not divide the grid.</exception>
    public VMoBALayer(int layerIndex, VMoBALayerOptions options, Generator? generator = null)
        : base(nameof(VMoBALayer))
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.Heads < 1 || options.Width < options.Heads || options.Width % options.Heads != 0)
        {
            throw new ArgumentException($"The width of the model is a multiple of its heads; {options.Width} and {options.Heads} were given.", nameof(options));
        }

        _options = options;
        Partition = PartitionOf(layerIndex, options);
        Selection = SelectionOf(Partition, options);
        to_q = new(options.Width, options.Width, hasBias: true, generator);
        to_k = new(options.Width, options.Width, hasBias: true, generator);
        to_v = new(options.Width, options.Width, hasBias: true, generator);
        to_out = new(new Projection(options.Width, options.Width, hasBias: true, generator));
        if (options.QueryKeyNorm)
        {
            (norm_q, norm_k) = (new(options.Width, options.NormEpsilon), new(options.Width, options.NormEpsilon));
        }

        RegisterComponents();
    }

    /// <summary>How this layer cuts tokens into blocks.</summary>
    public VideoBlockPartition Partition { get; }

    /// <summary>How this layer selects.</summary>
    public MixtureOfBlocksOptions Selection { get; }

    /// <summary>The partition of a layer.</summary>
    /// <param name="layerIndex">Index of the layer, from 0.</param>
    /// <param name="options">The grid and the blocks.</param>
    /// <exception cref="ArgumentException">The index is negative, the cycle empty or of other numbers than 1, 2, 3, or blocks do not divide the grid.</exception>
    public static VideoBlockPartition PartitionOf(int layerIndex, VMoBALayerOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (layerIndex < 0 || options.Cycle.Count == 0)
        {
            throw new ArgumentException($"A layer has an index from 0 and a cycle of at least one kind of block; index {layerIndex} and {options.Cycle.Count} kinds were given.", nameof(layerIndex));
        }

        return new(options.Resolution, options.Cycle[layerIndex % options.Cycle.Count] switch
        {
            1 => [options.TemporalBlock],
            2 => [options.SpatialBlock.Rows, options.SpatialBlock.Columns],
            3 => [options.SpatioTemporalBlock.Frames, options.SpatioTemporalBlock.Rows, options.SpatioTemporalBlock.Columns],
            var kind => throw new ArgumentException($"A cycle consists of 1 (temporal), 2 (spatial) and 3 (spatio-temporal), not {kind}.", nameof(options)),
        });
    }

    /// <summary>Attention over a video by a layer's partition, without projections.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>, tokens in raster order (frame, row, column).</param>
    /// <param name="key"><c>[B, H, N, D]</c>.</param>
    /// <param name="value"><c>[B, H, N, Dv]</c>.</param>
    /// <param name="partition">How tokens are cut into blocks.</param>
    /// <param name="options">How blocks are selected; of the partition's block size.</param>
    /// <param name="scale">Factor of the products in the softmax; null: 1 / sqrt(D).</param>
    /// <returns><c>[B, H, N, Dv]</c>, in raster order.</returns>
    /// <exception cref="ArgumentException">The shapes do not fit together.</exception>
    public static Tensor Attend(Tensor query, Tensor key, Tensor value, VideoBlockPartition partition, MixtureOfBlocksOptions options, double? scale = null)
    {
        ArgumentNullException.ThrowIfNull(partition);
        using var scope = NewDisposeScope();
        var output = MixtureOfBlockAttention.Forward(partition.Apply(query, 2), partition.Apply(key, 2), partition.Apply(value, 2), options, scale: scale);
        return partition.Restore(output, 2).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>Attends, with a position code.</summary>
    /// <param name="input"><c>[B, N, C]</c>, tokens in raster order.</param>
    /// <param name="positions">Turns queries and keys <c>[B, N, H, D]</c> by their positions, for example rotary; null: not.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has other tokens than the grid, or another width.</exception>
    public Tensor forward(Tensor input, Func<Tensor, Tensor>? positions)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[1] != Partition.Tokens || input.shape[2] != _options.Width)
        {
            throw new ArgumentException(
                $"A video of {string.Join(" x ", _options.Resolution)} has {Partition.Tokens} tokens of {_options.Width} channels, [B, {Partition.Tokens}, {_options.Width}]; {AttentionShape.Text(input)} was given.",
                nameof(input));
        }

        using var scope = NewDisposeScope();
        Tensor Heads(Projection projection, RmsNorm? norm, bool isPlaced)
        {
            var projected = projection.forward(input);
            var heads = (norm is null ? projected : norm.forward(projected)).unflatten(2, [_options.Heads, _options.Width / _options.Heads]);
            return (isPlaced && positions is not null ? positions(heads) : heads).transpose(1, 2);
        }

        var output = Attend(Heads(to_q, norm_q, true), Heads(to_k, norm_k, true), Heads(to_v, null, false), Partition, Selection);
        return to_out[0].forward(output.transpose(1, 2).flatten(2)).MoveToOuterDisposeScope();
    }

    private static MixtureOfBlocksOptions SelectionOf(VideoBlockPartition partition, VMoBALayerOptions options)
    {
        var selection = new MixtureOfBlocksOptions
        {
            BlockSize = partition.BlockSize, Mode = options.Mode, Scope = options.Scope, Threshold = options.Threshold, TopK = options.TopK,
        };
        selection.Validate();
        return selection;
    }
}
