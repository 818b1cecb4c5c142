using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>NiNformer (arXiv 2403.02411).</summary>
internal static class NiNformerModel
{
    public static ImageModel Entry { get; } = new(
        "ninformer", "ninformer[:patch=4,width=64,hidden=128,depth=2,dropout=0.1,combine=product|sum]", "NiNformer: tokens times what an inner MLP-Mixer makes of them.", "ninformer",
        (specification, task) => new NiNformerClassifier(new()
        {
            ImageSize = task.Size, Channels = task.Channels, Classes = task.Classes, PatchSize = specification.Integer("patch", 4, 1), Width = specification.Integer("width", 64, 1),
            Hidden = specification.Integer("hidden", 128, 1), Depth = specification.Integer("depth", 2, 1), Dropout = specification.Number("dropout", 0.1),
            Combination = specification.Text("combine") switch
            {
                null or "product" => Heads.GateCombination.Multiply,
                "sum" => Heads.GateCombination.Add,
                var other => throw new ArgumentException($"combine of 'ninformer' is product or sum, not '{other}'."),
            },
        }));
}
