using Heed.Mixers;

namespace Heed.Models.Images;

/// <summary>LocalVim (LocalMamba, arXiv 2403.09338): a <see cref="Vim"/> whose mixers are <see cref="LocalVimMixer"/>s, each with the directions that the authors' search found for its layer. Parameter names are those of
/// hunto/LocalMamba. Left out: the search itself, and LocalVMamba.</summary>
public static class LocalVim
{
    // Found by the authors' search over directions, a line per layer.
    private static readonly string[] Found =
    [
        "h v_flip w7 w7_flip", "h_flip w2_flip w7 w7_flip", "h h_flip v w7", "h h_flip v v_flip", "h h_flip v v_flip", "h h_flip v v_flip", "h_flip v v_flip w7", "h_flip v v_flip w2_flip", "h h_flip v v_flip", "h h_flip v v_flip",
        "h v v_flip w2", "h v v_flip w2_flip", "h h_flip v_flip w7", "h_flip v v_flip w2", "h h_flip v v_flip", "h v w2 w2_flip", "v v_flip w2 w7", "h h_flip v w2", "h h_flip w2_flip w7", "v v_flip w2 w2_flip",
    ];

    /// <summary>The directions of blocks without search.</summary>
    public static IReadOnlyList<string> PlainDirections { get; } = ["h", "h_flip", "w2", "w2_flip"];

    /// <summary>LocalVim-T (<c>local_vim_tiny</c>): width 192, 8 million parameters, 76.2 on ImageNet-1K in the authors' hands.</summary>
    /// <param name="classes">Number of classes.</param>
    public static Vim Tiny(int classes = 1000) => Make(Published(192, classes) with { Rotary = true, ClassToken = ClassTokenPlace.None }, Directions);

    /// <summary>LocalVim-T with a class token in the middle instead of rotary positions (<c>local_vim_tiny_middle_cls_token</c>): 77.8.</summary>
    /// <param name="classes">Number of classes.</param>
    public static Vim TinyMiddleClassToken(int classes = 1000) => Make(Published(192, classes), Directions);

    /// <summary>LocalVim-S (<c>local_vim_small</c>): width 384, 28 million parameters, 81.1; the same directions in every layer, as the authors' last definition of it says.</summary>
    /// <param name="classes">Number of classes.</param>
    public static Vim Small(int classes = 1000) => Make(Published(384, classes) with { Rotary = true, ClassToken = ClassTokenPlace.None }, _ => PlainDirections);

    /// <summary>A model of any shape.</summary>
    /// <param name="options">Its shape; what concerns the mixers of <see cref="Vim"/> only (backward scan, halved output, layer scale) is not read.</param>
    /// <param name="directions">The directions of a layer.</param>
    /// <exception cref="ArgumentException">A size does not suit, a class token is not in the middle, or a direction is unknown.</exception>
    public static Vim Make(VimOptions options, Func<int, IReadOnlyList<string>> directions)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(directions);
        return new(options, layer =>
        {
            var mixer = new LocalVimMixer(
                new() { Width = options.Width, States = options.States, Grid = new(options.Grid, options.Grid) { Others = options.ClassTokens } }, directions(layer));
            mixer.ScaleOutput(1 / Math.Sqrt(options.Depth));
            return mixer;
        });
    }

    /// <summary>The directions that the search found for a layer of the published models.</summary>
    /// <param name="layer">The layer, 0 to 19.</param>
    public static IReadOnlyList<string> Directions(int layer) => Found[layer].Split(' ');

    private static VimOptions Published(int width, int classes) => new() { Width = width, Depth = 20, Classes = classes, DropPath = 0.1 };
}
