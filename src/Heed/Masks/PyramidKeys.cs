using Heed.Biases;
using Heed.Kernels;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>
/// Puts a level map (PSA, arXiv 2512.04025) into a call: keys and values of all levels one after the other, and a block mask that lists, for each query block, the keys of the levels that it reads, with a bias of ln r.
/// </summary>
internal sealed class PyramidKeys
{
    // Whole vectors and key panels: a level that begins elsewhere would leave parts of them unused.
    private const int Alignment = 64;

    private readonly int[] _levels;
    private readonly int _batches, _heads, _rows, _columns, _queryBlock, _keyBlock;
    private readonly long _queries, _keys;
    private readonly bool _isCausal;

    /// <summary>Checks a level map against a call.</summary>
    public PyramidKeys(AttentionCall call, Tensor level, int queryBlock, int keyBlock, bool isCausal)
    {
        (_queryBlock, _keyBlock, _isCausal) = (queryBlock, keyBlock, isCausal);
        BlockSummaries.CheckBlock(queryBlock, nameof(queryBlock));
        BlockSummaries.CheckBlock(keyBlock, nameof(keyBlock));
        var (batch, heads) = (call.Query.size(0), call.Query.size(1));
        (_queries, _keys) = (call.Query.size(2), call.Key.size(2));
        _levels = PyramidLevels.Read(level);
        long[] expected = [batch, heads, (_queries + queryBlock - 1) / queryBlock, (_keys + keyBlock - 1) / keyBlock];
        if (!level.shape.SequenceEqual(expected))
        {
            throw new ArgumentException(
                $"{_queries} queries in blocks of {queryBlock} and {_keys} keys in blocks of {keyBlock} need a level map [{string.Join(", ", expected)}]; {AttentionShape.Text(level)} was given.", nameof(level));
        }

        (_batches, _heads, _rows, _columns) = ((int)batch, (int)heads, (int)expected[2], (int)expected[3]);
        Coarsest = _levels.Length == 0 ? 0 : _levels.Max();
        if (Coarsest > 1 && keyBlock % 8 != 0)
        {
            throw new ArgumentException($"Blocks of {keyBlock} keys cannot be pooled by 2, 4 and 8: give a key block that is a multiple of 8, or levels 0 and 1 only.", nameof(keyBlock));
        }

        var options = call.Options;
        var clash = options.Mask is not null ? nameof(options.Mask)
            : options.BlockMask is not null ? nameof(options.BlockMask)
            : options.Biases.Count > 0 ? nameof(options.Biases)
            : options.WindowBefore is not null ? nameof(options.WindowBefore)
            : options.WindowAfter is not null ? nameof(options.WindowAfter)
            : options.QueryLengths is not null ? nameof(options.QueryLengths)
            : options.KeyLengths is not null ? nameof(options.KeyLengths)
            : options.QueryOffsets is not null ? nameof(options.QueryOffsets)
            : options.Normalizer != Normalizer.Softmax ? $"{nameof(options.Normalizer)}.{options.Normalizer}" : null;
        if (clash is not null)
        {
            throw new ArgumentException($"Pyramid attention cannot be combined with {nameof(AttentionOptions)}.{clash}: a pooled key stands for several places at once.", nameof(call));
        }
    }

    /// <summary>The coarsest level of the map.</summary>
    public int Coarsest { get; }

    /// <summary>The keys and values of all levels in place of the call's, and the block mask over them.</summary>
    public void Apply(AttentionCall call)
    {
        if (Coarsest == 0)
        {
            // Nothing is read at all: every row is empty, whatever the keys.
            call.Options = call.Options with { Causal = Causality.None, BlockMask = new(1, 1, _queries, _keys, _queryBlock, _keyBlock, new int[_rows + 1], []) };
            return;
        }

        var used = Enumerable.Range(0, 4).Select(power => 1 << power).Where(r => r == 1 || Array.IndexOf(_levels, r) >= 0).ToArray();
        var entry = _keyBlock / used[^1];
        var step = Alignment / (int)Gcd(Alignment, entry) * entry;

        // Pooled levels come first, so that level 1 ends where the keys end: its last block may be short.
        var starts = new long[9];
        long at = 0;
        foreach (var r in used.Reverse())
        {
            starts[r] = at;
            at += r == 1 ? _keys : ((_columns * (long)_keyBlock / r) + step - 1) / step * step;
        }

        call.Key = Levels(call.Key, used, step);
        call.Value = Levels(call.Value, used, step);
        call.Options = call.Options with { Causal = Causality.None, BlockMask = Mask(used, starts, entry, at, ShiftOf(call.Options)) };
    }

