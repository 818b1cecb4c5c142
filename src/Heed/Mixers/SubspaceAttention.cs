using Heed.Layers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>
/// Subspace attention, ULSAM (arXiv 2006.15102): the channels fall into g groups, each weighs the positions by one map of its own and adds what it weighed: <c>y_n = x_n + A_n x_n</c>,
/// <c>A_n = softmax over positions of ReLU(BN(PW(maxpool 3x3(ReLU(BN(DW(x_n)))))))</c> with a factor and offset per channel (DW) and one filter over the group's channels (PW). It has 5 C + 3 g parameters.
/// </summary>
/// <remarks>This is the authors' code; their text has neither the norms nor the rectifiers. A map that the last rectifier clears everywhere weighs all positions alike, and its branch then learns nothing: that is
/// part of the method. As a map sums to one, the mean gain is only 1 + 1 / (H W). Parameter names: <c>subspaces.{n}.conv_dws|bn_dws|conv_point|bn_point</c>.</remarks>
public sealed class SubspaceAttention : nn.Module<Tensor, Tensor>, IMapSource
{
    private readonly ModuleList<Subspace> subspaces;
    private readonly long _channels;

    /// <summary>Makes the module.</summary>
    /// <param name="channels">Number C of channels, at least 1.</param>
    /// <param name="splits">Number g of subspaces; divides the channels.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is below 1.</exception>
    /// <exception cref="ArgumentException">The subspaces do not divide the channels.</exception>
    public SubspaceAttention(long channels, int splits = 4)
        : base(nameof(SubspaceAttention))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(splits, 1);
        if (channels % splits != 0)
        {
            throw new ArgumentException($"The number of subspaces must divide the channels; {splits} subspaces and {channels} channels were given.", nameof(splits));
        }

        _channels = channels;
        subspaces = nn.ModuleList([.. Enumerable.Range(0, splits).Select(_ => new Subspace(channels / splits))]);
        RegisterComponents();
    }

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>Number g of subspaces.</summary>
    public int Splits => subspaces.Count;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        return ForwardWithMaps(input).Output.MoveToOuterDisposeScope();
    }

    /// <summary>The output beside the maps.</summary>
    /// <param name="input"><c>[B, C, H, W]</c>.</param>
    /// <returns>The output <c>[B, C, H, W]</c> and the maps A <c>[B, g, H, W]</c>, each of which sums to one.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public (Tensor Output, Tensor Attention) ForwardWithMaps(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 4 || input.shape[1] != _channels)
        {
            throw new ArgumentException($"Subspace attention reads [batch, {_channels}, height, width], not [{string.Join(", ", input.shape)}].", nameof(input));
        }

        using var scope = NewDisposeScope();
        var parts = input.chunk(Splits, 1);
        var attention = cat([.. subspaces.Select((subspace, n) => subspace.forward(parts[n]))], 1);
        Recorder?.Record(this, "attention", attention, [.. Enumerable.Range(0, Splits).Select(n => $"subspace {n}")]);
        // [B, g, 1, H, W] over [B, g, C / g, H, W]
        var grouped = input.unflatten(1, Splits, _channels / Splits);
        var output = (grouped + (grouped * attention.unsqueeze(2))).flatten(1, 2);
        return (output.MoveToOuterDisposeScope(), attention.MoveToOuterDisposeScope());
    }

    /// <summary>The map of one group, <c>[B, C / g, H, W]</c> to <c>[B, 1, H, W]</c>.</summary>
    private sealed class Subspace : nn.Module<Tensor, Tensor>
    {
        // The authors' momentum: running statistics are almost those of the last batch.
        private const double Momentum = 0.9;

        private readonly LayerScale conv_dws;
        private readonly BatchNorm2d bn_dws;
        private readonly Conv2d conv_point;
        private readonly BatchNorm2d bn_point;

        public Subspace(long channels)
            : base(nameof(Subspace))
        {
            conv_dws = new LayerScale(channels, 1);
            foreach (var parameter in conv_dws.parameters())
            {
                // What libtorch gives a filter of one tap.
                nn.init.uniform_(parameter, -1, 1);
            }

            bn_dws = nn.BatchNorm2d(channels, momentum: Momentum);
            conv_point = nn.Conv2d(channels, 1, 1);
            bn_point = nn.BatchNorm2d(1, momentum: Momentum);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            var strongest = nn.functional.max_pool2d(bn_dws.forward(conv_dws.forward(input)).relu(), 3, stride: 1, padding: 1);
            var scores = bn_point.forward(conv_point.forward(strongest)).relu();
            return scores.flatten(2).softmax(-1).view(scores.shape).MoveToOuterDisposeScope();
        }
    }
}
