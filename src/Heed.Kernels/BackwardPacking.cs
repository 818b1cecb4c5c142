using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>Copies of operands that the backward pass reads as rows: what it multiplies with the transposed tile, and where it
/// accumulates.</summary>
internal static unsafe class BackwardPacking
{
    /// <summary>Copies rows of any element type: destination[row, column] = scale * source[row, column]. Columns past the last, up to
    /// whole vectors, become zero.</summary>
    /// <param name="source">The view.</param>
    /// <param name="batch">The batch item.</param>
    /// <param name="head">The head.</param>
    /// <param name="firstRow">The first row.</param>
    /// <param name="rows">Number of rows.</param>
    /// <param name="scale">Factor of every element.</param>
    /// <param name="destination">Receives the rows.</param>
    /// <param name="stride">Floats from one row of the destination to the next.</param>
    /// <param name="width">Columns of the destination that are written.</param>
    /// <returns>Whether everything is finite.</returns>
    public static bool Rows<TVector, TOps>(
        TensorView source, long batch, long head, long firstRow, int rows, float scale, float* destination, nint stride, int width)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> => source.Type switch
        {
            ElementType.Float32 => Rows<TVector, TOps, Float32Element>(source, batch, head, firstRow, rows, scale, destination, stride,
                width),
            ElementType.Float16 => Rows<TVector, TOps, Float16Element>(source, batch, head, firstRow, rows, scale, destination, stride,
                width),
            _ => Rows<TVector, TOps, BFloat16Element>(source, batch, head, firstRow, rows, scale, destination, stride, width),
        };

    /// <summary>Transposes keys of any element type into panels of their depth: panel after panel of <see cref="Packing.PanelWidth"/>
    /// keys, the rows of one panel
    /// <paramref name="depth"/> of them, of which this writes those from <paramref name="firstDepth"/> on.</summary>
    /// <param name="source">The view.</param>
    /// <param name="batch">The batch item.</param>
    /// <param name="head">The head.</param>
    /// <param name="firstRow">The first key.</param>
    /// <param name="rows">Number of keys.</param>
    /// <param name="panels">The panels.</param>
    /// <param name="firstDepth">First row of each panel that is written.</param>
    /// <param name="depth">Rows of a panel.</param>
    public static void Panels<TVector, TOps>(TensorView source, long batch, long head, long firstRow, long rows, float* panels,
        long firstDepth, long depth)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var width = Packing.PanelWidth<TVector, TOps>();
        for (long row = 0; row < rows; row += width)
        {
            var panel = panels + (row * depth) + (firstDepth * width);
            var keys = (int)Math.Min(rows - row, width);
            switch (source.Type)
            {
                case ElementType.Float32:
                    Packing.KeyPanel<Float32Element>(First<Float32Element>(source, batch, head, firstRow + row),
                        (nint)source.RowStride * 4, keys, (nint)source.Width, panel, width);
                    break;
                case ElementType.Float16:
                    Packing.KeyPanel<Float16Element>(First<Float16Element>(source, batch, head, firstRow + row),
                        (nint)source.RowStride * 2, keys, (nint)source.Width, panel, width);
                    break;
                default:
                    Packing.KeyPanel<BFloat16Element>(First<BFloat16Element>(source, batch, head, firstRow + row),
                        (nint)source.RowStride * 2, keys, (nint)source.Width, panel, width);
                    break;
            }
        }
    }

    /// <summary>destination[row, column] = sum over the parts of source[part][row, column], in the order of the parts.</summary>
    /// <param name="parts">First row of each part.</param>
    /// <param name="offset">First column that is read.</param>
    /// <param name="stride">Floats from one row of a part to the next.</param>
    /// <param name="destination">The view.</param>
    /// <param name="batch">Its batch item.</param>
    /// <param name="head">Its head.</param>
    /// <param name="firstRow">Its first row.</param>
    /// <param name="rows">Number of rows.</param>
    public static void StoreSums(
        ReadOnlySpan<nint> parts, long offset, nint stride, TensorView destination, long batch, long head, long firstRow, long rows)
    {
        var width = (int)destination.Width;
        for (long row = 0; row < rows; row++)
        {
            var sum = new Span<float>(destination.Row(batch, head, firstRow + row), width);
            var at = (row * stride) + offset;
            new ReadOnlySpan<float>((float*)parts[0] + at, width).CopyTo(sum);
            for (var part = 1; part < parts.Length; part++)
            {
                System.Numerics.Tensors.TensorPrimitives.Add(sum, new ReadOnlySpan<float>((float*)parts[part] + at, width), sum);
            }
        }
    }

    /// <summary>Sets rows of a view to zero.</summary>
    public static void ClearRows(TensorView view, long batch, long head, long firstRow, long endRow)
    {
        for (var row = firstRow; row < endRow; row++)
        {
            new Span<float>(view.Row(batch, head, row), (int)view.Width).Clear();
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static byte* First<TElement>(TensorView view, long batch, long head, long row)
        where TElement : struct, IElement =>
        (byte*)view.Data + (((batch * view.BatchStride) + (head * view.HeadStride) + (row * view.RowStride)) * TElement.Size);

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static bool Rows<TVector, TOps, TElement>(
        TensorView view, long batch, long head, long firstRow, int rows, float scale, float* destination, nint stride, int width)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TElement : struct, IElement
    {
        var source = First<TElement>(view, batch, head, firstRow);
        var rowBytes = (nint)view.RowStride * TElement.Size;
        var columns = (int)view.Width;
        var factor = TOps.Create(scale);

        // Zero times anything finite adds zero; the first infinity or NaN turns the sum into NaN.
        var check = TOps.Zero;
        float rest = 0;
        for (; rows > 0; rows--)
        {
            var column = 0;
            for (; column + TOps.Lanes <= columns; column += TOps.Lanes)
            {
                var vector = TOps.Multiply(TElement.Load<TVector, TOps>(source + (column * TElement.Size)), factor);
                check = TOps.MultiplyAdd(vector, TOps.Zero, check);
                TOps.Store(vector, destination + column);
            }

            for (; column < columns; column++)
            {
                var value = TElement.Read(source + (column * TElement.Size)) * scale;
                rest += value * 0;
                destination[column] = value;
            }

            for (; column < width; column++)
            {
                destination[column] = 0;
            }

            source += rowBytes;
            destination += stride;
        }

        return TOps.Sum(check) + rest == 0;
    }
}
