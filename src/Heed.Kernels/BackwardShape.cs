namespace Heed.Kernels;

/// <summary>How the backward pass of a problem is cut into units of work, and how much memory they take: a matter of the shape alone,
/// never of the number of threads.</summary>
internal sealed unsafe class BackwardShape
{
    /// <summary>Columns of a tile, whole panels of every vector width.</summary>
    public const int TileColumns = MicroKernel.ScoreColumns;

    /// <summary>Strips of a block of queries, at most.</summary>
    public const int MostStrips = 22;

    // More lanes keep more threads busy, but each packs the keys again, which takes a fiftieth of the time of so many blocks of queries.
    private const int WantedLanes = 16;
    private const int LeastBlocksOfSplit = 8;

    // Lanes that add to one bias keep their partial sums until the end: few of them, and where there would be one alone, of blocks however
    // few.
    private const int WantedSharedLanes = 4;

    private readonly CheckedProblem _problem;
    private readonly long _divided;

    public BackwardShape(CheckedProblem problem, in AttentionGradients gradients, int lanes, int panelWidth, bool modified, bool gathers)
    {
        _problem = problem;
        long queries = problem.Queries, keys = problem.Keys;
        for (var i = 0; problem.IsPacked && i < problem.Sequences; i++)
        {
            var slice = problem.Sequence(i);
            queries = i == 0 ? slice.QueryLength : Math.Max(queries, slice.QueryLength);
            keys = i == 0 ? slice.KeyLength : Math.Max(keys, slice.KeyLength);
        }

        var wantsDenseBias = gradients.Bias.IsGiven && gradients.Bias.QueryStride != 0 && gradients.Bias.KeyStride != 0;
        SharesBatch = wantsDenseBias && problem.Batch != 1 && gradients.Bias.BatchStride == 0;
        SharesHeads = wantsDenseBias && problem.Heads != 1 && gradients.Bias.HeadStride == 0;

        // Low-rank factors belong to query heads: keys packed with them serve one query head only.
        HeadParts = problem.HasLowRank ? Math.Max(problem.Group, 1) : 1;
        Shares = problem.KeyHeads * HeadParts;
        ShareHeads = problem.Group / HeadParts;
        ShareOwners = SharesHeads ? 1 : Shares;
        var owners = (SharesBatch ? 1 : problem.Sequences) * ShareOwners;

        // Blocks of equal size waste fewer rows than full ones and a rest.
        const int most = MostStrips * MicroKernel.Rows;
        _divided = problem.ListedQueries > 0 ? problem.ListedQueries : Math.Max(1, queries);
        var parts = (_divided + most - 1) / most;
        BlockRows = (int)((((_divided + parts - 1) / parts) + MicroKernel.Rows - 1) / MicroKernel.Rows * MicroKernel.Rows);
        var blocks = (queries + BlockRows - 1) / BlockRows;
        var (wanted, least) = SharesBatch || SharesHeads ? (WantedSharedLanes, 1) : (WantedLanes, LeastBlocksOfSplit);
        Splits = (int)Math.Clamp((wanted + owners - 1) / Math.Max(owners, 1), 1, Math.Max(1, blocks / least));
        Lanes = checked(owners * Splits);

        Depth = problem.Width + problem.Rank;
        KeyWidth = (Depth + lanes - 1) / lanes * lanes;
        ValueWidth = (problem.ValueWidth + lanes - 1) / lanes * lanes;
        PanelKeys = (keys + panelWidth - 1) / panelWidth * panelWidth;
        Gathers = gathers;

        // Products with the transposed tile write back up to five rows after the last key.
        AccumulatorRows = keys + MicroKernel.Rows;
        Capped = problem.Arguments.Softcap > 0;
        Modified = modified;
    }

    /// <summary>Whether batch items add to the same elements of the dense bias's gradient.</summary>
    public bool SharesBatch { get; }

    /// <summary>Whether heads add to the same elements of the dense bias's gradient.</summary>
    public bool SharesHeads { get; }

    /// <summary>Shares of the query heads of one key/value head.</summary>
    public int HeadParts { get; }

    /// <summary>Shares of query heads: consecutive ones that read the same packed keys.</summary>
    public int Shares { get; }

