using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>Elementary functions on vectors of any width.</summary>
internal static class VectorMath
{
    /// <summary>log2(e): scores times this are exponents of two.</summary>
    public const float Log2E = 1.44269504088896f;

    /// <summary>2^f for f in [0, 1]: the polynomial of degree 5 with least relative error (8.2e-8) among those that are exactly 1 at 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Exp2OfFraction<TVector, TOps>(TVector fraction)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var result = TOps.MultiplyAdd(fraction, TOps.Create(0.00186713008191f), TOps.Create(0.00901703028444f));
        result = TOps.MultiplyAdd(result, fraction, TOps.Create(0.055799913146f));
        result = TOps.MultiplyAdd(result, fraction, TOps.Create(0.240164450136f));
        result = TOps.MultiplyAdd(result, fraction, TOps.Create(0.693151311808f));
        return TOps.MultiplyAdd(result, fraction, TOps.Create(1f));
    }

    /// <summary>e^x; exactly 0 for minus infinity, NaN for NaN.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Exp<TVector, TOps>(TVector exponent)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> => TOps.Exp2(TOps.Multiply(exponent, TOps.Create(Log2E)));

    /// <summary>1 / (1 + e^-x).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Sigmoid<TVector, TOps>(TVector x)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var one = TOps.Create(1f);
        return TOps.Divide(one, TOps.Add(one, TOps.Exp2(TOps.Multiply(x, TOps.Create(-Log2E)))));
    }

    /// <summary>log(1 + e^x) and its derivative, the sigmoid of x.</summary>
    /// <remarks>max(x, 0) + log(1 + e^-|x|); the logarithm is 2 artanh(e / (2 + e)) as an odd polynomial (relative error below 7e-09), which keeps its relative accuracy where it is small, too.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Softplus<TVector, TOps>(TVector x, out TVector derivative)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var one = TOps.Create(1f);
        var small = TOps.Exp2(TOps.Multiply(TOps.Abs(x), TOps.Create(-Log2E)));
        var whole = TOps.Divide(one, TOps.Add(one, small));
        derivative = TOps.Select(TOps.LessThan(x, TOps.Zero), TOps.Multiply(small, whole), whole);
        var ratio = TOps.Divide(small, TOps.Add(TOps.Create(2f), small));
        var square = TOps.Multiply(ratio, ratio);
        var series = TOps.MultiplyAdd(square, TOps.Create(0.280119869992f), TOps.Create(0.280018052318f));
        series = TOps.MultiplyAdd(series, square, TOps.Create(0.400215272421f));
        series = TOps.MultiplyAdd(series, square, TOps.Create(0.666664162856f));
        series = TOps.MultiplyAdd(series, square, TOps.Create(2f));
        return TOps.MultiplyAdd(ratio, series, TOps.Max(TOps.Zero, x));
    }

    /// <summary>tanh(x): an odd polynomial near zero, where 1 - 2 / (1 + e^2x) would cancel.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Tanh<TVector, TOps>(TVector x)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var one = TOps.Create(1f);
        var square = TOps.Multiply(x, x);
        var near = TOps.MultiplyAdd(square, TOps.Create(-0.00589515926281f), TOps.Create(0.0207959726764f));
        near = TOps.MultiplyAdd(near, square, TOps.Create(-0.0537838305725f));
        near = TOps.MultiplyAdd(near, square, TOps.Create(0.1333192413f));
        near = TOps.MultiplyAdd(near, square, TOps.Create(-0.333332980022f));
        near = TOps.MultiplyAdd(TOps.Multiply(near, square), x, x);
        var far = TOps.Subtract(one, TOps.Divide(TOps.Create(2f), TOps.Add(one, TOps.Exp2(TOps.Multiply(x, TOps.Create(2 * Log2E))))));
        return TOps.Select(TOps.LessThan(TOps.Abs(x), TOps.Create(0.6f)), near, far);
    }

    /// <summary>The values of float16 bit patterns, one per 32-bit lane: exponent and fraction are shifted into place and the product with 2^112 mends the
    /// exponent's bias, subnormal values included.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> WidenFloat16(Vector512<uint> bits)
    {
        var magnitude = (bits & Vector512.Create(0x7FFFu)) << 13;
        var value = (magnitude.AsSingle() * Vector512.Create(0x77800000u).AsSingle()).AsUInt32();
        var special = Vector512.GreaterThanOrEqual(magnitude, Vector512.Create(0x0F800000u)) & Vector512.Create(0x7F800000u);
        return (value | special | ((bits & Vector512.Create(0x8000u)) << 16)).AsSingle();
    }

    /// <inheritdoc cref="WidenFloat16(Vector512{uint})"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> WidenFloat16(Vector256<uint> bits)
    {
        var magnitude = (bits & Vector256.Create(0x7FFFu)) << 13;
        var value = (magnitude.AsSingle() * Vector256.Create(0x77800000u).AsSingle()).AsUInt32();
        var special = Vector256.GreaterThanOrEqual(magnitude, Vector256.Create(0x0F800000u)) & Vector256.Create(0x7F800000u);
        return (value | special | ((bits & Vector256.Create(0x8000u)) << 16)).AsSingle();
    }

    /// <inheritdoc cref="WidenFloat16(Vector512{uint})"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> WidenFloat16(Vector128<uint> bits)
    {
        var magnitude = (bits & Vector128.Create(0x7FFFu)) << 13;
        var value = (magnitude.AsSingle() * Vector128.Create(0x77800000u).AsSingle()).AsUInt32();
        var special = Vector128.GreaterThanOrEqual(magnitude, Vector128.Create(0x0F800000u)) & Vector128.Create(0x7F800000u);
        return (value | special | ((bits & Vector128.Create(0x8000u)) << 16)).AsSingle();
    }
}
