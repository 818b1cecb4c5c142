using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>An element type of keys and values: how it becomes float32 on its way into registers.</summary>
internal unsafe interface IElement
{
    /// <summary>Bytes of an element.</summary>
    static abstract int Size { get; }

    static abstract float Read(byte* source);

    static abstract TVector Load<TVector, TOps>(byte* source)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>;
}

/// <summary><see cref="ElementType.Float32"/>.</summary>
internal readonly unsafe struct Float32Element : IElement
{
    public static int Size => 4;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Read(byte* source) => *(float*)source;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TVector, TOps>(byte* source)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> => TOps.Load((float*)source);
}

/// <summary><see cref="ElementType.Float16"/>.</summary>
internal readonly unsafe struct Float16Element : IElement
{
    public static int Size => 2;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Read(byte* source) => VectorMath.WidenFloat16(Vector128.CreateScalar((uint)*(ushort*)source)).ToScalar();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TVector, TOps>(byte* source)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> => TOps.LoadFloat16((ushort*)source);
}

/// <summary><see cref="ElementType.BFloat16"/>.</summary>
internal readonly unsafe struct BFloat16Element : IElement
{
    public static int Size => 2;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Read(byte* source) => BitConverter.UInt32BitsToSingle((uint)*(ushort*)source << 16);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TVector, TOps>(byte* source)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> => TOps.LoadBFloat16((ushort*)source);
}
