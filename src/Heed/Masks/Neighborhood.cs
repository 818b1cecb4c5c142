using Heed.Kernels;

namespace Heed.Masks;

/// <summary>One axis of a neighborhood (arXiv 2504.16922, section 3): which keys of an axis a query at a coordinate of the same axis sees.</summary>
/// <param name="Length">Tokens along the axis, from 1.</param>
/// <param name="Window">Keys that a query sees, 1 to <paramref name="Length"/> / <paramref name="Dilation"/>. Even windows reach one further to the left.</param>
/// <param name="Stride">How many neighbouring queries share one window, 1 to <paramref name="Window"/>.</param>
/// <param name="Dilation">Distance between two keys of a window, from 1: the axis falls apart into that many groups that do not see each other.</param>
/// <param name="IsCausal">Whether keys after the query are left out. Windows are then cut at the start of the axis instead of shifted.</param>
public readonly record struct NeighborhoodAxis(long Length, long Window, long Stride = 1, long Dilation = 1, bool IsCausal = false)
{
    /// <summary>Whether every query sees the whole axis.</summary>
    public bool IsWhole => Window == Length && !IsCausal;

    /// <summary>Whether a query sees exactly itself and everything before it, whatever the stride.</summary>
    public bool IsWhollyCausal => Window == Length && IsCausal;

    /// <summary>The axis of one dilation group, undilated: every <see cref="Dilation"/>-th token from <paramref name="group"/> on. Groups differ in length by one where the dilation does not divide
    /// the length.</summary>
    /// <param name="group">0 to <see cref="Dilation"/> - 1.</param>
    public NeighborhoodAxis Group(long group) => new((Length - group + Dilation - 1) / Dilation, Window, Stride, 1, IsCausal);

    /// <summary>What a query sees: the keys k of its group (<c>k % Dilation == group</c>) with <c>start &lt;= k / Dilation &lt; end</c>.</summary>
    /// <param name="query">Coordinate of the query along the axis.</param>
    public (long Group, long Start, long End) Bounds(long query)
    {
        var group = query % Dilation;
        var (start, end) = Group(group).GroupBounds(query / Dilation);
        return (group, start, end);
    }

    /// <summary>The sentence about what is wrong with the axis; null: nothing.</summary>
    internal string? Fault =>
        Length < 1 || Window < 1 || Stride < 1 || Dilation < 1
            ? $"An axis has a length, window, stride and dilation of at least 1; {Length}, {Window}, {Stride} and {Dilation} were given."
            : Stride > Window ? $"A stride is at most the window, or keys are seen by nobody; stride {Stride} was given with window {Window}."
            : Window > Length / Dilation
                ? $"Window times dilation is at most the axis's length; {Window} x {Dilation} does not fit {Length}: take a window of at most {Length / Dilation} or -1 for the whole axis."
            : null;

    /// <summary>The window of a coordinate of an undilated axis, which may lie past the axis's end (a query of a tile that hangs over).</summary>
    internal (long Start, long End) GroupBounds(long coordinate)
    {
        var stretch = coordinate / Stride * Stride;
        if (IsCausal)
        {
            // The last query of the stretch leads where the window starts; where it ends is each query's own business.
            var last = Math.Min(stretch + Stride - 1, Length - 1);
            return (Math.Max(last - Window + 1, 0), Math.Min(coordinate + 1, Length));
        }

        var leader = Math.Min(stretch + (Stride / 2), Length - 1);
        var start = Math.Clamp(leader - (Window / 2), 0, Length - Window);
        return (start, start + Window);
    }
}

/// <summary>
/// Generalized neighborhood attention's choice of pairs (arXiv 2504.16922): tokens lie on a grid of one to three axes in raster order, and a query sees the keys that every axis lets it see. Stride 1 is classic
/// neighborhood attention (2204.07143), stride = window blocked attention, in between strided sliding windows. Depends on nothing but geometry. Immutable; equal where all axes are.
/// </summary>
public sealed class Neighborhood : IEquatable<Neighborhood>
{
    /// <summary>Stands for the whole axis where a window is given.</summary>
    public const long WholeAxis = -1;

    private readonly NeighborhoodAxis[] _axes;

    /// <summary>Initializes a neighborhood.</summary>
    /// <param name="axes">One to three axes, the slowest first.</param>
    /// <exception cref="ArgumentException">There are none or too many, or an axis has a window that does not fit.</exception>
    public Neighborhood(params IReadOnlyList<NeighborhoodAxis> axes)
    {
        ArgumentNullException.ThrowIfNull(axes);
        if (axes.Count is < 1 or > 3)
        {
            throw new ArgumentException($"A neighborhood lies on a grid of 1 to 3 axes, not {axes.Count}.", nameof(axes));
        }

        for (var axis = 0; axis < axes.Count; axis++)
        {
            if (axes[axis].Fault is { } fault)
            {
                throw new ArgumentException(axes.Count == 1 ? fault : $"Axis {axis}: {fault}", nameof(axes));
            }
        }

        _axes = [.. axes];
        Tokens = 1;
        foreach (var axis in _axes)
        {
            Tokens = checked(Tokens * axis.Length);
        }
    }

    /// <summary>The axes, the slowest first.</summary>
    public IReadOnlyList<NeighborhoodAxis> Axes => _axes;

    /// <summary>Number of tokens of the grid.</summary>
    public long Tokens { get; }

    /// <summary>Keys that a query away from causal edges sees.</summary>
    public long WindowTokens => _axes.Aggregate(1L, (product, axis) => product * axis.Window);

