namespace Heed.Onnx;

/// <summary>Types of elements, by the numbers of the ONNX format.</summary>
public enum OnnxElementType
{
    /// <summary>Not known.</summary>
    Unknown = 0,

    /// <summary>32-bit floating point.</summary>
    Float32 = 1,

    /// <summary>8-bit unsigned.</summary>
    UInt8 = 2,

    /// <summary>8-bit signed.</summary>
    Int8 = 3,

    /// <summary>16-bit unsigned.</summary>
    UInt16 = 4,

    /// <summary>16-bit signed.</summary>
    Int16 = 5,

    /// <summary>32-bit signed.</summary>
    Int32 = 6,

    /// <summary>64-bit signed.</summary>
    Int64 = 7,

    /// <summary>Text.</summary>
    Text = 8,

    /// <summary>True or false.</summary>
    Boolean = 9,

    /// <summary>16-bit floating point.</summary>
    Float16 = 10,

    /// <summary>64-bit floating point.</summary>
    Float64 = 11,

    /// <summary>32-bit unsigned.</summary>
    UInt32 = 12,

    /// <summary>64-bit unsigned.</summary>
    UInt64 = 13,

    /// <summary>16-bit floating point with the range of 32-bit.</summary>
    BFloat16 = 16,
}
