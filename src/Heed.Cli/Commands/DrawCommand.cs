using System.CommandLine;
using Heed.Lab;
using Heed.Lab.Drawing;
using Heed.Lab.Mechanisms;
using TorchSharp;

namespace Heed.Cli.Commands;

/// <summary><c>heed draw NAME</c>: a picture of which pairs a mask or a mechanism lets attend, and of the blocks that the kernel computes.</summary>
internal static class DrawCommand
{
    private const int MostTokens = 65_536;
    private const int LeastHeads = 4;
    private const string ScanName = "scan";

    public static Command Create()
    {
        var mask = new Argument<string?>("mask")
        {
            Description = "What to draw, for example causal or window:w=128, a mechanism, a scan order or a safetensors file; without it, all are listed.", Arity = ArgumentArity.ZeroOrOne,
        };
        var output = new Option<string>("--out") { Description = "Where the picture goes.", HelpName = "FILE.png", DefaultValueFactory = _ => "mask.png" };
        var tokens = new Option<int>("--tokens") { Description = "Number of queries and keys.", HelpName = "N", DefaultValueFactory = _ => 512 }.Between(1, MostTokens);
        var head = new Option<int>("--head") { Description = "Which head to draw.", HelpName = "N" }.AtLeast(0);
        var layer = new Option<int>("--layer") { Description = "For mechanisms: which layer to draw, where layers differ.", HelpName = "N" }.AtLeast(0);
        var free = new Option<bool>("--no-causal") { Description = "For mechanisms: let queries see the keys after them too." };
        var seed = new Option<int>("--seed") { Description = "For mechanisms: seed of the random queries and keys to choose among.", HelpName = "N", DefaultValueFactory = _ => 1 }.AtLeast(0);
        var inputs = new Option<string?>("--inputs") { Description = "For mechanisms: queries and keys to choose among, tensors query, key and perhaps value.", HelpName = "FILE.safetensors" };
        var json = CommandExtensions.JsonOption();
        var command = new Command("draw", "Draw a mask or what a mechanism selects (its pairs, and the plan of blocks or runs), or the path of a scan.") { mask, output, tokens, head, layer, free, seed, inputs, json };
        command.Validators.Add(result =>
        {
            if (result.GetResult(inputs) is not null && (result.GetResult(tokens) is not null || result.GetResult(seed) is not null))
            {
                result.AddError("--inputs brings its own tokens: leave --tokens and --seed out.");
            }
        });
        return command.Runs((result, terminal, _) =>
        {
            if (result.GetValue(mask) is not { } wanted)
            {
                List(terminal, result.GetValue(json));
                return ExitCode.Success;
            }

            using var scope = torch.NewDisposeScope();
            using var quiet = torch.no_grad();
            var chosen = result.GetValue(head);
            var name = Specification.Parse(wanted).Name;
            if (name == ScanName)
            {
                if (new Option[] { tokens, head, layer, free, seed, inputs }.FirstOrDefault(option => result.GetResult(option) is { Implicit: false }) is { } useless)
                {
                    throw new ArgumentException($"A scan order has its own size and no heads: leave {useless.Name} out, for example {ScanPicture.Usage}.");
                }

                DrawScan(wanted, result.GetResult(output) is { Implicit: false } ? result.GetRequiredValue(output) : "scan.png", terminal, result.GetValue(json));
                return ExitCode.Success;
            }

            var selects = result.GetValue(inputs) is not null || result.GetValue(free) || DrawableMask.All.All(known => known.Name != name);
            MaskPicture picture;
            long? own = null;
            if (selects && AttentionMechanism.All.Any(known => known.Name == name))
            {
                var given = result.GetValue(inputs) is { } file ? DrawnInputs.FromFile(file) : DrawnInputs.Random(result.GetValue(tokens), Math.Max(LeastHeads, chosen + 1), result.GetValue(seed));
                RequireHead(chosen, given.Query.size(1));
                own = given.Key.size(2);
                picture = Draw(wanted, given, new(result.GetValue(layer), AttentionKind.Self, "drawn"), result.GetValue(free), chosen);
            }
            else if (result.GetValue(inputs) is not null || result.GetValue(free))
            {
                throw new ArgumentException($"'{name}' is no mechanism that selects by content: leave --inputs and --no-causal out.");
            }
            else
            {
                var built = DrawableMask.Of(wanted, result.GetValue(tokens));
                RequireHead(chosen, built.Heads);
                picture = MaskPicture.Draw(built, wanted, head: chosen);
            }

            using (picture)
            {
                Write(picture, wanted, chosen, result.GetRequiredValue(output), terminal, result.GetValue(json));
                if (own is { } keys && keys != picture.Census.Keys)
                {
                    terminal.Notice($"The mechanism reads {picture.Census.Keys:N0} keys made of the {keys:N0} given; they are drawn in the order in which the kernel reads them.");
                }
            }

            return ExitCode.Success;
        });
    }