    /// <summary>The same attention over the call's own keys: the score of every key is replaced by the mean of the group that it is read in. Takes O(Nq Nk) memory.</summary>
    public void ApplyKeepingKeys(AttentionCall call)
    {
        using var scope = NewDisposeScope();
        var (query, options) = (call.Query, call.Options);
        var type = query.dtype is ScalarType.Float64 ? ScalarType.Float64 : ScalarType.Float32;
        var group = query.size(1) / call.Key.size(1);
        var (rows, keys) = (query.to(type), call.Key.to(type));
        keys = group == 1 ? keys : keys.repeat_interleave(group, 1);
        using Scalar scale = options.Scale ?? 1 / Math.Sqrt(Math.Max(1, query.size(3))), cap = options.Softcap ?? 1;
        Tensor Scores(Tensor these)
        {
            var products = matmul(rows, these.transpose(2, 3)).mul(scale);
            return options.Softcap is null ? products : products.div(cap).tanh().mul(cap);
        }

        var level = tensor(_levels).view(_batches, _heads, _rows, _columns).repeat_interleave(_queryBlock, 2).narrow(2, 0, _queries).repeat_interleave(_keyBlock, 3).narrow(3, 0, _keys);
        using Scalar shift = ShiftOf(options);
        var position = arange(_queries, dtype: int64).unsqueeze(1).add(shift);
        var plain = Scores(keys);
        var (wanted, exists) = (plain, zeros_like(level, dtype: ScalarType.Bool));
        for (var r = 1; r <= 8; r *= 2)
        {
            using Scalar value = r, last = r - 1;
            var isRead = level.eq(value);
            if (_isCausal)
            {
                // A group is seen once its last key is.
                isRead = isRead.logical_and(arange(_keys, dtype: int64).div(value, RoundingMode.floor).mul(value).add(last).le(position));
            }

            exists = exists.logical_or(isRead);
            if (r > 1 && r <= Coarsest)
            {
                wanted = where(isRead, PooledScores(r), wanted);
            }
        }

        var mask = exists.MoveToOuterDisposeScope();
        var bias = (wanted - plain).MoveToOuterDisposeScope();
        call.Options = options with { Causal = Causality.None, Mask = mask, Biases = [new DenseBias(bias)] };

        Tensor PooledScores(int r)
        {
            var pooled = Scores(Pool(BlockSummaries.FillBlocks(keys, _keyBlock), r)).repeat_interleave(r, 3).narrow(3, 0, _keys);
            var filled = (_columns * (long)_keyBlock) - _keys;
            if (filled == 0 || _isCausal)
            {
                return pooled;
            }

            // What fills up the last block are copies of the last key: those in its group, and whole groups of copies.
            using Scalar inGroup = Math.Log(1 + (filled % r));
            var ofLast = pooled.narrow(3, _keys - 1, 1).add(inGroup);
            if (filled >= r)
            {
                using Scalar beyond = Math.Log(filled / r * r);
                ofLast = logaddexp(ofLast, plain.narrow(3, _keys - 1, 1).add(beyond));
            }

            return cat([pooled.narrow(3, 0, _keys - 1), ofLast], 3);
        }
    }

    private static long Gcd(long a, long b) => b == 0 ? a : Gcd(b, a % b);

    /// <summary>Where the first query stands among the keys.</summary>
    private long ShiftOf(AttentionOptions options) => options.Causal == Causality.AlignedToStart ? 0 : _keys - _queries;

    private static Tensor Pool(Tensor filled, int r)
    {
        // Pairs of pairs, not groups at once: the sums are those of the definition.
        for (; r > 1; r /= 2)
        {
            filled = filled.unflatten(2, [filled.size(2) / 2, 2]).mean([3L]);
        }

        return filled;
    }

    private Tensor Levels(Tensor tokens, int[] used, int step)
    {
        if (used is [1])
        {
            return tokens.alias();
        }

        using var scope = NewDisposeScope();
        var filled = BlockSummaries.FillBlocks(tokens, _keyBlock);
        List<Tensor> parts = [tokens];
        for (var r = 2; r <= used[^1]; r *= 2)
        {
            filled = Pool(filled, 2);
            if (Array.IndexOf(used, r) >= 0)
            {
                parts.Insert(0, nn.functional.pad(filled, [0, 0, 0, (step - (filled.size(2) % step)) % step]));
            }
        }

        return cat(parts, 2).MoveToOuterDisposeScope();
    }

