using Heed.Interop;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>What a pair of a query and a block is.</summary>
internal enum PairState : byte
{
    /// <summary>Of different sequences, or a block of the future.</summary>
    Invalid,

    /// <summary>The block may be selected for the query.</summary>
    Free,

    /// <summary>The query lies in the block.</summary>
    Own,
}

/// <summary>The key blocks that each query attends to: what <see cref="MixtureOfBlocks"/> selected.</summary>
public sealed unsafe class BlockSelection : IDisposable
{
    private readonly (long Start, long End, int Sequence)[] _blocks;
    private readonly int[] _blockOf;
    private readonly bool _fallsBack;
    private readonly void* _similarity;
    private readonly bool _isWide;

    internal BlockSelection(Tensor similarity, (long Start, long End, int Sequence)[] blocks, long keys, bool isCausal, bool fallsBack)
    {
        (Batches, Heads, Blocks, Queries) = (checked((int)similarity.size(0)), checked((int)similarity.size(1)), blocks.Length, checked((int)similarity.size(3)));
        (_blocks, Keys, IsCausal, _fallsBack) = (blocks, keys, isCausal, fallsBack);
        Similarity = similarity;
        _similarity = (void*)TensorMemory.Data(Similarity);
        _isWide = Similarity.dtype == ScalarType.Float64;
        _blockOf = new int[keys];
        for (var block = 0; block < blocks.Length; block++)
        {
            _blockOf.AsSpan((int)blocks[block].Start, (int)(blocks[block].End - blocks[block].Start)).Fill(block);
        }

        Chosen = new bool[checked(Batches * Heads * Blocks * Queries)];
    }

    /// <summary>Batch items.</summary>
    public int Batches { get; }

    /// <summary>Query heads.</summary>
    public int Heads { get; }

    /// <summary>Blocks of all packed sequences.</summary>
    public int Blocks { get; }

    /// <summary>Queries.</summary>
    public int Queries { get; }

    /// <summary>Keys.</summary>
    public long Keys { get; }

    /// <summary>Whether blocks of the future were left out.</summary>
    public bool IsCausal { get; }

    /// <summary>Products of queries and block means, <c>[B, H, C, N]</c>; also those of pairs that cannot be selected.</summary>
    public Tensor Similarity { get; }

    /// <summary>Selected pairs over pairs that may be selected, own blocks in both: the share of the (query, block) pairs that is kept.</summary>
    public double KeptShare => Share(0, Batches * Heads * Blocks);

    internal bool[] Chosen { get; }

    /// <summary>The share of the pairs that one head keeps.</summary>
    /// <param name="batch">The batch item.</param>
    /// <param name="head">The head.</param>
    public double KeptShareOf(int batch, int head) => Share(((batch * Heads) + head) * Blocks, Blocks);

    /// <summary>Where a block begins and ends.</summary>
    /// <param name="block">The block.</param>
    public (long Start, long End) Block(int block) => (_blocks[block].Start, _blocks[block].End);

    /// <summary>Whether nothing but own blocks is selected in a batch item.</summary>
    /// <param name="batch">The batch item.</param>
    public bool IsOwnOnly(int batch)
    {
        for (var run = 0; run < Heads * Blocks; run++)
        {
            var first = (int)Offset(batch, 0, run, 0);
            for (var query = 0; query < Queries; query++)
            {
                if (Chosen[first + query] && StateOf(run % Blocks, query) != PairState.Own)
                {
                    return false;
                }
            }
        }

        return true;
    }

    /// <summary>The selected pairs, own blocks among them: boolean <c>[B, H, C, N]</c>.</summary>
    public Tensor ToTensor() => tensor(Chosen).view(Batches, Heads, Blocks, Queries);

    /// <summary>The pairs of queries and keys that attention computes, as the kernels read them: selected blocks, or where nothing but own blocks is selected and the options say so, everything.</summary>
    /// <param name="queryBlock">Queries per block of the mask.</param>
    /// <param name="keyBlock">Keys per block of the mask.</param>
    public BlockMask ToBlockMask(int queryBlock = BlockMasks.DefaultBlock, int keyBlock = BlockMasks.DefaultBlock)
    {
        var builder = new BlockMaskBuilder(Batches, Heads, Queries, Keys, queryBlock, keyBlock);
        for (var batch = 0; batch < Batches; batch++)
        {
            var everything = FallsBack(batch);
            for (var head = 0; head < Heads; head++)
            {
                for (var block = 0; block < builder.QueryBlocks; block++)
                {
                    builder.StartRow();
                    var rows = new SelectedBlocks(this, Offset(batch, head, 0, 0), block * queryBlock, everything);
                    builder.AddAll(block, ref rows);
                }
            }
        }

        return builder.Build();
    }

    /// <inheritdoc/>
    public void Dispose() => Similarity.Dispose();

    /// <summary>Whether a batch item is computed in full.</summary>
    internal bool FallsBack(int batch) => _fallsBack && IsOwnOnly(batch);

    /// <summary>Whether attention computes a pair of a head, whose pairs begin at <paramref name="head"/>.</summary>
    internal bool IsComputed(long head, int block, int query, bool everything) =>
        everything ? StateOf(block, query) != PairState.Invalid : Chosen[head + ((long)block * Queries) + query];

    internal long Offset(int batch, int head, int block, int query) => (((((long)batch * Heads) + head) * Blocks) + block) * Queries + query;

    internal double SimilarityAt(long at) => _isWide ? ((double*)_similarity)[at] : ((float*)_similarity)[at];

    internal PairState StateOf(int block, int query)
    {
        var own = _blockOf[query + Keys - Queries];
        return block == own ? PairState.Own
            : _blocks[block].Sequence != _blocks[own].Sequence || (IsCausal && block > own) ? PairState.Invalid : PairState.Free;
    }

    private double Share(int firstRun, int runs)
    {
        var (kept, valid) = (0L, 0L);
        for (var run = firstRun; run < firstRun + runs; run++)
        {
            for (var query = 0; query < Queries; query++)
            {
                kept += Chosen[((long)run * Queries) + query] ? 1 : 0;
                valid += StateOf(run % Blocks, query) == PairState.Invalid ? 0 : 1;
            }
        }

        return valid == 0 ? 0 : kept / (double)valid;
    }

    /// <summary>The keys of the blocks that the queries of a block of queries selected.</summary>
    private readonly struct SelectedBlocks(BlockSelection selection, long head, int firstQuery, bool everything) : IPairSource
    {
        public ulong Word(int row, long key, int count)
        {
            ulong word = 0;
            var query = firstQuery + row;
            var position = query + selection.Keys - selection.Queries;
            for (var at = key; at < key + count;)
            {
                var block = selection._blockOf[at];
                var end = Math.Min(selection._blocks[block].End, key + count);
                if (selection.IsComputed(head, block, query, everything))
                {
                    var visible = selection.IsCausal ? Math.Min(end, position + 1) : end;
                    word |= visible <= at ? 0 : (visible - at == 64 ? ulong.MaxValue : (1UL << (int)(visible - at)) - 1) << (int)(at - key);
                }

                at = end;
            }

            return word;
        }
    }
}
