namespace Heed.Masks;

/// <summary>The options of superlinear attention with two steps (arXiv 2601.18401), under the paper's names. Immutable.</summary>
/// <remarks>The spans and the window of a query together reach every earlier position where <see cref="SearchPower"/> + <see cref="SpanPower"/> is at least 1 and <see cref="BackwardFactor"/> at least 1 /
/// <see cref="SearchPower"/>; other options may leave positions that no query can ever attend to, at the beginning of the sequence first.</remarks>
public sealed record SuperlinearOptions
{
    private const int LeastRoot = 2;
    private const int MostRoot = 6;

    // Powers of whole numbers that are whole themselves may come out a hair below or above.
    private const double Hair = 1e-9;

    /// <summary>P: about L^P anchors are scored, at distances of about i^(1/P); between 0 and 1.</summary>
    public double SearchPower { get; init; } = 0.5;

    /// <summary>s: the window as the number of the last stripe inside it; it is e(s + 1) - 1 keys long (see <see cref="Window"/>). 0: no window.</summary>
    public int SwIndex { get; init; }

    /// <summary>k: spans per query.</summary>
    public int NumSpans { get; init; } = 3;

    /// <summary>f_b: a span reaches back f_b n^a keys behind its anchor.</summary>
    public double BackwardFactor { get; init; } = 2;

    /// <summary>f_f: a span reaches f_f n^a keys ahead of its anchor; 0: it ends there.</summary>
    public double ForwardFactor { get; init; }

    /// <summary>a: how the length of spans grows with the number of keys before the query; between 0 and 1.</summary>
    public double SpanPower { get; init; } = 0.5;

    /// <summary>Keys of the window, the query's own included: e(s + 1) - 1.</summary>
    public long Window => Stripe(SwIndex + 1) - 1;

    /// <summary>Refuses options that make no search.</summary>
    /// <exception cref="ArgumentException">An option is out of its range.</exception>
    public void Validate()
    {
        if (!(SearchPower > 0 && SearchPower < 1) || !(SpanPower > 0 && SpanPower < 1))
        {
            throw new ArgumentException($"{nameof(SuperlinearOptions)}.{nameof(SearchPower)} and {nameof(SpanPower)} lie between 0 and 1, not {SearchPower} and {SpanPower}.");
        }

        if (SwIndex < 0 || NumSpans < 1)
        {
            throw new ArgumentException($"{nameof(SuperlinearOptions)}.{nameof(SwIndex)} is at least 0 and {nameof(NumSpans)} at least 1, not {SwIndex} and {NumSpans}.");
        }

        if (!(BackwardFactor > 0 && double.IsFinite(BackwardFactor)) || !(ForwardFactor >= 0 && double.IsFinite(ForwardFactor)))
        {
            throw new ArgumentException($"{nameof(SuperlinearOptions)}.{nameof(BackwardFactor)} is above 0 and {nameof(ForwardFactor)} at least 0, not {BackwardFactor} and {ForwardFactor}.");
        }
    }

    /// <summary>e(i): the distance of the anchor of stripe i from the query, its own position counted as 1: i^(1/P), rounded down.</summary>
    /// <param name="stripe">i, from 1.</param>
    public long Stripe(long stripe)
    {
        var root = Math.Round(1 / SearchPower);
        if (root is >= LeastRoot and <= MostRoot && Math.Abs((1 / SearchPower) - root) < Hair)
        {
            var power = stripe;
            for (var i = 1; i < (int)root; i++)
            {
                power = stripe > long.MaxValue / power ? long.MaxValue : power * stripe;
            }

            return power;
        }

        var distance = Math.Floor(Math.Pow(stripe, 1 / SearchPower) + Hair);
        return distance >= long.MaxValue ? long.MaxValue : (long)distance;
    }

    /// <summary>The first and last key of the span around an anchor, both included.</summary>
    /// <param name="anchor">The anchor's position.</param>
    /// <param name="position">The query's position p.</param>
    /// <param name="start">First position that is not padding.</param>
    public (long First, long Last) Span(long anchor, long position, long start = 0)
    {
        var reach = Math.Pow(Math.Max(0, position + 1 - start), SpanPower);
        var first = Math.Max(anchor - Length(BackwardFactor * reach), Math.Max(0, start));
        if (ForwardFactor == 0)
        {
            return (first, anchor);
        }

        var window = Window;
        var last = Math.Min(anchor + Length(ForwardFactor * reach), position);
        return (first, window > 0 ? Math.Min(last, Math.Max(0, position - (window - 1)) - 1) : last);
    }

    /// <summary>Distances of the anchors from the query (0: its own position), those outside the window, ascending.</summary>
    /// <param name="keys">Distances below this are given: the number of keys up to the query.</param>
    public int[] Distances(long keys)
    {
        var distances = new List<int>();
        for (var stripe = SwIndex + 1L; ; stripe++)
        {
            var distance = Stripe(stripe) - 1;
            if (distance >= keys)
            {
                return [.. distances];
            }

            distances.Add((int)distance);
        }
    }

    private static long Length(double keys) => (long)Math.Ceiling(keys - Hair);
}
