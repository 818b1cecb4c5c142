using Heed.Mixers;
using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>Vision Mamba (arXiv 2401.09417).</summary>
internal static class VimModel
{
    public static ImageModel Entry { get; } = new(
        "vim", "vim[:patch=4,width=48,depth=4,states=16,backward=branch|shared|none,token=middle|first|both|none,droppath=0]",
        "Vision Mamba: a selective scan over the patches and one back; backward: a branch of its own, shared maps, or none; token: where the class token stands.", "visual-mamba",
        (specification, task) => new Vim(new()
        {
            ImageSize = task.Size, Channels = task.Channels, Classes = task.Classes, PatchSize = specification.Integer("patch", 4, 1), Width = specification.Integer("width", 48, 1),
            Depth = specification.Integer("depth", 4, 1), States = specification.Integer("states", 16, 1), DropPath = specification.Number("droppath", 0),
            Backward = specification.Choice("backward", BackwardScan.OwnBranch, ("branch", BackwardScan.OwnBranch), ("shared", BackwardScan.SharedMaps), ("none", BackwardScan.None)),
            ClassToken = specification.Choice(
                "token", ClassTokenPlace.Middle, ("middle", ClassTokenPlace.Middle), ("first", ClassTokenPlace.First), ("both", ClassTokenPlace.BothEnds), ("none", ClassTokenPlace.None)),
        }));
}
