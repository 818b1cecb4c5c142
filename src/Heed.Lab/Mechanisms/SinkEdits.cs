using Heed.Edits;
using Heed.Probes;

namespace Heed.Lab.Mechanisms;

/// <summary>Edits of heads that rest on a sink, and of the vector that makes a token one, by name.</summary>
internal static class SinkEdits
{
    public static Func<EditTarget, IDisposable> MovedHeads(Specification specification)
    {
        var kind = ModelEdit.Kind(specification);
        var heads = ModelEdit.Heads(specification, "heads", "*.*", kind);
        var sink = specification.Integer("sink", 0, 0);
        return target => target.Hooks.Install(new MoveToSink(heads(target), sink, kind) { Materialize = target.Materialize });
    }

    public static Func<EditTarget, IDisposable> DormantHeadsFound(Specification specification)
    {
        var action = specification.Choice("do", DormantHeadAction.MoveToSink, ("move", DormantHeadAction.MoveToSink), ("zero", DormantHeadAction.Zero));
        var (row, column) = (specification.Number("row", DormantHeads.RowThreshold), specification.Number("column", DormantHeads.ColumnThreshold));
        return target => target.Stacks is null ? target.Hooks.Install(new DormantHeadEdit(action, row, column))
            : throw new ArgumentException($"'{specification.Name}' tells dormant heads by the whole causal map of a text, and this model writes its text token by token while it attends to another sequence: name the heads with move or heads.");
    }

    public static Func<EditTarget, IDisposable> SteeredNorm(Specification specification)
    {
        var layer = specification.Integer("layer", -1, 0);
        var (norm, cosine) = (specification.Number("to", 100), specification.Number("cosine", SinkNormSteering.DefaultThreshold));
        if (layer < 0)
        {
            throw new ArgumentException($"'{specification.Name}' needs the layer whose feed-forward output is steered, for example norm:layer=2.");
        }

        return target =>
        {
            if (layer >= target.Layers)
            {
                throw new ArgumentException($"'{specification.Name}' names layer {layer}, and the model's layers are 0 to {target.Layers - 1}.");
            }

            var steering = new SinkNormSteering(layer, targetNorm: norm, cosineThreshold: cosine);
            return new Steered(target.Hooks.Install(steering), steering);
        };
    }

    private sealed class Steered(IDisposable installed, SinkNormSteering steering) : IDisposable
    {
        public void Dispose()
        {
            installed.Dispose();
            steering.Dispose();
        }
    }
}
