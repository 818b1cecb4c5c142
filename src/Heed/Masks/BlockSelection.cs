using Heed.Interop;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>The key blocks that each query attends to: what <see cref="MixtureOfBlocks"/> selected.</summary>
public sealed unsafe class BlockSelection : IDisposable
{
    private readonly (long Start, long End, int Sequence)[] _blocks;
    private readonly int[] _blockOf;
    private readonly bool _fallsBack;
    private readonly void* _similarity;
    private readonly (long Start, long End)[] _sequences;

    internal BlockSelection(Tensor similarity, (long Start, long End, int Sequence)[] blocks, long keys, bool isCausal, bool fallsBack)
    {
        (Batches, Heads, Blocks, Queries) = (checked((int)similarity.size(0)), checked((int)similarity.size(1)), blocks.Length, checked((int)similarity.size(3)));
        (_blocks, Keys, IsCausal, _fallsBack) = (blocks, keys, isCausal, fallsBack);
        Similarity = similarity;
        _similarity = (void*)TensorMemory.Data(Similarity);
        _sequences = [.. blocks.GroupBy(block => block.Sequence).Select(group => (group.First().Start, group.Last().End))];
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
            var queries = Chosen.AsSpan((int)Offset(batch, 0, run, 0), Queries);
            var (start, end) = OwnQueries(run % Blocks);
            if (queries[..(int)Math.Max(start, 0)].Contains(true) || queries[(int)Math.Max(end, 0)..].Contains(true))
            {
                return false;
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
        everything ? ValidQueries(block) is var valid && query >= valid.Start && query < valid.End : Chosen[head + ((long)block * Queries) + query];

    internal long Offset(int batch, int head, int block, int query) => (((((long)batch * Heads) + head) * Blocks) + block) * Queries + query;

    /// <summary>Similarities as they lie in memory, T being their type.</summary>
    internal ReadOnlySpan<T> Similarities<T>(long first, int count)
        where T : unmanaged => new((T*)_similarity + first, count);

    /// <summary>The queries that lie in a block.</summary>
    internal (long Start, long End) OwnQueries(int block) => (_blocks[block].Start - (Keys - Queries), _blocks[block].End - (Keys - Queries));

    /// <summary>The queries that may select a block, or lie in it.</summary>
    internal (long Start, long End) ValidQueries(int block)
    {
        var (start, end) = _sequences[_blocks[block].Sequence];
        return ((IsCausal ? _blocks[block].Start : start) - (Keys - Queries), end - (Keys - Queries));
    }

    private double Share(int firstRun, int runs)
    {
        var (kept, valid) = (0L, 0L);
        for (var run = firstRun; run < firstRun + runs; run++)
        {
            var (start, end) = ValidQueries(run % Blocks);
            kept += Chosen.AsSpan(run * Queries, Queries).Count(true);
            valid += end - Math.Max(start, 0);
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