    /// <summary>Number of dilation groups.</summary>
    public long Groups => _axes.Aggregate(1L, (product, axis) => product * axis.Dilation);

    /// <summary>Whether every query sees every key.</summary>
    public bool IsWhole => _axes.All(axis => axis.IsWhole);

    /// <summary>A neighborhood from one list per knob.</summary>
    /// <param name="grid">Length of each axis.</param>
    /// <param name="window">Window of each axis, or one for all; <see cref="WholeAxis"/> (-1) for as many keys as there are.</param>
    /// <param name="stride">Stride of each axis, or one for all; null: 1.</param>
    /// <param name="dilation">Dilation of each axis, or one for all; null: 1.</param>
    /// <param name="isCausal">Causality of each axis, or one for all; null: not causal.</param>
    /// <exception cref="ArgumentException">A list has another number of entries, or a window does not fit.</exception>
    public static Neighborhood Of(
        IReadOnlyList<long> grid, IReadOnlyList<long> window, IReadOnlyList<long>? stride = null, IReadOnlyList<long>? dilation = null, IReadOnlyList<bool>? isCausal = null)
    {
        ArgumentNullException.ThrowIfNull(grid);
        ArgumentNullException.ThrowIfNull(window);
        var axes = new NeighborhoodAxis[grid.Count];
        for (var axis = 0; axis < axes.Length; axis++)
        {
            var step = At(dilation ?? [1], axis, "dilation");
            var keys = At(window, axis, "window");
            axes[axis] = new(grid[axis], keys == WholeAxis ? grid[axis] / Math.Max(step, 1) : keys, At(stride ?? [1], axis, "stride"), step, At(isCausal ?? [false], axis, "causality"));
        }

        return new(axes);

        T At<T>(IReadOnlyList<T> knob, int axis, string name) => knob.Count == 1 ? knob[0] : knob.Count == grid.Count ? knob[axis]
            : throw new ArgumentException($"The {name} is one value, or one for each of the {grid.Count} axes; {knob.Count} were given.", name);
    }

    /// <summary>Whether a query sees a key. For tests and references.</summary>
    /// <param name="query">The query, in raster order.</param>
    /// <param name="key">The key, in raster order.</param>
    public bool Allows(long query, long key)
    {
        for (var axis = _axes.Length - 1; axis >= 0; axis--)
        {
            (query, var q) = Math.DivRem(query, _axes[axis].Length);
            (key, var k) = Math.DivRem(key, _axes[axis].Length);
            var (group, start, end) = _axes[axis].Bounds(q);
            if (k % _axes[axis].Dilation != group || k / _axes[axis].Dilation < start || k / _axes[axis].Dilation >= end)
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>The pairs over tokens in raster order. <c>Heads.NeighborhoodAttention</c> does not use it on grids: it re-orders tokens first, which visits far fewer blocks.</summary>
    /// <param name="queryBlock">Queries per block.</param>
    /// <param name="keyBlock">Keys per block.</param>
    /// <param name="additionalKeys">Keys after those of the grid that every query sees.</param>
    public BlockMask ToBlockMask(int queryBlock = BlockMasks.DefaultBlock, int keyBlock = BlockMasks.DefaultBlock, long additionalKeys = 0)
    {
        var selection = new KeySelection(Tokens, Tokens + additionalKeys, queryBlock: queryBlock, keyBlock: keyBlock);
        var last = _axes[^1];
        var seen = new List<long>();
        var keys = new List<long>();
        for (long query = 0; query < Tokens; query++)
        {
            // Where rows of keys start, axis by axis; the last axis gives the runs themselves.
            seen.Clear();
            seen.Add(0);
            var rest = query;
            var stride = Tokens;
            foreach (var axis in _axes.AsSpan(0, _axes.Length - 1))
            {
                stride /= axis.Length;
                (var coordinate, rest) = Math.DivRem(rest, stride);
                var (group, start, end) = axis.Bounds(coordinate);
                keys.Clear();
                foreach (var origin in seen)
                {
                    for (var y = start; y < end; y++)
                    {
                        keys.Add(origin + (((y * axis.Dilation) + group) * stride));
                    }
                }

                (seen, keys) = (keys, seen);
            }

            var (lastGroup, first, stop) = last.Bounds(rest);
            selection.AddInterval(0, 0, query, Tokens, Tokens + additionalKeys - 1);
            foreach (var origin in seen)
            {
                if (last.Dilation == 1)
                {
                    selection.AddInterval(0, 0, query, origin + first, origin + stop - 1);
                    continue;
                }

                for (var y = first; y < stop; y++)
                {
                    selection.AddKeys(0, 0, query, [origin + (y * last.Dilation) + lastGroup]);
                }
            }
        }

        return selection.ToBlockMask();
    }

    /// <inheritdoc/>
    public bool Equals(Neighborhood? other) => other is not null && _axes.AsSpan().SequenceEqual(other._axes);

    /// <inheritdoc/>
    public override bool Equals(object? obj) => Equals(obj as Neighborhood);

    /// <inheritdoc/>
    public override int GetHashCode()
    {
        var hash = new HashCode();
        foreach (var axis in _axes)
        {
            hash.Add(axis);
        }

        return hash.ToHashCode();
    }

    /// <inheritdoc/>
    public override string ToString() => string.Join(" x ", _axes.Select(axis =>
        $"{axis.Window} of {axis.Length}{(axis.Stride > 1 ? $", stride {axis.Stride}" : "")}{(axis.Dilation > 1 ? $", dilation {axis.Dilation}" : "")}{(axis.IsCausal ? ", causal" : "")}"));
}
