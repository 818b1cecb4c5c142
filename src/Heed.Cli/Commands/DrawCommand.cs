using System.CommandLine;
using Heed.Lab.Drawing;

namespace Heed.Cli.Commands;

/// <summary><c>heed draw MASK</c>: a picture of which pairs a mask lets attend and of the blocks that the kernel computes.</summary>
internal static class DrawCommand
{
    private const int MostTokens = 65_536;

    public static Command Create()
    {
        var mask = new Argument<string?>("mask")
        {
            Description = "What to draw, for example causal or window:w=128 or a safetensors file; without it, the masks are listed.", Arity = ArgumentArity.ZeroOrOne,
        };
        var output = new Option<string>("--out") { Description = "Where the picture goes.", HelpName = "FILE.png", DefaultValueFactory = _ => "mask.png" };
        var tokens = new Option<int>("--tokens") { Description = "Number of queries and keys.", HelpName = "N", DefaultValueFactory = _ => 512 }.Between(1, MostTokens);
        var json = CommandExtensions.JsonOption();
        var command = new Command("draw", "Draw a mask: its pairs, and the plan of full, partial and empty blocks.") { mask, output, tokens, json };
        return command.Runs((result, terminal, _) =>
        {
            if (result.GetValue(mask) is not { } wanted)
            {
                List(terminal, result.GetValue(json));
                return ExitCode.Success;
            }

            var built = DrawableMask.Of(wanted, result.GetValue(tokens));
            using var picture = MaskPicture.Draw(built, wanted);
            var path = result.GetValue(output)!;
            picture.Save(path);
            var census = picture.Census;
            if (result.GetValue(json))
            {
                terminal.WriteJson(new
                {
                    Mask = wanted, census.Queries, census.Keys, census.Pairs, census.Share, built.QueryBlock, built.KeyBlock, census.FullBlocks, census.PartialBlocks, census.EmptyBlocks,
                    ListedShare = built.Density, File = path,
                });
            }
            else
            {
                terminal.Out.WriteLine(
                    $"{wanted}: {census.Pairs:N0} of {census.Queries:N0} x {census.Keys:N0} pairs ({census.Share:P1}); blocks of {built.QueryBlock} x {built.KeyBlock}: " +
                    $"{census.FullBlocks:N0} full, {census.PartialBlocks:N0} partial, {census.EmptyBlocks:N0} empty.");
                terminal.Out.WriteLine($"wrote {path}");
            }

            return ExitCode.Success;
        });
    }

    private static void List(Terminal terminal, bool json)
    {
        if (json)
        {
            terminal.WriteJson(DrawableMask.All.Select(known => new { known.Name, known.Usage, known.Summary }));
            return;
        }

        var width = DrawableMask.All.Max(known => known.Usage.Length);
        foreach (var known in DrawableMask.All)
        {
            terminal.Out.WriteLine($"{known.Usage.PadRight(width)}  {known.Summary}");
        }
    }
}