    /// <summary>Query heads of a share.</summary>
    public int ShareHeads { get; }

    /// <summary>Shares of heads that different lanes own; 1 where all heads add to one bias.</summary>
    public int ShareOwners { get; }

    /// <summary>Splits of the blocks of queries.</summary>
    public int Splits { get; }

    /// <summary>Independent sequences of units.</summary>
    public int Lanes { get; }

    /// <summary>Units that add to the gradients of one key/value head.</summary>
    public int Parts => HeadParts * Splits;

    /// <summary>Queries of a block, whole strips.</summary>
    public int BlockRows { get; }

    /// <summary>Elements of a query and key with their low-rank factors.</summary>
    public int Depth { get; }

    /// <summary><see cref="Depth"/> in whole vectors.</summary>
    public int KeyWidth { get; }

    /// <summary>Elements of a value in whole vectors.</summary>
    public int ValueWidth { get; }

    /// <summary>Keys of the longest sequence in whole panels.</summary>
    public long PanelKeys { get; }

    /// <summary>Whether keys are gathered tile by tile, instead of packed once.</summary>
    public bool Gathers { get; }

    /// <summary>Keys that are packed at a time.</summary>
    public long PackedKeys => Gathers ? TileColumns : PanelKeys;

    /// <summary>Rows of the accumulated gradients of keys and values.</summary>
    public long AccumulatorRows { get; }

    /// <summary>Whether there is a softcap.</summary>
    public bool Capped { get; }

    /// <summary>Whether there is a score modifier.</summary>
    public bool Modified { get; }

    /// <summary>Floats of the accumulated gradients of keys and values.</summary>
    public long AccumulatorFloats => ValueOffset + Workspace.Lines(AccumulatorRows * ValueWidth);

    /// <summary>Where the gradient of the values begins behind that of the keys.</summary>
    public long ValueOffset => Workspace.Lines(AccumulatorRows * KeyWidth);

    /// <summary>Rows of the block that begins with a query: blocks lie within the block mask's blocks of queries, at the same rows for
    /// every batch item.</summary>
    public int RowsAt(in SequenceSlice slice, long query)
    {
        var place = (_problem.ListedQueries == 0 ? query : slice.QueryStart + query) % _divided;
        var end = Math.Min(_divided, ((place / BlockRows) + 1) * BlockRows);
        return (int)Math.Min(end - place, slice.QueryLength - query);
    }

    /// <summary>Accumulators that are alive at the same time, at most. A lane is taken after all before it, so unfinished key/value heads
    /// are no more than threads.</summary>
    public long PartialBuffers(int threads)
    {
        var heads = (long)_problem.Sequences * _problem.KeyHeads;
        return Parts == 1 ? 0 : Parts * (SharesBatch || SharesHeads ? heads : Math.Min(heads, threads));
    }
}

/// <summary>One unit of the backward pass: a sequence, a share of the heads of a key/value head, a split of its queries; and the memory
/// that it works in.</summary>
internal unsafe struct BackwardUnit
{
    /// <summary>The sequence.</summary>
    public SequenceSlice Slice;

    /// <summary>The key/value head.</summary>
    public int KeyHead;

    /// <summary>The query head at work.</summary>
    public int Head;

    /// <summary>The split of the queries.</summary>
    public int Split;

    /// <summary>First query of the block at work, within the sequence.</summary>
    public long Query;

    /// <summary>Queries of the block.</summary>
    public int Rows;

    /// <summary>Keys transposed, [panel][depth][panel width].</summary>
    public float* KeyPanels;

    /// <summary>Values transposed.</summary>
    public float* ValuePanels;

    /// <summary>Keys times the scale, with their low-rank factors, row by row.</summary>
    public float* KeyRows;

    /// <summary>Whether everything in the keys is finite, one byte per <see cref="BackwardShape.TileColumns"/> of them.</summary>
    public bool* KeysFinite;

    /// <summary>Queries times the scale, with their low-rank factors, in strips.</summary>
    public float* QueryStrips;

    /// <summary>The same, row by row.</summary>
    public float* QueryRows;

    /// <summary>Whether everything in them is finite.</summary>
    public bool QueriesFinite;

    /// <summary>Gradients of the output in strips.</summary>
    public float* OutputStrips;

