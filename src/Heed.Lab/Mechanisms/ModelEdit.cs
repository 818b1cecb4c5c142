using System.Globalization;
using Heed.Edits;
using Heed.Models.Speech;
using Heed.Models.VisionLanguage;

namespace Heed.Lab.Mechanisms;

/// <summary>The two stacks of an encoder-decoder model, whose layers are both counted from 0.</summary>
/// <param name="EncoderLayers">Layers of the encoder.</param>
/// <param name="EncoderHeads">Query heads of each.</param>
/// <param name="DecoderLayers">Layers of the decoder, each with self-attention and cross-attention.</param>
/// <param name="DecoderHeads">Query heads of either.</param>
public sealed record EncoderDecoderStacks(int EncoderLayers, int EncoderHeads, int DecoderLayers, int DecoderHeads);

/// <summary>The model that an edit is put into.</summary>
/// <param name="Hooks">Its hooks.</param>
/// <param name="Layers">Number of attention layers; of an encoder-decoder model, the larger of both numbers.</param>
/// <param name="Heads">Query heads of a layer; of an encoder-decoder model, the larger of both numbers.</param>
public sealed record EditTarget(AttentionHooks Hooks, int Layers, int Heads)
{
    /// <summary>The vision-language model whose decoder this is; null: it is none.</summary>
    public VisionLanguageModel? Pictures { get; init; }

    /// <summary>Heads of every layer, where they differ; null: <see cref="Heads"/> in each.</summary>
    public IReadOnlyList<int>? HeadsOfLayers { get; init; }

    /// <summary>Whether edits change the map itself, so that probes see it edited. Slower.</summary>
    public bool Materialize { get; init; }

    /// <summary>Encoder and decoder, where the model has both; null: it is one stack, without cross-attention.</summary>
    public EncoderDecoderStacks? Stacks { get; init; }

    /// <summary>A speech model, all of it: encoder, decoder and the cross-attention between them.</summary>
    /// <param name="model">The model.</param>
    public static EditTarget Of(SpeechTransformer model)
    {
        ArgumentNullException.ThrowIfNull(model);
        var shape = model.Configuration;
        return new(model.Hooks, Math.Max(shape.EncoderLayers, shape.DecoderLayers), Math.Max(shape.EncoderHeads, shape.DecoderHeads))
        {
            Stacks = new(shape.EncoderLayers, shape.EncoderHeads, shape.DecoderLayers, shape.DecoderHeads),
        };
    }
}

/// <summary>A change to a trained model, without training, that <c>--edit NAME:option=value,...</c> names.</summary>
/// <param name="Name">Name on the command line.</param>
/// <param name="Usage">How to write it, with every option and its default.</param>
/// <param name="Summary">What it does, in one line.</param>
/// <param name="Slug">The paper; null where it is nobody's.</param>
/// <param name="Create">Reads the options (each must be read, so that a misspelt one is an error) and returns what puts the edit into a model until the result is disposed.</param>
public sealed record ModelEdit(string Name, string Usage, string Summary, string? Slug, Func<Specification, Func<EditTarget, IDisposable>> Create)
{
    /// <summary>All edits.</summary>
    public static IReadOnlyList<ModelEdit> All { get; } =
    [
        new("heads", "heads:scale=2.0/2.3,by=0,kind=self|cross", "multiplies the outputs of heads, written layer.head with / between them, by a factor; 0 removes them; of every kind of attention, or of one", null, ScaledHeads),
        new("act", "act:beta=0.4,threshold=0.1,heads=*.*,layers=FIRST-LAST,first=keep", "takes attention off tokens that soak it up, the first such token aside, and gives it to the others; heads as layer.head with / between them, or a file that heed search wrote", "attention-calibration", Calibration),
        new("ablate", "ablate:attention=2/3,mlp=4", "removes what the attention or the feed-forward part of layers adds to the residual stream, layers with / between them", null, Ablation),
        new("stream", "stream:at=output,layers=2/3,scale=1,positions=-1", "scales hidden states (at = input, attention, mlp or output of a block) at some layers and positions, all where none is named", null, Stream),
        new("var", "var:rho=0.5,image=0.2,keep=0.6,from=2,to=LAYERS,dims=BOS,threshold=BY WIDTH", "takes attention off sink tokens and gives it to the rest of the picture, where a head looks at the picture", "visual-attention-sink", PictureEdits.Redistribution),
        new("informed", "informed:alpha=0.7,beta=0.4,local=0.25,spatial=0,tokens=informed,from=2,to=32", "raises the scores of the patches that the encoder finds informative; tokens=all: of all patches by alpha", "imbalanced-attention", PictureEdits.Informed),
        new("move", "move:heads=*.*,sink=0,kind=self|cross", "makes heads, written layer.head with / between them, put all their attention on one token; of every kind of attention, or of one", "active-dormant-heads", SinkEdits.MovedHeads),
        new("dormant", "dormant:do=move,row=0.5,column=0.9", "moves the attention of heads that are dormant on the text to the first token (do=zero: removes them)", "active-dormant-heads", SinkEdits.DormantHeadsFound),
        new("norm", "norm:layer=LAYER,to=100,cosine=0.98", "sets the norm of a layer's feed-forward outputs that point along the first token's", "secondary-sinks", SinkEdits.SteeredNorm),
    ];

