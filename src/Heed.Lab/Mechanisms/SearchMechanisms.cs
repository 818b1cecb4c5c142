using Heed.Masks;

namespace Heed.Lab.Mechanisms;

/// <summary>Reads the options of the mechanisms that search the past.</summary>
internal static class SearchMechanisms
{
    public static AttentionMechanism Hip { get; } = new(
        "hip", "hip:k=128,w=128,sinks=16,bq=32,sq=2,bk=4,sk=1,group=1,heads=1,rep=center,align=block,refresh=8",
        "HiP: a beam search down a tree finds the k best keys of every query block; window and first keys beside them", "hip-attention", HipOf)
    {
        Sparse = "hip:k=16,w=16,sinks=4,bq=1,sq=1,refresh=1", Everything = "hip:k=128,w=0", DecodesAsPrefill = true,
    };

    public static AttentionMechanism ChunkScan { get; } = new(
        "chunk-scan", "chunk-scan:k=128,w=128,sinks=16,bq=32,sq=4,chunk=64,refresh=8", "HiP 1.2: scans of ever smaller chunks find the k best keys of every query block", "hip-attention", ChunkScanOf)
    {
        Sparse = "chunk-scan:k=16,w=16,sinks=4,bq=1,sq=1,chunk=16,refresh=1", Everything = "chunk-scan:k=128,w=0", DecodesAsPrefill = true,
    };

    public static AttentionMechanism Superlinear { get; } = new(
        "superlinear", "superlinear:k=3,s=8,p=0.5,a=0.5,back=2,ahead=0", "window and k spans around the best anchors of every query, in one softmax (untrained)", "superlinear-attention", SuperlinearOf)
    {
        Sparse = "superlinear:s=2", Everything = "superlinear:s=12", DecodesAsPrefill = true,
    };

    private static Func<AttentionSite, AttentionSelector?> HipOf(Specification mask)
    {
        var options = new HipOptions
        {
            MaskK = mask.Integer("k", 128, 1),
            SlidingWindow = mask.Integer("w", 128, 0),
            SinkSize = mask.Integer("sinks", 16, 0),
            BlockSizeQ = mask.Integer("bq", 32, 1),
            BlockStrideQ = mask.Integer("sq", 2, 1),
            BlockSizeK = mask.Integer("bk", 4, 1),
            BlockStrideK = mask.Integer("sk", 1, 1),
            BlockSizeKGroup = mask.Integer("group", 1, 1),
            HeadGroup = mask.Integer("heads", 1, 1),
            Representative = Choice(mask, "rep", HipRepresentative.Center, ("first", HipRepresentative.First), ("center", HipRepresentative.Center), ("last", HipRepresentative.Last)),
            WindowAlignment = Choice(mask, "align", HipWindowAlignment.QueryBlock, ("block", HipWindowAlignment.QueryBlock), ("query", HipWindowAlignment.Query)),
            RefreshInterval = mask.Integer("refresh", 8, 1),
        };
        options.Validate();
        return _ => new HipSelector(options);
    }

    /// <summary>Three stages, each with chunks a quarter of the one before; the middle one keeps sixteen times, the last four times as many keys as the attention reads.</summary>
    private static Func<AttentionSite, AttentionSelector?> ChunkScanOf(Specification mask)
    {
        var (keep, chunk, stride) = (mask.Integer("k", 128, 1), mask.Integer("chunk", 64, 1), mask.Integer("sq", 4, 1));
        if (chunk % 16 != 0)
        {
            throw new ArgumentException($"chunk of the mask '{mask.Name}' is a multiple of 16, not {chunk}: three stages divide it by four twice.");
        }

        var options = new ChunkScanOptions
        {
            Stages = [new(chunk, stride), new(chunk / 4, stride, Math.Max(chunk, keep * 16)), new(chunk / 16, 1, Math.Max(chunk / 4, keep * 4))],
            Keep = keep,
            SlidingWindow = mask.Integer("w", 128, 0),
            SinkSize = mask.Integer("sinks", 16, 0),
            BlockSizeQ = mask.Integer("bq", 32, 1),
            RefreshInterval = mask.Integer("refresh", 8, 1),
        };
        options.Validate();
        return _ => new ChunkScanSelector(options);
    }

    private static Func<AttentionSite, AttentionSelector?> SuperlinearOf(Specification mask)
    {
        var options = SuperlinearOf(mask, new() { SwIndex = 8 });
        return _ => new SuperlinearSelector(options);
    }

    /// <summary>The options of superlinear attention, those that are not given as in <paramref name="absent"/>.</summary>
    public static SuperlinearOptions SuperlinearOf(Specification mask, SuperlinearOptions absent)
    {
        var options = new SuperlinearOptions
        {
            NumSpans = mask.Integer("k", absent.NumSpans, 1),
            SwIndex = mask.Integer("s", absent.SwIndex, 0),
            SearchPower = mask.Number("p", absent.SearchPower),
            SpanPower = mask.Number("a", absent.SpanPower),
            BackwardFactor = mask.Number("back", absent.BackwardFactor),
            ForwardFactor = mask.Number("ahead", absent.ForwardFactor),
        };
        options.Validate();
        return options;
    }

    private static T Choice<T>(Specification mask, string option, T fallback, params (string Word, T Value)[] choices)
    {
        var text = mask.Text(option);
        var index = Array.FindIndex(choices, choice => choice.Word == text);
        return text is null ? fallback : index >= 0 ? choices[index].Value
            : throw new ArgumentException($"{option} of the mask '{mask.Name}' is {string.Join(" or ", choices.Select(choice => choice.Word))}, not '{text}'.");
    }
}
