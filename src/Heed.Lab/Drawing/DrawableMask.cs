using Heed.Kernels;
using Heed.Lab.Mechanisms;
using Heed.Masks;
using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Drawing;

/// <summary>A mask that <c>heed draw</c> knows: its name, its options and the builder that also attention calls use, so that what is drawn is what is applied.</summary>
/// <param name="Name">Name on the command line.</param>
/// <param name="Usage">How to write it with its options.</param>
/// <param name="Summary">What it is, in one line.</param>
/// <param name="Build">Builds it for a number of tokens.</param>
public sealed record DrawableMask(string Name, string Usage, string Summary, Func<Specification, int, BlockMask> Build)
{
    private const string FileName = "FILE.safetensors";

    /// <summary>All masks that need no queries and keys. Those that are selected by content are in <see cref="AttentionMechanism.All"/>.</summary>
    public static IReadOnlyList<DrawableMask> All { get; } =
    [
        new("full", "full", "every pair", (mask, tokens) => BlockMasks.SlidingWindow(tokens, tokens, null, null, Causality.None, BlockOf(mask), BlockOf(mask))),
        new("causal", "causal:block=64", "every query sees itself and the keys before it",
            (mask, tokens) => BlockMasks.Causal(tokens, tokens, queryBlock: BlockOf(mask), keyBlock: BlockOf(mask))),
        new("window", "window:w=128,block=64", "every query sees itself and the w - 1 keys before it",
            (mask, tokens) => BlockMasks.SlidingWindow(tokens, tokens, mask.Integer("w", 128, 1) - 1, null, Causality.AlignedToEnd, BlockOf(mask), BlockOf(mask))),
        new("neighbours", "neighbours:w=128,block=64", "every query sees itself and w / 2 keys on either side",
            (mask, tokens) => mask.Integer("w", 128, 1) / 2 is var side ? BlockMasks.SlidingWindow(tokens, tokens, side, side, Causality.None, BlockOf(mask), BlockOf(mask)) : null!),
        new("random", "random:density=0.25,seed=1,block=64", "blocks of pairs chosen at random",
            (mask, tokens) => BlockMasks.Random(tokens, tokens, mask.Number("density", 0.25), mask.Integer("seed", 1, 0), queryBlock: BlockOf(mask), keyBlock: BlockOf(mask))),
        new("gna", "gna:grid=16x16,w=5x5,stride=1,dilation=1,causal=0,order=tiles", "neighborhood attention on a grid, in the order in which it is computed or in raster order; without a grid causal on a line",
            NeighborhoodMechanism.Draw),
        new(FileName, $"{FileName}:tensor=NAME,block=64", "a boolean tensor of a safetensors file, true where a query may attend", FromFile),
    ];

    /// <summary>The block mask of a specification.</summary>
    /// <param name="text">For example <c>window:w=64</c>, or the path of a safetensors file.</param>
    /// <param name="tokens">Number of queries and keys; a mask of a file has its own.</param>
    /// <exception cref="ArgumentException">There is no such mask, or an option is wrong.</exception>
    public static BlockMask Of(string text, int tokens)
    {
        var specification = Specification.Parse(text);
        var isFile = specification.Name.EndsWith(".safetensors", StringComparison.OrdinalIgnoreCase);
        var mask = All.FirstOrDefault(mask => mask.Name == (isFile ? FileName : specification.Name))
            ?? throw new ArgumentException(
                $"There is no mask '{specification.Name}'; there are: {string.Join(", ", All.Select(known => known.Name).Union(AttentionMechanism.All.Select(known => known.Name)))}.");
        var built = mask.Build(specification, tokens);
        specification.RefuseUnread();
        return built;
    }

    private static int BlockOf(Specification mask) => mask.Integer("block", BlockMasks.DefaultBlock, 1);

    private static BlockMask FromFile(Specification mask, int tokens)
    {
        using var scope = NewDisposeScope();
        using var reader = new SafetensorsReader(mask.Name);
        var name = mask.Text("tensor");
        if (name is null)
        {
            name = reader.Entries.Count == 1
                ? reader.Entries.Keys.Single()
                : throw new ArgumentException($"'{mask.Name}' holds {reader.Entries.Count} tensors: say which one by {mask.Name}:tensor=NAME ({string.Join(", ", reader.Entries.Keys.Take(5))} ...).");
        }
        else if (!reader.Entries.ContainsKey(name))
        {
            throw new ArgumentException($"'{mask.Name}' has no tensor '{name}'; it has: {string.Join(", ", reader.Entries.Keys.Take(10))}.");
        }

        return BlockMasks.FromTensor(reader.Read(name), queryBlock: BlockOf(mask), keyBlock: BlockOf(mask));
    }
}