    /// <summary>Reads an edit.</summary>
    /// <param name="text">For example <c>heads:scale=0.1/2.3,by=0</c>.</param>
    /// <returns>What puts it into a model until the result is disposed; it throws <see cref="ArgumentException"/> where the model lacks what the edit names.</returns>
    /// <exception cref="ArgumentException">There is no such edit, or an option is wrong.</exception>
    public static Func<EditTarget, IDisposable> Parse(string text)
    {
        var specification = Specification.Parse(text);
        var edit = All.FirstOrDefault(edit => edit.Name == specification.Name)
            ?? throw new ArgumentException($"There is no edit '{specification.Name}'; there are: {string.Join(", ", All.Select(known => known.Name))}.");
        var apply = edit.Create(specification);
        specification.RefuseUnread();
        return apply;
    }

    /// <summary>Throws where an edited model gave numbers that cannot be shown.</summary>
    /// <param name="numbers">What it gave.</param>
    /// <exception cref="ArgumentException">One is not finite.</exception>
    internal static void RequireFinite(IEnumerable<double> numbers)
    {
        if (!numbers.All(double.IsFinite))
        {
            throw new ArgumentException("With the edit the model's numbers are not finite any more: choose smaller factors.");
        }
    }

    /// <summary>Puts edits into a model, one after the other, until the result is disposed.</summary>
    /// <param name="edits">What <see cref="Parse"/> gave.</param>
    /// <param name="target">The model. Edits of weights that meet at a site change its map, so that each goes by what the one before it left.</param>
    /// <exception cref="ArgumentException">The model lacks what an edit names; none is put in then.</exception>
    public static IDisposable Apply(IReadOnlyList<Func<EditTarget, IDisposable>> edits, EditTarget target)
    {
        ArgumentNullException.ThrowIfNull(edits);
        ArgumentNullException.ThrowIfNull(target);
        var applied = new Applied();
        try
        {
            foreach (var edit in edits)
            {
                applied.Parts.Push(edit(edits.Count > 1 ? target with { Materialize = true } : target));
            }

            return applied;
        }
        catch
        {
            applied.Dispose();
            throw;
        }
    }

