using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>
/// Keys and values of some heads, packed once for every block of queries that reads them: keys transposed into panels of <see cref="Packing.PanelWidth"/> (low-rank
/// factors as further depth), values in panels of columns. A head of a sequence is a <i>unit</i>; units are packed in waves that fit a memory budget, so that any number of
/// heads needs the memory of a few, and all threads share what is packed.
/// </summary>
internal sealed unsafe class PackedKeyValue<TVector, TOps> : ParallelLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    private const long WaveFloats = 16L << 20;

    // Keys that one item packs: enough to be worth handing out, few enough to share a long sequence.
    private const int ChunkKeys = 2048;

    private readonly CheckedProblem _problem;
    private readonly Unit[] _units;
    private readonly int[] _firstChunk;
    private readonly bool[][] _listed;
    private float* _memory;
    private int _wave;
    private int _waveEnd;

    /// <summary>Plans the packing of a problem.</summary>
    public PackedKeyValue(CheckedProblem problem)
    {
        _problem = problem;
        ref readonly var a = ref problem.Arguments;

        // Low-rank key factors belong to query heads: unless all share one, every query head is packed for itself.
        HeadsPerUnit = problem.HasLowRank && a.LowRankKey.HeadStride != 0 ? 1 : problem.Group;
        UnitsPerSequence = problem.Heads / HeadsPerUnit;
        ValueVectors = Packing.Vectors<TVector, TOps>(problem.ValueWidth);
        ValuePanels = Packing.Panels<TVector, TOps>(problem.ValueWidth);
        Depth = problem.Width + problem.Rank;
        _units = new Unit[problem.Sequences * UnitsPerSequence];
        _firstChunk = new int[_units.Length + 1];
        _listed = a.BlockMask is { } mask ? ListedBlocks(mask) : [];
        var width = Packing.PanelWidth<TVector, TOps>();
        for (var i = 0; i < _units.Length; i++)
        {
            var slice = problem.Sequence(i / UnitsPerSequence);
            var (start, end) = slice.QueryLength == 0 ? (0, 0) : (problem.FirstKey(slice, 0), Math.Max(0, problem.EndKey(slice, slice.QueryLength - 1)));
            start = Math.Min(start / width * width, end);
            _units[i] = new() { Start = start, Rows = (end - start + width - 1) / width * width, Finite = true };
        }
    }

    /// <summary>Query heads that read one unit.</summary>
    public int HeadsPerUnit { get; }

    /// <summary>Units of a sequence.</summary>
    public int UnitsPerSequence { get; }

    /// <summary>Number of units: <see cref="UnitsPerSequence"/> for each sequence.</summary>
    public int Units => _units.Length;

    /// <summary>Elements of a packed key: its width and the rank of the bias.</summary>
    public int Depth { get; }

    /// <summary>Vectors that hold a value.</summary>
    public int ValueVectors { get; }

    /// <summary>Panels that the columns of the values are spread over.</summary>
    public int ValuePanels { get; }

    /// <summary>Packs as many units as fit, from one on, and returns the unit after the last. The memory is the calling thread's until the next wave.</summary>
    public int PackWave(int first)
    {
        long floats = 0;
        var (unit, chunks) = (first, 0);
        for (; unit < _units.Length && (unit == first || floats + Floats(unit) <= WaveFloats); unit++)
        {
            _units[unit].Offset = floats;
            _firstChunk[unit] = chunks;
            floats += Floats(unit);
            chunks += (int)((_units[unit].Rows + ChunkKeys - 1) / ChunkKeys);
        }

        _firstChunk[unit] = chunks;
        _memory = Workspace.OfCall.Take(floats);
        (_wave, _waveEnd) = (first, unit);
        Run(chunks, _problem.Threads);
        return unit;
    }

    /// <summary>The panel that holds a key, at the key's column. The keys of a unit are those that its queries can see.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float* KeyPanel(int unit, long key)
    {
        var width = Packing.PanelWidth<TVector, TOps>();
        var local = key - _units[unit].Start;
        return _memory + _units[unit].Offset + (local / width * width * Depth) + (local % width);
    }

    /// <summary>The first value panel's row of a key. A panel lies behind all rows of those before it.</summary>
    /// <param name="unit">The unit.</param>
    /// <param name="key">The key.</param>
    /// <param name="firstVector">Vectors of the panels before the one wanted.</param>
    /// <param name="vectors">Vectors of the one wanted.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public float* ValuePanel(int unit, long key, int firstVector, int vectors)
    {
        ref readonly var u = ref _units[unit];
        return _memory + u.Offset + (u.Rows * Depth) + (u.Rows * firstVector * TOps.Lanes) + ((key - u.Start) * vectors * TOps.Lanes);
    }

    /// <summary>Whether every value of a unit is finite.</summary>
    public bool IsFinite(int unit) => _units[unit].Finite;

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        // Starts of later waves are not known yet.
        var unit = Array.BinarySearch(_firstChunk, _wave, _waveEnd + 1 - _wave, item);
        unit = unit < 0 ? ~unit - 1 : unit;

        // Units without keys have no chunk: the last of equal starts is the one that has.
        while (_firstChunk[unit + 1] == item)
        {
            unit++;
        }

        var start = _units[unit].Start + ((long)(item - _firstChunk[unit]) * ChunkKeys);
        var end = Math.Min(start + ChunkKeys, _units[unit].Start + _units[unit].Rows);
        if (_problem.Arguments.BlockMask is not { } mask)
        {
            Pack(unit, start, end);
            return;
        }

        var width = Packing.PanelWidth<TVector, TOps>();
        for (var panel = start; panel < end; panel += width)
        {
            if (IsListed(mask, unit, panel, panel + width))
            {
                Pack(unit, panel, panel + width);
            }
        }
    }

    private long Floats(int unit) => _units[unit].Rows * (Depth + ((long)ValueVectors * TOps.Lanes));

    /// <summary>For each set of lists that a unit may use, the key blocks that any query lists: the others are not packed.</summary>
    private bool[][] ListedBlocks(BlockMask mask)
    {
        var listed = new bool[mask.Batches == 1 && mask.Heads == 1 ? 1 : _problem.Batch * UnitsPerSequence][];
        for (var i = 0; i < listed.Length; i++)
        {
            var blocks = new bool[mask.KeyBlockCount];
            var (batch, unit) = Math.DivRem(i, UnitsPerSequence);
            for (var head = unit * HeadsPerUnit; head < (mask.Heads == 1 ? (unit * HeadsPerUnit) + 1 : (unit + 1) * HeadsPerUnit); head++)
            {
                var (start, end) = (mask.Row(batch, head, 0).Start, mask.Row(batch, head, mask.QueryBlocks - 1).End);
                for (var at = start; at < end; at++)
                {
                    blocks[mask.KeyBlockAt(at)] = true;
                }
            }

            listed[i] = blocks;
        }

        return listed;
    }

    private bool IsListed(BlockMask mask, int unit, long start, long end)
    {
        var slice = _problem.Sequence(unit / UnitsPerSequence);
        var blocks = _listed[_listed.Length == 1 ? 0 : (slice.Batch * UnitsPerSequence) + (unit % UnitsPerSequence)];
        end = Math.Min(end, slice.KeyLength);
        for (var block = (slice.KeyStart + start) / mask.KeyBlock; block * mask.KeyBlock < slice.KeyStart + end; block++)
        {
            if (blocks[block])
            {
                return true;
            }
        }

        return false;
    }

    private void Pack(int unit, long start, long end)
    {
        PackKeys(unit, start, end);
        switch (_problem.Arguments.Value.Type)
        {
            case ElementType.Float16:
                PackValues<Float16Element>(unit, start, end);
                break;
            case ElementType.BFloat16:
                PackValues<BFloat16Element>(unit, start, end);
                break;
            default:
                PackValues<Float32Element>(unit, start, end);
                break;
        }
    }

    private void PackKeys(int unit, long start, long end)
    {
        ref readonly var a = ref _problem.Arguments;
        var slice = _problem.Sequence(unit / UnitsPerSequence);
        var head = unit % UnitsPerSequence * HeadsPerUnit;
        var width = Packing.PanelWidth<TVector, TOps>();
        for (var key = start; key < end; key += width)
        {
            var keys = (int)Math.Clamp(slice.KeyLength - key, 0, width);
            var panel = KeyPanel(unit, key);
            PackPanel(a.Key, slice, _problem.KeyHeadOf(head), key, keys, panel);
            if (_problem.HasLowRank)
            {
                PackPanel(a.LowRankKey, slice, head, key, keys, panel + ((long)_problem.Width * width));
            }
        }
    }

    private static void PackPanel(in TensorView source, in SequenceSlice slice, long head, long key, int keys, float* panel)
    {
        var width = Packing.PanelWidth<TVector, TOps>();
        var offset = (slice.Batch * source.BatchStride) + (head * source.HeadStride) + ((slice.KeyStart + key) * source.RowStride);
        var depth = (nint)source.Width;
        switch (source.Type)
        {
            case ElementType.Float16:
                Packing.KeyPanel<Float16Element>((byte*)source.Data + (offset * 2), (nint)source.RowStride * 2, keys, depth, panel, width);
                break;
            case ElementType.BFloat16:
                Packing.KeyPanel<BFloat16Element>((byte*)source.Data + (offset * 2), (nint)source.RowStride * 2, keys, depth, panel, width);
                break;
            default:
                Packing.KeyPanel<Float32Element>((byte*)source.Data + (offset * 4), (nint)source.RowStride * 4, keys, depth, panel, width);
                break;
        }
    }

    private void PackValues<TElement>(int unit, long start, long end)
        where TElement : struct, IElement
    {
        ref readonly var value = ref _problem.Arguments.Value;
        var slice = _problem.Sequence(unit / UnitsPerSequence);
        var head = _problem.KeyHeadOf(unit % UnitsPerSequence * HeadsPerUnit);
        var rows = (nint)Math.Clamp(slice.KeyLength - start, 0, end - start);
        var source = (byte*)value.Data
            + (((slice.Batch * value.BatchStride) + (head * value.HeadStride) + ((slice.KeyStart + start) * value.RowStride)) * TElement.Size);
        var finite = true;
        for (int panel = 0, vector = 0; panel < ValuePanels; panel++)
        {
            var vectors = Packing.PanelVectors(ValueVectors, ValuePanels, panel);
            var (column, width) = (vector * TOps.Lanes, vectors * TOps.Lanes);
            finite &= Packing.ValuePanel<TVector, TOps, TElement>(
                source + ((nint)column * TElement.Size), (nint)value.RowStride * TElement.Size, rows, Math.Min(width, _problem.ValueWidth - column),
                ValuePanel(unit, start, vector, vectors), width);
            vector += vectors;
        }

        if (!finite)
        {
            _units[unit].Finite = false;
        }
    }

    private struct Unit
    {
        public long Start;
        public long Rows;
        public long Offset;
        public bool Finite;
    }
}