    private static void DrawScan(string wanted, string path, Terminal terminal, bool json)
    {
        var order = ScanPicture.OrderOf(Specification.Parse(wanted));
        using var picture = ScanPicture.Draw(order);
        picture.Save(path);
        if (json)
        {
            terminal.WriteJson(new { Scan = wanted, order.Name, order.Height, order.Width, Routes = order.Routes.Select(route => route.Order.ToArray()), order.IsContinuous, File = path });
            return;
        }

        terminal.Out.WriteLine($"{wanted}: {order.Count} route(s) of {order.Length:N0} places over {order.Height} x {order.Width} tokens{(order.IsContinuous ? ", every step to a neighbour" : "")}.");
        terminal.Out.WriteLine($"wrote {path}");
    }

    private static MaskPicture Draw(string wanted, DrawnInputs inputs, AttentionSite site, bool free, int head)
    {
        var selector = AttentionMechanism.Selectors(wanted)(site) ?? throw new ArgumentException($"{wanted} leaves layer {site.Layer} dense: draw a later layer (--layer), or causal.");
        var call = selector.Select(inputs.Query, inputs.Key, inputs.Value, free ? AttentionOptions.Default : AttentionOptions.CausalSelf, site);
        return MaskPicture.Draw(call, wanted, head: head);
    }

    private static void RequireHead(int head, long heads)
    {
        if (head >= heads)
        {
            throw new ArgumentException(heads == 1 ? "All heads share this mask: leave --head out." : $"There are heads 0 to {heads - 1}; --head {head} is none of them.");
        }
    }

    private static void Write(MaskPicture picture, string wanted, int head, string path, Terminal terminal, bool json)
    {
        picture.Save(path);
        var census = picture.Census;
        if (json)
        {
            terminal.WriteJson(new
            {
                Mask = wanted, Head = head, census.Queries, census.Keys, census.Pairs, census.Share, census.QueryBlock, census.KeyBlock, census.FullBlocks, census.PartialBlocks, census.EmptyBlocks,
                census.ListedShare, File = path,
            });
            return;
        }

        var plan = census.KeyBlock is { } keyBlock
            ? $"blocks of {census.QueryBlock} x {keyBlock}: {census.FullBlocks:N0} full, {census.PartialBlocks:N0} partial, {census.EmptyBlocks:N0} empty"
            : $"{census.FullBlocks + census.PartialBlocks:N0} runs of keys for blocks of {census.QueryBlock} queries";
        terminal.Out.WriteLine($"{wanted}: {census.Pairs:N0} of {census.Queries:N0} x {census.Keys:N0} pairs ({census.Share:P1}); {plan}.");
        terminal.Out.WriteLine($"wrote {path}");
    }

    private static void List(Terminal terminal, bool json)
    {
        var masks = DrawableMask.All.Select(known => (known.Name, known.Usage, known.Summary));
        var known = masks.Concat(AttentionMechanism.All.Select(known => (known.Name, known.Usage, known.Summary))).Append((Name: ScanName, ScanPicture.Usage, ScanPicture.Summary)).DistinctBy(one => one.Name).ToList();
        if (json)
        {
            terminal.WriteJson(known.Select(one => new { one.Name, one.Usage, one.Summary }));
            return;
        }

        foreach (var (name, usage, summary) in known)
        {
            terminal.Out.WriteLine($"{name}  {summary}");
            if (usage != name)
            {
                terminal.Out.WriteLine($"    {usage}");
            }
        }
    }
}
