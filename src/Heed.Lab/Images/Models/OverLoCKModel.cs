using Heed.Mixers;
using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>OverLoCK (arXiv 2502.20087), small enough for pictures of 28 x 28 pixels: stages on 14 x 14, 7 x 7, 7 x 7 and 4 x 4 positions.</summary>
internal static class OverLoCKModel
{
    public static ImageModel Entry { get; } = new(
        "overlock", "overlock[:width=8,depth=1,context=on|off,kernels=dynamic|static]",
        "OverLoCK: an overview's context steers dynamic kernels; context=off and kernels=static are its controls (arXiv 2502.20087).", "overlock",
        (specification, task) => new OverLoCK(Shape(
            task, specification.Integer("width", 8, 8), specification.Integer("depth", 1, 1),
            specification.Text("context") switch
            {
                null or "on" => true,
                "off" => false,
                var other => throw new ArgumentException($"context of 'overlock' is on or off, not '{other}'."),
            },
            specification.Text("kernels") switch
            {
                null or "dynamic" => FocusKernels.Dynamic,
                "static" => FocusKernels.Static,
                var other => throw new ArgumentException($"kernels of 'overlock' is dynamic or static, not '{other}'."),
            })));

    /// <summary>The small shape.</summary>
    /// <param name="task">The pictures.</param>
    /// <param name="width">Channels of the stages are 2, 3, 4 and 5 times as many; a multiple of 8.</param>
    /// <param name="depth">Blocks of every stage.</param>
    /// <param name="usesContext">Whether the overview's context is used.</param>
    /// <param name="kernels">What kernels are made from.</param>
    public static OverLoCKOptions Shape(ImageTask task, int width, int depth, bool usesContext, FocusKernels kernels) => width % 8 != 0
        ? throw new ArgumentException($"width of 'overlock' must be a multiple of 8, not {width}.")
        : new()
        {
            Channels = task.Channels, Classes = task.Classes, Depth = [depth, depth, depth, depth], SubDepth = [depth, depth], EmbedDim = [2 * width, 3 * width, 4 * width, 5 * width],
            KernelSize = [7, 5, 5, 5], SmallKernelSize = 3, FeedForwardRatio = [2, 2, 2, 2], SubFeedForwardRatio = [2, 2], SubHeads = [2, 2], Projection = 8 * width,
            Strides = task.Size <= 32 ? [2, 2, 1, 2] : [2, 2, 2, 2], UsesContext = usesContext, Kernels = kernels,
        };
}
