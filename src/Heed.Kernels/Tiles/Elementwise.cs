using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>Normalisers that weigh every pair by itself, in place on a tile of scores. Minus infinity gives zero.</summary>
internal static unsafe class Elementwise
{
    /// <summary>max(s, 0).</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Relu<TVector, TOps>(float* scores, int columns, int rows)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        for (var row = 0; row < rows; row++)
        {
            for (var column = 0; column < columns; column += TOps.Lanes)
            {
                TOps.Store(TOps.Max(TOps.Zero, TOps.Load(scores + column)), scores + column);
            }

            scores += MicroKernel.ScoreStride;
        }
    }

    /// <summary>1 / (1 + exp(-s)).</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Sigmoid<TVector, TOps>(float* scores, int columns, int rows)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        for (var row = 0; row < rows; row++)
        {
            for (var column = 0; column < columns; column += TOps.Lanes)
            {
                TOps.Store(VectorMath.Sigmoid<TVector, TOps>(TOps.Load(scores + column)), scores + column);
            }

            scores += MicroKernel.ScoreStride;
        }
    }
}
