using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>
/// What the kernels ask of a vector of float32 lanes. Each width implements it on an empty struct; a kernel takes vector and struct as type parameters, so that one
/// source is compiled for the width the hardware has, every operation an instruction. Comparisons give all bits set or clear per lane.
/// </summary>
/// <typeparam name="TVector">The vector: 512, 256 or 128 bits of float32.</typeparam>
internal unsafe interface IVectorOperations<TVector>
    where TVector : struct
{
    /// <summary>Number of lanes.</summary>
    static abstract int Lanes { get; }

    /// <summary>Vectors side by side in a register tile of six rows: as many as the registers hold beside their operands.</summary>
    static abstract int TileVectors { get; }

    static abstract TVector Zero { get; }

    /// <summary>0, 1, 2 ... in the lanes.</summary>
    static abstract TVector Indices { get; }

    static abstract TVector Create(float value);

    static abstract TVector Load(float* source);

    static abstract void Store(TVector vector, float* destination);

    /// <summary>Loads float16 values and widens them.</summary>
    static abstract TVector LoadFloat16(ushort* source);

    /// <summary>Loads bfloat16 values and widens them.</summary>
    static abstract TVector LoadBFloat16(ushort* source);

    /// <summary>Asks for a cache line that will be read soon; any address will do.</summary>
    static abstract void Prefetch(float* address);

    static abstract TVector Add(TVector left, TVector right);

    static abstract TVector Subtract(TVector left, TVector right);

    static abstract TVector Multiply(TVector left, TVector right);

    static abstract TVector Divide(TVector left, TVector right);

    /// <summary>left * right + addend, fused where the hardware fuses.</summary>
    static abstract TVector MultiplyAdd(TVector left, TVector right, TVector addend);

    /// <summary>The larger; where one is NaN, x86 gives <paramref name="right"/>.</summary>
    static abstract TVector Max(TVector left, TVector right);

    /// <summary>The smaller; where one is NaN, x86 gives <paramref name="right"/>.</summary>
    static abstract TVector Min(TVector left, TVector right);

    static abstract TVector Abs(TVector vector);

    static abstract TVector GreaterThan(TVector left, TVector right);

    static abstract TVector GreaterThanOrEqual(TVector left, TVector right);

    static abstract TVector LessThan(TVector left, TVector right);

    static abstract TVector And(TVector left, TVector right);

    /// <summary>The lanes of <paramref name="whenSet"/> where the mask's lanes are set, those of <paramref name="whenClear"/> elsewhere.</summary>
    static abstract TVector Select(TVector mask, TVector whenSet, TVector whenClear);

    /// <summary>Bit i is set where lane i of the left is greater.</summary>
    static abstract uint GreaterThanBits(TVector left, TVector right);

    /// <summary>Lane i is set where bit i is.</summary>
    static abstract TVector MaskFromBits(uint bits);

    static abstract bool GreaterThanAny(TVector left, TVector right);

    static abstract float Sum(TVector vector);

    /// <summary>The sums of four vectors, side by side: cheaper than four times <see cref="Sum"/>.</summary>
    static abstract Vector128<float> SumEach(TVector first, TVector second, TVector third, TVector fourth);

    static abstract float MaxAcross(TVector vector);

    /// <summary>2 to the power of the lanes, within 2 units in the last place: exactly 0 for minus infinity, infinity from 128 on, NaN for NaN.</summary>
    static abstract TVector Exp2(TVector exponent);
}