    /// <summary>Heads written <c>layer.head</c> with / between them, <c>*</c> for every head of a layer or every layer: <c>2.0/2.3</c>, <c>3.*</c>, <c>*.0</c>; or a <see cref="HeadList"/>.</summary>
    /// <param name="specification">The edit.</param>
    /// <param name="option">The option that lists them.</param>
    /// <param name="fallback">What it is where it is not given.</param>
    /// <param name="kind">The kind of attention whose heads are meant; null: every kind.</param>
    /// <exception cref="ArgumentException">The option is no such list.</exception>
    internal static Func<EditTarget, IReadOnlyList<(int Layer, int Head)>> Heads(Specification specification, string option, string fallback, AttentionKind? kind = null)
    {
        var text = specification.Text(option) ?? fallback;
        var file = text.EndsWith(HeadList.Extension, StringComparison.OrdinalIgnoreCase) || File.Exists(text) ? text : null;
        if (file is not null)
        {
            try
            {
                text = string.Join('/', HeadList.Read(file).Select(head => string.Create(CultureInfo.InvariantCulture, $"{head.Layer}.{head.Head}")));
            }
            catch (InvalidDataException error)
            {
                throw new ArgumentException($"{option} of '{specification.Name}': {error.Message}", error);
            }
        }

        var parts = text.Split('/').Select(part => part.Split('.')).ToArray();
        static bool IsPlace(string place) => place == "*" || int.TryParse(place, NumberStyles.None, CultureInfo.InvariantCulture, out _);
        if (!parts.All(part => part.Length == 2 && part.All(IsPlace)))
        {
            throw new ArgumentException($"{option} of '{specification.Name}' lists heads as layer.head with / between them, * for all, for example 2.0/2.3 or 3.*, not '{text}'.");
        }

        return target =>
        {
            var isCross = kind == AttentionKind.Cross;
            var layers = !isCross ? target.Layers : target.Stacks?.DecoderLayers
                ?? throw new ArgumentException($"'{specification.Name}' is to act on cross-attention, and this model is no encoder-decoder: leave kind=cross out.");
            IEnumerable<int> Places(string place, int count, string what)
            {
                var number = place == "*" ? 0 : int.Parse(place, CultureInfo.InvariantCulture);
                return place == "*" ? Enumerable.Range(0, count)
                    : number < count ? [number]
                    : throw new ArgumentException($"{option} of '{specification.Name}' names {what} {number}, and {(count == 0 ? $"there is no {what}" : $"the model's {what}s{(isCross ? " of cross-attention" : "")} are 0 to {count - 1}")}{(file is null ? "" : $": {file} is of another model")}.");
            }

            (int, int)[] chosen =
            [
                .. parts.SelectMany(part => Places(part[0], layers, "layer").Select(layer => (Layer: layer, Heads: HeadsOf(specification, target, layer, kind, part[1]))).Where(layer => part[0] != "*" || layer.Heads > 0)
                    .SelectMany(layer => Places(part[1], layer.Heads, "head").Select(head => (layer.Layer, head)))).Distinct(),
            ];
            return chosen.Length > 0 ? chosen : throw new ArgumentException($"'{specification.Name}' changes heads of attention, and the model has none.");
        };
    }

    /// <summary>The kind of attention that an edit of heads acts on; null: every kind.</summary>
    /// <param name="specification">The edit.</param>
    internal static AttentionKind? Kind(Specification specification) => specification.Choice<AttentionKind?>("kind", null, ("self", AttentionKind.Self), ("cross", AttentionKind.Cross));

    // A head that one stack has and the other lacks would stop the model in the middle of its work.
    private static int HeadsOf(Specification specification, EditTarget target, int layer, AttentionKind? kind, string named)
    {
        if (target.Stacks is not { } stacks)
        {
            return target.HeadsOfLayers?[layer] ?? target.Heads;
        }

        if (kind == AttentionKind.Cross || layer >= stacks.EncoderLayers)
        {
            return stacks.DecoderHeads;
        }

        var (least, most) = layer >= stacks.DecoderLayers ? (stacks.EncoderHeads, stacks.EncoderHeads)
            : (Math.Min(stacks.EncoderHeads, stacks.DecoderHeads), Math.Max(stacks.EncoderHeads, stacks.DecoderHeads));
        return least == most || (named != "*" && int.Parse(named, CultureInfo.InvariantCulture) < least) ? most : throw new ArgumentException(
            $"'{specification.Name}' acts on encoder and decoder alike, and their layers have {stacks.EncoderHeads} and {stacks.DecoderHeads} heads: name heads that both have, 0 to {least - 1}, or cross-attention alone where the edit takes kind=cross.");
    }

    private static Func<EditTarget, IDisposable> ScaledHeads(Specification specification)
    {
        var kind = Kind(specification);
        var heads = Heads(specification, "scale", "*.*", kind);
        var factor = specification.Number("by", 0);
        return target => target.Hooks.Install(new HeadScaling(heads(target).Select(head => new HeadFactor(head.Layer, head.Head, factor, kind))));
    }

    private static Func<EditTarget, IDisposable> Calibration(Specification specification)
    {
        var (beta, threshold) = (specification.Number("beta", AttentionCalibration.DefaultBeta), specification.Number("threshold", Probes.SinkMask.AttentionThreshold));
        if (!(beta >= 0 && beta <= 1))
        {
            throw new ArgumentException($"beta of '{specification.Name}' is the share that stays, from 0 to 1, not {beta.ToString(CultureInfo.InvariantCulture)}.");
        }

        var keepFirst = specification.Choice("first", true, ("keep", true), ("edit", false));
        var layers = specification.Text("layers");
        var named = specification.Text("heads");
        var heads = Heads(specification, "heads", "*.*");
        return target =>
        {
            var (first, last) = Layers(specification, layers, target, named is null ? (2, target.Layers - 2) : (0, target.Layers - 1));
            (int Layer, int Head)[] chosen = [.. heads(target).Where(head => head.Layer >= first && head.Layer <= last)];
            return chosen.Length == 0
                ? throw new ArgumentException($"'{specification.Name}' has no head to calibrate in layers {first} to {last} of {target.Layers}: name heads or layers (the method leaves the first two layers and the last alone).")
                : target.Hooks.Install(new CalibrationEdit(chosen, threshold, beta, keepFirst) { Materialize = target.Materialize });
        };
    }

    private static (int First, int Last) Layers(Specification specification, string? text, EditTarget target, (int First, int Last) fallback)
    {
        if (text is null)
        {
            return fallback;
        }

        var ends = text.Split('-').Select(end => int.TryParse(end, NumberStyles.None, CultureInfo.InvariantCulture, out var layer) ? layer : -1).ToArray();
        return ends.Length is 1 or 2 && ends.All(layer => layer >= 0 && layer < target.Layers) && ends[0] <= ends[^1] ? (ends[0], ends[^1])
            : throw new ArgumentException($"layers of '{specification.Name}' is one layer or two with a - between them, from 0 to {target.Layers - 1}, not '{text}'.");
    }

    private static Func<EditTarget, IDisposable> Ablation(Specification specification)
    {
        var (attention, mlp) = (Numbers(specification, "attention"), Numbers(specification, "mlp"));
        if (attention is null && mlp is null)
        {
            throw new ArgumentException($"'{specification.Name}' names the layers whose attention or feed-forward part goes: ablate:attention=2/3,mlp=4 for example.");
        }

        return target =>
        {
            CheckLayers(specification, [.. attention ?? [], .. mlp ?? []], target);
            return target.Hooks.Install(StreamEdit.Ablate(attention, mlp));
        };
    }

    private static Func<EditTarget, IDisposable> Stream(Specification specification)
    {
        var point = specification.Choice(
            "at", StreamPoint.BlockOutput, ("input", StreamPoint.BlockInput), ("attention", StreamPoint.AttentionOutput), ("mlp", StreamPoint.FeedForwardOutput), ("output", StreamPoint.BlockOutput));
        var (layers, positions) = (Numbers(specification, "layers"), Numbers(specification, "positions", signed: true));
        var change = new StreamChange(point, layers, specification.Number("scale", 1), null, positions?.Select(position => (long)position).ToArray());
        var edit = new StreamEdit(change);
        return target =>
        {
            CheckLayers(specification, layers ?? [], target);
            return target.Hooks.Install(edit);
        };
    }

    private static int[]? Numbers(Specification specification, string option, bool signed = false)
    {
        if (specification.Text(option) is not { } text)
        {
            return null;
        }

        var style = signed ? NumberStyles.AllowLeadingSign : NumberStyles.None;
        var parts = text.Split('/');
        var numbers = parts.Select(part => int.TryParse(part, style, CultureInfo.InvariantCulture, out var number) ? number : (int?)null).ToArray();
        return numbers.All(number => number is not null) ? [.. numbers.Select(number => number!.Value)]
            : throw new ArgumentException($"{option} of '{specification.Name}' is a whole number, or several with / between them such as 2/3, not '{text}'.");
    }

    private static void CheckLayers(Specification specification, IReadOnlyList<int> layers, EditTarget target)
    {
        foreach (var layer in layers)
        {
            if (layer >= target.Layers)
            {
                throw new ArgumentException($"'{specification.Name}' names layer {layer}, and the model's layers are 0 to {target.Layers - 1}.");
            }
        }
    }

    private sealed class Applied : IDisposable
    {
        public Stack<IDisposable> Parts { get; } = new();

        public void Dispose()
        {
            while (Parts.TryPop(out var part))
            {
                part.Dispose();
            }
        }
    }
}
