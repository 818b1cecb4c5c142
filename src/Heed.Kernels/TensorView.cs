namespace Heed.Kernels;

/// <summary>The element type that a <see cref="TensorView"/> points to.</summary>
public enum ElementType
{
    /// <summary>32-bit IEEE floating point.</summary>
    Float32,

    /// <summary>16-bit IEEE floating point. Keys and values only; converted to float32 in registers.</summary>
    Float16,

    /// <summary>bfloat16: the upper half of a float32. Keys and values only; converted to float32 in registers.</summary>
    BFloat16,
}

/// <summary>
/// A view of a tensor <c>[batch, heads, length, width]</c> in memory that the caller keeps alive. The elements of a row are contiguous;
/// every other dimension has a stride of its own, counted in elements, which may be zero (broadcast) or negative.
/// </summary>
/// <param name="Data">The first element. Null with the other members zero stands for "not given".</param>
/// <param name="Batch">Size of the batch dimension.</param>
/// <param name="Heads">Number of heads.</param>
/// <param name="Length">Number of rows (tokens).</param>
/// <param name="Width">Number of elements of a row (the head dimension).</param>
/// <param name="BatchStride">Elements from one batch item to the next.</param>
/// <param name="HeadStride">Elements from one head to the next.</param>
/// <param name="RowStride">Elements from one row to the next.</param>
/// <param name="Type">The element type; <see cref="ElementType.Float32"/> except for keys and values.</param>
public readonly unsafe record struct TensorView(
    nint Data, long Batch, long Heads, long Length, long Width, long BatchStride, long HeadStride, long RowStride, ElementType Type = ElementType.Float32)
{
    /// <summary>A view of a dense row-major tensor.</summary>
    public TensorView(float* data, long batch, long heads, long length, long width)
        : this((nint)data, batch, heads, length, width, heads * length * width, length * width, width)
    {
    }

    /// <summary>Whether the view points to anything.</summary>
    public bool IsGiven => Data != 0;

    /// <summary>The first element of a row of a float32 view.</summary>
    public float* Row(long batch, long head, long row) => (float*)Data + (batch * BatchStride) + (head * HeadStride) + (row * RowStride);
}
