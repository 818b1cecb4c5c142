using System.Globalization;
using Microsoft.ML.OnnxRuntime;

namespace Heed.Onnx;

/// <summary>A tensor that a model is given or gives: plain memory, row by row.</summary>
public sealed class OnnxTensor
{
    private OnnxTensor(Array values, OnnxElementType type, long[] shape)
    {
        Values = values;
        Type = type;
        Shape = shape;
        if (shape.Any(size => size < 0) || shape.Aggregate(1L, (count, size) => checked(count * size)) != values.Length)
        {
            throw new ArgumentException($"A tensor of the shape [{string.Join(", ", shape)}] does not have {values.Length} values.", nameof(shape));
        }
    }

    /// <summary>Its values: an array of the .NET type of <see cref="Type"/>; <see cref="ushort"/> bits for 16-bit floating point.</summary>
    public Array Values { get; }

    /// <summary>Type of its elements.</summary>
    public OnnxElementType Type { get; }

    /// <summary>Its sizes.</summary>
    public IReadOnlyList<long> Shape { get; }

    /// <summary>A tensor of floating-point numbers.</summary>
    /// <param name="values">The values, row by row.</param>
    /// <param name="shape">Its sizes.</param>
    /// <exception cref="ArgumentException">The shape does not have as many elements.</exception>
    public static OnnxTensor Of(float[] values, params long[] shape)
    {
        ArgumentNullException.ThrowIfNull(values);
        ArgumentNullException.ThrowIfNull(shape);
        return new(values, OnnxElementType.Float32, shape);
    }

    /// <summary>A tensor of whole numbers.</summary>
    /// <inheritdoc cref="Of(float[], long[])"/>
    public static OnnxTensor Of(long[] values, params long[] shape)
    {
        ArgumentNullException.ThrowIfNull(values);
        ArgumentNullException.ThrowIfNull(shape);
        return new(values, OnnxElementType.Int64, shape);
    }

    /// <summary>A tensor of 64-bit floating-point numbers.</summary>
    /// <inheritdoc cref="Of(float[], long[])"/>
    public static OnnxTensor Of(double[] values, params long[] shape)
    {
        ArgumentNullException.ThrowIfNull(values);
        ArgumentNullException.ThrowIfNull(shape);
        return new(values, OnnxElementType.Float64, shape);
    }

    /// <summary>Its values as 32-bit floating point.</summary>
    /// <exception cref="NotSupportedException">Its elements are no numbers.</exception>
    public float[] ToSingles() => Values switch
    {
        float[] values => values,
        double[] values => Array.ConvertAll(values, value => (float)value),
        long[] values => Array.ConvertAll(values, value => (float)value),
        int[] values => Array.ConvertAll(values, value => (float)value),
        byte[] values => Array.ConvertAll(values, value => (float)value),
        sbyte[] values => Array.ConvertAll(values, value => (float)value),
        bool[] values => Array.ConvertAll(values, value => value ? 1f : 0),
        ushort[] values when Type == OnnxElementType.Float16 => Array.ConvertAll(values, value => (float)BitConverter.UInt16BitsToHalf(value)),
        ushort[] values when Type == OnnxElementType.BFloat16 => Array.ConvertAll(values, value => BitConverter.UInt32BitsToSingle((uint)value << 16)),
        _ => throw new NotSupportedException($"Elements of the type {Type} are no numbers that can be shown."),
    };