    private BlockMask Mask(int[] used, long[] starts, int entry, long length, long shift)
    {
        var lists = new RowList[_batches * _heads * _rows];
        Parallel.For(0, lists.Length, new ParallelOptions { MaxDegreeOfParallelism = get_num_threads() }, row => lists[row] = ListOf(row, used, starts, entry, shift));
        var offsets = new int[lists.Length + 1];
        var words = 0L;
        for (var row = 0; row < lists.Length; row++)
        {
            offsets[row + 1] = checked(offsets[row] + lists[row].KeyBlocks.Count);
            words += lists[row].Bits?.Count ?? 0;
        }

        var keyBlocks = new int[offsets[^1]];
        var biases = new float[keyBlocks.Length];
        var partial = words > 0 ? new bool[keyBlocks.Length] : null;
        var bits = words > 0 ? new ulong[words] : null;
        var nextWord = 0;
        for (var row = 0; row < lists.Length; row++)
        {
            lists[row].KeyBlocks.CopyTo(keyBlocks, offsets[row]);
            lists[row].Biases.CopyTo(biases, offsets[row]);
            if (lists[row].Bits is { } rowBits)
            {
                rowBits.CopyTo(bits!, nextWord);
                nextWord += rowBits.Count;
                foreach (var place in lists[row].Partial!)
                {
                    partial![offsets[row] + place] = true;
                }
            }
        }

        return new(_batches, _heads, _queries, length, _queryBlock, entry, offsets, keyBlocks, partial, Coarsest > 1 ? biases : null, bits);
    }

    private RowList ListOf(int row, int[] used, long[] starts, int entry, long shift)
    {
        var list = new RowList([], []);
        var levels = _levels.AsSpan(row * _columns, _columns);
        var firstQuery = (long)(row % _rows) * _queryBlock;
        var rows = (int)Math.Min(_queryBlock, _queries - firstQuery);
        var (firstPosition, lastPosition) = (firstQuery + shift, firstQuery + shift + rows - 1);
        for (var index = used.Length - 1; index >= 0; index--)
        {
            var r = used[index];
            var (perBlock, bias) = (_keyBlock / (r * entry), MathF.Log(r));
            for (var column = 0; column < _columns; column++)
            {
                for (var part = 0; levels[column] == r && part < perBlock; part++)
                {
                    // The pooled tokens of this entry: the first of them, and the keys that they stand for.
                    var first = ((long)column * (_keyBlock / r)) + (part * (long)entry);
                    if ((r == 1 && first >= _keys) || (_isCausal && ((first + 1) * r) - 1 > lastPosition))
                    {
                        break;
                    }

                    if (_isCausal && ((first + entry) * r) - 1 > firstPosition)
                    {
                        list.AddBits(rows, _queryBlock, entry, first, r, firstPosition);
                    }

                    list.KeyBlocks.Add((int)((starts[r] + first) / entry));
                    list.Biases.Add(bias);
                }
            }
        }

        return list;
    }

    private record struct RowList(List<int> KeyBlocks, List<float> Biases)
    {
        /// <summary>Places of the partial blocks in the list; null where there are none.</summary>
        public List<int>? Partial { get; private set; }

        public List<ulong>? Bits { get; private set; }

        /// <summary>The pairs of the block that is listed next: each query sees the tokens whose last key it sees.</summary>
        public void AddBits(int rows, int queryBlock, int entry, long first, int r, long firstPosition)
        {
            (Partial ??= []).Add(KeyBlocks.Count);
            var bits = Bits ??= [];
            var wordsPerRow = (entry + 63) / 64;
            for (var row = 0; row < queryBlock; row++)
            {
                // Token j is seen from (j + 1) r - 1 on.
                var visible = row < rows ? Math.Clamp(((firstPosition + row + 1) / r) - first, 0, entry) : 0;
                for (var word = 0; word < wordsPerRow; word++)
                {
                    var count = Math.Clamp(visible - (word * 64L), 0, 64);
                    bits.Add(count == 64 ? ulong.MaxValue : (1UL << (int)count) - 1);
                }
            }
        }
    }
}
