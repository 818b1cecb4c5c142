using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>MobileNet with subspace attention (arXiv 2006.15102), small enough for pictures of 28 x 28 pixels: blocks on 14 x 14, then on 7 x 7 positions.</summary>
internal static class MobileNetModel
{
    public static ImageModel Entry { get; } = new(
        "mobilenet", "mobilenet[:width=32,blocks=4,ulsam=0,replace=5]",
        "Depth-wise separable layers, with subspace attention of ulsam=1|4 subspaces behind the last, or in place of those that replace=4x5 names (arXiv 2006.15102).", "ulsam",
        (specification, task) =>
        {
            var (width, blocks, splits) = (specification.Integer("width", 32, 1), specification.Integer("blocks", 4, 1), specification.Integer("ulsam", 0, 0));
            var replaced = specification.Lengths("replace", 1);
            if (replaced is not null && splits == 0)
            {
                throw new ArgumentException("replace of 'mobilenet' puts subspace attention in place of blocks: say ulsam=4, too.");
            }

            return new MobileNet(Shape(task, width, blocks, splits, replaced?.Select(number => (int)number).ToArray()));
        });

    /// <summary>The small shape: a convolution, a block of twice and <paramref name="blocks"/> of four times its channels.</summary>
    /// <param name="task">The pictures.</param>
    /// <param name="width">Channels of the first convolution.</param>
    /// <param name="blocks">Blocks of the second stage, numbered from 2.</param>
    /// <param name="splits">Subspaces of the attention; 0: there is none.</param>
    /// <param name="replaced">Blocks in whose place attention stands; null: behind the last block.</param>
    public static MobileNetOptions Shape(ImageTask task, int width, int blocks, int splits, int[]? replaced) => new()
    {
        Version = MobileNetVersion.V1, Channels = task.Channels, Classes = task.Classes, Stem = width, Stages = [new(1, 2 * width, 1, 1), new(1, 4 * width, blocks, 2)],
        Replace = splits > 0 ? replaced ?? [] : [], Insert = splits > 0 && replaced is null ? [blocks + 1] : [], Splits = Math.Max(1, splits),
    };
}
