using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>The end of a forward pass.</summary>
internal static unsafe class ForwardRows<TVector, TOps>
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    /// <summary>destination = factor * source.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Scale(float* source, float factor, float* destination, int width)
    {
        var column = 0;
        for (; column + TOps.Lanes <= width; column += TOps.Lanes)
        {
            TOps.Store(TOps.Multiply(TOps.Load(source + column), TOps.Create(factor)), destination + column);
        }

        for (; column < width; column++)
        {
            destination[column] = source[column] * factor;
        }
    }
}