    /// <summary>The same values in the type that a model wants.</summary>
    /// <exception cref="ArgumentException">A value would be lost.</exception>
    internal OnnxTensor To(OnnxElementType wanted, string input)
    {
        if (wanted == Type)
        {
            return this;
        }

        var whole = wanted is OnnxElementType.Int64 or OnnxElementType.Int32 or OnnxElementType.UInt8 or OnnxElementType.Int8 or OnnxElementType.Boolean;
        if (whole && Type is OnnxElementType.Float16 or OnnxElementType.BFloat16)
        {
            throw Unsuitable(wanted, input);
        }

        double[] numbers = Values is long[] integers && whole ? Array.ConvertAll(integers, value => (double)value)
            : Values is double[] doubles ? doubles : Array.ConvertAll(ToSingles(), value => (double)value);
        if (whole && numbers.Any(value => value != Math.Floor(value) || Math.Abs(value) > long.MaxValue / 2))
        {
            throw Unsuitable(wanted, input);
        }

        long[] shape = [.. Shape];
        try
        {
            return wanted switch
            {
                OnnxElementType.Float32 => new(Array.ConvertAll(numbers, value => (float)value), wanted, shape),
                OnnxElementType.Float64 => new(numbers, wanted, shape),
                OnnxElementType.Float16 => new(Array.ConvertAll(numbers, value => BitConverter.HalfToUInt16Bits((Half)value)), wanted, shape),
                OnnxElementType.Int64 => new(Array.ConvertAll(numbers, value => checked((long)value)), wanted, shape),
                OnnxElementType.Int32 => new(Array.ConvertAll(numbers, value => checked((int)value)), wanted, shape),
                OnnxElementType.UInt8 => new(Array.ConvertAll(numbers, value => checked((byte)value)), wanted, shape),
                OnnxElementType.Int8 => new(Array.ConvertAll(numbers, value => checked((sbyte)value)), wanted, shape),
                OnnxElementType.Boolean => new(Array.ConvertAll(numbers, value => value != 0), wanted, shape),
                _ => throw Unsuitable(wanted, input),
            };
        }
        catch (OverflowException)
        {
            throw Unsuitable(wanted, input);
        }
    }

    /// <summary>The tensor as the runtime takes it.</summary>
    internal OrtValue ToRuntime()
    {
        long[] shape = [.. Shape];
        return Values switch
        {
            float[] values => OrtValue.CreateTensorValueFromMemory(values, shape),
            double[] values => OrtValue.CreateTensorValueFromMemory(values, shape),
            long[] values => OrtValue.CreateTensorValueFromMemory(values, shape),
            int[] values => OrtValue.CreateTensorValueFromMemory(values, shape),
            byte[] values => OrtValue.CreateTensorValueFromMemory(values, shape),
            sbyte[] values => OrtValue.CreateTensorValueFromMemory(values, shape),
            bool[] values => OrtValue.CreateTensorValueFromMemory(values, shape),
            ushort[] values when Type == OnnxElementType.Float16 => OrtValue.CreateTensorValueFromMemory(Array.ConvertAll(values, bits => new Float16(bits)), shape),
            ushort[] values when Type == OnnxElementType.BFloat16 => OrtValue.CreateTensorValueFromMemory(Array.ConvertAll(values, bits => new BFloat16(bits)), shape),
            _ => throw new NotSupportedException($"Tensors of the type {Type} cannot be given to a model."),
        };
    }

    /// <summary>A tensor from what the runtime gave; null where it is of a kind that is no plain tensor of numbers.</summary>
    internal static OnnxTensor? FromRuntime(OrtValue value)
    {
        if (!value.IsTensor)
        {
            return null;
        }

        var information = value.GetTensorTypeAndShape();
        var shape = information.Shape;
        var type = (OnnxElementType)information.ElementDataType;
        T[] Read<T>()
            where T : unmanaged => value.GetTensorDataAsSpan<T>().ToArray();
        return type switch
        {
            OnnxElementType.Float32 => new(Read<float>(), type, shape),
            OnnxElementType.Float64 => new(Read<double>(), type, shape),
            OnnxElementType.Int64 => new(Read<long>(), type, shape),
            OnnxElementType.Int32 => new(Read<int>(), type, shape),
            OnnxElementType.UInt8 => new(Read<byte>(), type, shape),
            OnnxElementType.Int8 => new(Read<sbyte>(), type, shape),
            OnnxElementType.Boolean => new(Read<bool>(), type, shape),
            OnnxElementType.Float16 => new(Array.ConvertAll(Read<Float16>(), number => number.value), type, shape),
            OnnxElementType.BFloat16 => new(Array.ConvertAll(Read<BFloat16>(), number => number.value), type, shape),
            _ => null,
        };
    }

    private ArgumentException Unsuitable(OnnxElementType wanted, string input) =>
        new(string.Create(CultureInfo.InvariantCulture, $"The input '{input}' takes {wanted} values, and what was given for it ({Type}) cannot become that without loss."));
}