    /// <summary>The same, row by row.</summary>
    public float* OutputRows;

    /// <summary>Whether everything in them is finite.</summary>
    public bool OutputFinite;

    /// <summary>The numbers that the normaliser keeps of each row.</summary>
    public float* FirstNumbers;

    /// <summary>The other ones.</summary>
    public float* SecondNumbers;

    /// <summary>Columns of each strip.</summary>
    public StripColumns* Columns;

    /// <summary>The tile: scores, then weights.</summary>
    public float* Scores;

    /// <summary>The tile: products of output gradients and values, then gradients of the scores.</summary>
    public float* Gradients;

    /// <summary>The tile: scores after the softcap.</summary>
    public float* Capped;

    /// <summary>The tile: scores before the modifier.</summary>
    public float* Unmodified;

    /// <summary>Accumulates the gradient of the queries of the block.</summary>
    public float* QueryGradient;

    /// <summary>Accumulates the gradient of the keys.</summary>
    public float* KeyGradient;

    /// <summary>Accumulates the gradient of the values.</summary>
    public float* ValueGradient;

    /// <summary>Accumulates over the queries the gradient of the scores.</summary>
    public float* ColumnSums;

    /// <summary>The memory of the tile's gathered columns.</summary>
    public float* Gathered;

    /// <summary>Accumulates the gradient of the tile's gathered keys.</summary>
    public float* TileKeyGradient;

    /// <summary>Accumulates the gradient of the tile's gathered values.</summary>
    public float* TileValueGradient;

    /// <summary>A query as it is, where its keys are read row by row.</summary>
    public float* QueryRow;

    /// <summary>Accumulates the gradient of the head's sink.</summary>
    public double SinkGradient;

    /// <summary>Accumulates the gradient of the head's ALiBi slope.</summary>
    public double SlopeGradient;

    /// <summary>Lays out the memory of a unit.</summary>
    public static BackwardUnit Create(BackwardShape shape, Workspace workspace)
    {
        var unit = default(BackwardUnit);
        unit.Lay(shape, workspace.Take(unit.Lay(shape, null)));
        return unit;
    }

    private long Lay(BackwardShape shape, float* memory)
    {
        long used = 0;
        float* Next(long floats)
        {
            var at = memory + used;
            used += Workspace.Lines(floats);
            return at;
        }

        const long tile = MostRows * MicroKernel.ScoreStride;
        KeyPanels = Next(shape.PackedKeys * shape.Depth);
        ValuePanels = Next(shape.PackedKeys * shape.ValueWidth);
        KeyRows = Next(shape.PackedKeys * shape.KeyWidth);
        KeysFinite = (bool*)Next((shape.PackedKeys / BackwardShape.TileColumns) + 1);
        QueryStrips = Next(MostRows * shape.Depth);
        QueryRows = Next(MostRows * shape.KeyWidth);
        OutputStrips = Next(MostRows * shape.ValueWidth);
        OutputRows = Next(MostRows * shape.ValueWidth);
        FirstNumbers = Next(MostRows);
        SecondNumbers = Next(MostRows);
        Columns = (StripColumns*)Next(BackwardShape.MostStrips * sizeof(StripColumns) / sizeof(float));
        Scores = Next(tile);
        Gradients = Next(tile);
        Capped = shape.Capped ? Next(tile) : null;
        Unmodified = shape.Modified ? Next(tile) : null;
        QueryGradient = Next(MostRows * shape.KeyWidth);
        ColumnSums = Next(shape.PanelKeys);
        if (shape.Gathers)
        {
            Gathered = Next(GatheredTile.Floats);
            TileKeyGradient = Next((BackwardShape.TileColumns + MicroKernel.Rows) * (long)shape.KeyWidth);
            TileValueGradient = Next((BackwardShape.TileColumns + MicroKernel.Rows) * (long)shape.ValueWidth);
            QueryRow = Next(shape.KeyWidth);
        }

        if (shape.Parts == 1)
        {
            KeyGradient = Next(shape.AccumulatorFloats);
            ValueGradient = KeyGradient + shape.ValueOffset;
        }

        return used;
    }

    private const long MostRows = BackwardShape.MostStrips * MicroKernel.Rows;
}
