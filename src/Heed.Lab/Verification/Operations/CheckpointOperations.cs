using Heed.Models;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Logits and attention maps of a whole checkpoint folder beside the case.</summary>
internal sealed class CheckpointLogits : GoldenOperation
{
    private const string MapPrefix = "out.map.";

    public override string Name => "checkpoint/Logits";

    public override void Run(GoldenRun run)
    {
        var folder = run.Case.Text("folder");
        if (Path.GetFileName(folder) != folder || folder is "" or "." or "..")
        {
            throw new InvalidDataException($"The case's folder '{folder}' is not a plain name of a folder beside it.");
        }

        using var pretrained = PretrainedModel.Load(Path.Combine(Path.GetDirectoryName(Path.GetFullPath(run.Case.Path))!, folder), run.Type);
        var layers = run.Case.Names.Where(name => name.StartsWith(MapPrefix, StringComparison.Ordinal)).Select(LayerOf).ToHashSet();
        using var probe = new AttentionMapProbe(at: site => layers.Contains(site.Layer));
        using (pretrained.Model.Hooks.Install(probe))
        {
            using var quiet = no_grad();
            run.Output("logits", pretrained.Model.forward(run.Input("input_ids").to(int64)));
        }

        foreach (var site in probe.Sites)
        {
            run.Output($"map.{site.Layer}", probe[site]);
        }
    }

    private static int LayerOf(string name) => int.TryParse(name.AsSpan(MapPrefix.Length), out var layer) ? layer
        : throw new InvalidDataException($"The tensor '{name}' names no layer.");
}
