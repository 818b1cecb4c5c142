using Heed.Mixers;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Images.Models;

/// <summary>The systems that the survey of visual Mambas (arXiv 2404.15956) describes, small.</summary>
internal static class ScanModels
{
    private const string Slug = "visual-mamba";
    private const int PatchSize = 4;

    /// <summary>VMamba's mixer in an isotropic model, along routes of choice.</summary>
    public static ImageModel SS2D { get; } = new(
        "ss2d", "ss2d[:routes=cross2d,patch=4,width=48,depth=3,states=4,expand=1,gate=0,ratio=2]",
        $"VMamba's selective scan of a picture along several routes (arXiv 2401.10166); routes: {ScanPattern.Known}.", Slug,
        (specification, task) =>
        {
            var routes = specification.Text("routes") ?? ScanPattern.Cross2d.Name;
            var (states, expand, gate) = (specification.Integer("states", 4, 1), specification.Number("expand", 1), specification.Integer("gate", 0, 0) > 0);
            var shape = BaselineModels.Shape(specification, task, positions: true, width: 48);
            return new VisionTransformer(shape, place => new PictureMixer(
                new SS2D(new() { Width = place.Width, States = states, Expand = expand, Gate = gate, ConvolutionBias = false, Pattern = ScanPattern.Parse(routes, place.Layer) }), place.Grid));
        });

    /// <summary>EfficientVMamba in two scanned stages.</summary>
    public static ImageModel Atrous { get; } = new(
        "atrous", "atrous[:patch=2,width=32,depth=1,states=4]", "EfficientVMamba: atrous scans beside a convolution, in two stages of so many blocks (arXiv 2403.09977).", Slug,
        (specification, task) => new EfficientVMamba(new()
        {
            Depths = Enumerable.Repeat(specification.Integer("depth", 1, 1), 2).ToArray(), ScannedStages = 2, PatchSize = specification.Integer("patch", 2, 1), Width = specification.Integer("width", 32, 8),
            States = specification.Integer("states", 4, 1), Channels = task.Channels, Classes = task.Classes,
        }));

    /// <summary>PlainMamba.</summary>
    public static ImageModel PlainMamba { get; } = new(
        "plainmamba", "plainmamba[:patch=4,width=48,depth=3,states=4,paper=0]", "PlainMamba: four serpentine scans with direction terms; paper=1 scans as the paper says, 0 as its code does (arXiv 2403.17695).", Slug,
        (specification, task) => new PlainMamba(new()
        {
            ImageSize = task.Size, Channels = task.Channels, Classes = task.Classes, PatchSize = specification.Integer("patch", PatchSize, 2), Width = specification.Integer("width", 48, 1),
            Depth = specification.Integer("depth", 3, 1), States = specification.Integer("states", 4, 1), StemConvolutions = 0, StemWidth = 16, Convolution = 3, AsPaper = specification.Integer("paper", 0, 0) > 0,
        }));

    /// <summary>LocalVim.</summary>
    public static ImageModel LocalVim { get; } = new(
        "localvim", "localvim[:patch=4,width=40,depth=3,states=4,directions=h+h_flip+w2+w2_flip]", "LocalVim: scans by rows, columns (h, v) and windows (wK), each with _flip, weighed by channel gates (arXiv 2403.09338).", Slug,
        (specification, task) =>
        {
            var directions = specification.Text("directions")?.Split('+') ?? [.. Heed.Models.Images.LocalVim.PlainDirections];
            return Heed.Models.Images.LocalVim.Make(
                new()
                {
                    ImageSize = task.Size, Channels = task.Channels, Classes = task.Classes, PatchSize = specification.Integer("patch", PatchSize, 1), Width = specification.Integer("width", 40, 8),
                    Depth = specification.Integer("depth", 3, 1), States = specification.Integer("states", 4, 1), ClassToken = ClassTokenPlace.None,
                },
                _ => directions);
        });

    /// <summary>Lets a mixer of maps <c>[B, H, W, C]</c> mix tokens <c>[B, H W, C]</c>.</summary>
    private sealed class PictureMixer : nn.Module<Tensor, Tensor>
    {
        private readonly nn.Module<Tensor, Tensor> mixer;
        private readonly int _grid;

        public PictureMixer(nn.Module<Tensor, Tensor> mixer, int grid)
            : base(nameof(PictureMixer))
        {
            (this.mixer, _grid) = (mixer, grid);
            RegisterComponents();
        }

        public override Tensor forward(Tensor tokens)
        {
            using var scope = NewDisposeScope();
            return mixer.forward(tokens.unflatten(1, [_grid, _grid])).flatten(1, 2).MoveToOuterDisposeScope();
        }
    }
}
