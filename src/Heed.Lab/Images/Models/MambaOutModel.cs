using Heed.Mixers;
using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>A small MambaOut (arXiv 2405.07992) as recipes know it.</summary>
internal static class MambaOutModel
{
    /// <summary>The entry.</summary>
    public static ImageModel Entry { get; } = new(
        "mambaout", $"mambaout[:width=48,depth=4,stages=1,kernel=7,conv=1,scan=none|PATTERN,states=16]",
        "MambaOut: gated convolution blocks on a quarter of the picture's side; a scan pattern (see vmamba) puts the state-space model back in.", "mambaout", Make);

    private static MambaOut Make(Specification specification, ImageTask task)
    {
        var (width, depth, stages) = (specification.Integer("width", 48, 2), specification.Integer("depth", 4, 1), specification.Integer("stages", 1, 1));
        var (scan, states) = (specification.Text("scan"), specification.Integer("states", 16, 1));
        var pattern = scan is null or "none" ? null : ScanPattern.Parse(scan);
        return new(new()
        {
            Channels = task.Channels, Classes = task.Classes, Depths = [.. Enumerable.Repeat(depth, stages)], Widths = [.. Enumerable.Range(0, stages).Select(stage => width << stage)],
            KernelSize = specification.Integer("kernel", 7, 1), ConvRatio = specification.Number("conv", 1), Scan = pattern is null ? null : channels => new StateSpaceScan(channels, pattern, states),
        });
    }
}
