using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>A small focal modulation network (arXiv 2203.11926) as recipes know it.</summary>
internal static class FocalNetModel
{
    /// <summary>The entry.</summary>
    public static ImageModel Entry { get; } = new(
        "focalnet", "focalnet[:patch=4,width=64,depth=3,stages=1,levels=2,window=3,ratio=2,gates=on|off,global=on|off]",
        "FocalNet: the query times a gated sum of growing convolutions and the mean; every further stage halves the grid and doubles the width.", "focal-modulation", Make);

    private static FocalNet Make(Specification specification, ImageTask task) => new(new()
    {
        Channels = task.Channels, Classes = task.Classes, PatchSize = specification.Integer("patch", 4, 1), Width = specification.Integer("width", 64, 1),
        Depths = [.. Enumerable.Repeat(specification.Integer("depth", 3, 1), specification.Integer("stages", 1, 1))],
        Levels = [specification.Integer("levels", 2, 1)], Windows = [specification.Integer("window", 3, 1)], FeedForwardRatio = specification.Number("ratio", 2),
        Gates = specification.Choice("gates", true, ("on", true), ("off", false)), GlobalLevel = specification.Choice("global", true, ("on", true), ("off", false)),
    });
}
