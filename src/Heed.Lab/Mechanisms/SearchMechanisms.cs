using Heed.Masks;

namespace Heed.Lab.Mechanisms;

/// <summary>Reads the options of the mechanisms that search the past.</summary>
internal static class SearchMechanisms
{
    public const string HipUsage = "hip:k=128,w=128,sinks=16,bq=32,sq=2,bk=4,sk=1,group=1,heads=1,rep=center,align=block,refresh=8";
    public const string ChunkScanUsage = "chunk-scan:k=128,w=128,sinks=16,bq=32,sq=4,chunk=64,refresh=8";
    public const string SuperlinearUsage = "superlinear:k=3,s=8,p=0.5,a=0.5,back=2,ahead=0";

    public static Func<AttentionSite, AttentionSelector?> Hip(Specification mask)
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
    public static Func<AttentionSite, AttentionSelector?> ChunkScan(Specification mask)
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

    public static Func<AttentionSite, AttentionSelector?> Superlinear(Specification mask)
    {
        var options = SuperlinearOf(mask);
        return _ => new SuperlinearSelector(options);
    }

    public static SuperlinearOptions SuperlinearOf(Specification mask)
    {
        var options = new SuperlinearOptions
        {
            NumSpans = mask.Integer("k", 3, 1),
            SwIndex = mask.Integer("s", 8, 0),
            SearchPower = mask.Number("p", 0.5),
            SpanPower = mask.Number("a", 0.5),
            BackwardFactor = mask.Number("back", 2),
            ForwardFactor = mask.Number("ahead", 0),
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
