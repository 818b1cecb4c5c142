using System.Globalization;
using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>What the pyramids with agents share.</summary>
internal static class AgentStages
{
    /// <summary>Which blocks have agents, from a letter for each stage (A, B, or M with a number behind the letters).</summary>
    public static bool[][] Parse(string types, IReadOnlyList<int> depths)
    {
        ArgumentNullException.ThrowIfNull(types);
        var letters = types[..Math.Min(types.Length, depths.Count)];
        var mixed = 0;
        if (letters.Length != depths.Count || letters.Any(letter => letter is not ('A' or 'B' or 'M'))
            || !(letters.Contains('M') ? ReadMixed(types[depths.Count..], out mixed) : types.Length == depths.Count))
        {
            throw new ArgumentException($"The types of {depths.Count} stages are letters A, B or M, with the number of leading agent blocks behind them where there is an M (AAAB, AAMB2), not '{types}'.", nameof(types));
        }

        return [.. letters.Select((letter, stage) => Enumerable.Range(0, depths[stage]).Select(block => letter == 'A' || (letter == 'M' && block < mixed)).ToArray())];
    }

    public static void CheckLists(int stages, params IReadOnlyList<int>[] lists)
    {
        if (stages < 1 || lists.Any(list => list.Count != stages))
        {
            throw new ArgumentException($"Every stage has its depth, heads and agents; {stages} and {string.Join(", ", lists.Select(list => list.Count))} were given.", nameof(lists));
        }
    }

    public static void CheckGrid(int imageSize, int multiple)
    {
        if (imageSize < 1 || multiple < 1 || imageSize % multiple != 0)
        {
            throw new ArgumentException($"The side of the pictures is a multiple of {multiple}, not {imageSize}.", nameof(imageSize));
        }
    }

    public static void CheckSize(Tensor images, int side)
    {
        if (images.shape[2] != side || images.shape[3] != side)
        {
            throw new ArgumentException($"The model reads pictures of {side} x {side} pixels, not {images.shape[2]} x {images.shape[3]}: resize them.", nameof(images));
        }
    }

    private static bool ReadMixed(string number, out int mixed) => int.TryParse(number, NumberStyles.None, CultureInfo.InvariantCulture, out mixed);
}

/// <summary>Patches as tokens, normalised: <c>proj</c>, <c>norm</c>.</summary>
internal sealed class NormedPatches : nn.Module<Tensor, Tensor>
{
    private readonly Conv2d proj;
    private readonly LayerNorm norm;

    public NormedPatches(int channels, int width, int patch, double normEpsilon)
        : base(nameof(NormedPatches))
    {
        (proj, norm) = (nn.Conv2d(channels, width, patch, stride: patch), nn.LayerNorm(width, normEpsilon));
        RegisterComponents();
        Parameters.Keep(this);
    }

    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return norm.forward(proj.forward(images).flatten(2).transpose(1, 2)).MoveToOuterDisposeScope();
    }
}
