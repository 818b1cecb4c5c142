using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>The largest product of each query with a few keys of every block of keys: how representatives are scored.</summary>
public static unsafe class SampledMaxima
{
    /// <summary>Computes <c>output[b, h, i, c] = max over j of scale * q[b, h, i] . k[b, h / (H / Hkv), j * blocks + c]</c>.</summary>
    /// <param name="query">Queries <c>[B, H, Nq, D]</c>, float32.</param>
    /// <param name="key">The sampled keys <c>[B, Hkv, samples * blocks, D]</c>, float32: the first of every block, then the second of every block, and so on.</param>
    /// <param name="blocks">Number of blocks, from 1.</param>
    /// <param name="scale">Factor of the products.</param>
    /// <param name="output">Receives <c>[B, H, Nq, blocks]</c>, contiguous.</param>
    /// <param name="threads">Number of threads; 0: one per processor.</param>
    /// <exception cref="ArgumentException">Shapes do not fit together.</exception>
    public static void Compute(TensorView query, TensorView key, int blocks, float scale, float* output, int threads = 0)
    {
        if (query.Batch != key.Batch || query.Width != key.Width || key.Heads < 1 || query.Heads % key.Heads != 0 || blocks < 1 || key.Length < blocks || key.Length % blocks != 0
            || query.Type != ElementType.Float32 || key.Type != ElementType.Float32)
        {
            throw new ArgumentException(
                $"Maxima are taken between float32 queries [B, H, Nq, D] and as many sampled keys [B, Hkv, n, D] of each of {blocks} block(s); [{query.Batch}, {query.Heads}, {query.Length}, {query.Width}] and "
                + $"[{key.Batch}, {key.Heads}, {key.Length}, {key.Width}] were given.", nameof(key));
        }

        if (Vector512.IsHardwareAccelerated)
        {
            Compute<Vector512<float>, Vector512Operations>(query, key, blocks, scale, output, threads);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            Compute<Vector256<float>, Vector256Operations>(query, key, blocks, scale, output, threads);
        }
        else
        {
            Compute<Vector128<float>, Vector128Operations>(query, key, blocks, scale, output, threads);
        }
    }

    /// <summary>As the other overload, at one width of vectors.</summary>
    internal static void Compute<TVector, TOps>(TensorView query, TensorView key, int blocks, float scale, float* output, int threads)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        for (long batch = 0; batch < query.Batch; batch++)
        {
            for (long keyHead = 0; keyHead < key.Heads; keyHead++)
            {
                new Loop<TVector, TOps>(query, key, blocks, scale, output, batch, keyHead).Compute(threads);
            }
        }
    }

    /// <summary>The query heads of one key head.</summary>
    private sealed class Loop<TVector, TOps>(TensorView query, TensorView key, int blocks, float scale, float* output, long batch, long keyHead) : ParallelLoop
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        // Queries of an item, whole strips: a panel of keys stays in the first-level cache while all of them pass.
        private const int ItemRows = 16 * MicroKernel.Rows;

        private readonly int _width = Packing.PanelWidth<TVector, TOps>();
        private readonly int _samples = (int)(key.Length / blocks);
        private readonly long _group = query.Heads / key.Heads;
        private float* _panels;
        private bool _packing;

        private int Groups => (blocks + _width - 1) / _width;

        private long PanelFloats => Workspace.Lines(_width * key.Width);

        public void Compute(int threads)
        {
            _panels = Workspace.OfCall.Take(Groups * (long)_samples * PanelFloats);
            _packing = true;
            Run(Groups * _samples, threads);
            _packing = false;
            Run(checked((int)(_group * ((query.Length + ItemRows - 1) / ItemRows))), threads);
        }

        protected override void Run(int item)
        {
            if (_packing)
            {
                // Panel after panel, those of a group of blocks side by side: a panel holds one key of each block.
                var (group, sample) = Math.DivRem(item, _samples);
                var first = group * _width;
                Packing.KeyPanel<Float32Element>(
                    (byte*)key.Row(batch, keyHead, ((long)sample * blocks) + first), (nint)key.RowStride * sizeof(float), Math.Min(_width, blocks - first), (nint)key.Width,
                    _panels + (item * PanelFloats), _width);
                return;
            }

            var perHead = (query.Length + ItemRows - 1) / ItemRows;
            var head = (keyHead * _group) + (item / perHead);
            var row = item % perHead * ItemRows;
            ComputeRows(head, row, (int)Math.Min(ItemRows, query.Length - row));
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void ComputeRows(long head, long first, int rows)
        {
            var depth = (nint)query.Width;
            var padded = (rows + MicroKernel.Rows - 1) / MicroKernel.Rows * MicroKernel.Rows;
            var strips = Workspace.OfItem.Take(Workspace.Lines(padded * depth) + (2L * padded * _width));
            var largest = strips + Workspace.Lines(padded * depth);
            var products = largest + ((long)padded * _width);
            for (var row = 0; row < rows; row += MicroKernel.Rows)
            {
                Packing.Strip(query.Row(batch, head, first + row), (nint)query.RowStride, Math.Min(MicroKernel.Rows, rows - row), depth, scale, strips + (row * depth));
            }

            for (var group = 0; group < Groups; group++)
            {
                var columns = Math.Min(_width, blocks - (group * _width));
                var vectors = (columns + TOps.Lanes - 1) / TOps.Lanes;
                for (var sample = 0; sample < _samples; sample++)
                {
                    var panel = _panels + (((group * (long)_samples) + sample) * PanelFloats);
                    var target = sample == 0 ? largest : products;
                    for (var row = 0; row < rows; row += MicroKernel.Rows)
                    {
                        MicroKernel.Multiply<TVector, TOps, StripLayout, Zero>(strips + (row * depth), panel, _width, target + ((long)row * _width), _width, depth, vectors);
                    }

                    for (var i = 0L; sample > 0 && i < (long)padded * _width; i += TOps.Lanes)
                    {
                        TOps.Store(TOps.Max(TOps.Load(largest + i), TOps.Load(products + i)), largest + i);
                    }
                }

                for (var row = 0; row < rows; row++)
                {
                    new ReadOnlySpan<float>(largest + ((long)row * _width), columns)
                        .CopyTo(new Span<float>(output + (((((batch * query.Heads) + head) * query.Length) + first + row) * blocks) + (group * _width), columns));
                }
            }
        }
    }
}
