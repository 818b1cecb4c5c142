using System.Buffers.Binary;
using System.Text;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Checkpoints;

public sealed class SafetensorsTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void EveryTypeSurvivesWritingAndReading()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var tensors = new Dictionary<string, Tensor>
        {
            ["f64"] = randn(3, 2, dtype: float64), ["f32"] = randn(5), ["f16"] = randn(4).to(float16), ["bf16"] = randn(2, 2).to(bfloat16),
            ["i64"] = tensor(new[] { long.MinValue, 0, long.MaxValue }), ["i32"] = tensor(new[] { int.MinValue, 7 }), ["i16"] = tensor(new short[] { -3, 300 }),
            ["i8"] = tensor(new sbyte[] { -128, 127 }), ["u8"] = tensor(new byte[] { 0, 255, 9 }), ["bool"] = tensor(new[] { true, false, true }),
            ["scalar"] = tensor(2.5f), ["empty"] = empty(0, 3), ["transposed"] = arange(6, dtype: float32).view(2, 3).t(),
        };
        SafetensorsWriter.Write(_folder.At("a.safetensors"), tensors, new Dictionary<string, string> { ["note"] = "é \" \n" });

        using var reader = new SafetensorsReader(_folder.At("a.safetensors"));

        Assert.Equal(tensors.Keys.Order(), reader.Entries.Keys.Order());
        Assert.Equal("é \" \n", reader.Metadata["note"]);
        foreach (var (name, expected) in tensors)
        {
            var actual = reader.Read(name);
            Assert.Equal(expected.dtype, actual.dtype);
            Assert.Equal(expected.shape, actual.shape);
            Assert.True(expected.eq(actual).all().item<bool>(), name);
        }

        Assert.Equal([_folder.At("a.safetensors")], Directory.GetFiles(_folder.Path));
    }

    [Fact]
    public void FloatingTensorsAreRoundedOnRequestAndOthersKept()
    {
        using var scope = NewDisposeScope();
        var value = tensor(new[] { 1.00390625f, -3.14159f });
        SafetensorsWriter.Write(
            _folder.At("a.safetensors"), new Dictionary<string, Tensor> { ["w"] = value, ["n"] = tensor(new[] { 5L }) }, floatingType: ScalarType.BFloat16);

        using var reader = new SafetensorsReader(_folder.At("a.safetensors"));

        Assert.Equal(ScalarType.BFloat16, reader.Entries["w"].Type);
        Assert.Equal(ScalarType.Int64, reader.Entries["n"].Type);
        var target = zeros(2);
        reader.ReadInto("w", target);
        Assert.True(target.eq(value.to(bfloat16).to(float32)).all().item<bool>());
    }

    [Fact]
    public void AFailedWriteLeavesTheFormerFile()
    {
        using var scope = NewDisposeScope();
        var path = _folder.At("a.safetensors");
        SafetensorsWriter.Write(path, new Dictionary<string, Tensor> { ["w"] = ones(2) });
        var before = File.ReadAllBytes(path);

        Assert.Throws<ArgumentException>(() => SafetensorsWriter.Write(path, new Dictionary<string, Tensor> { ["w"] = zeros(2, dtype: complex64) }));
        Assert.Throws<IOException>(() => AtomicFile.Write(path, stream =>
        {
            stream.WriteByte(1);
            throw new IOException("No space left on device");
        }));

        Assert.Equal(before, File.ReadAllBytes(path));
        Assert.Single(Directory.GetFiles(_folder.Path));
    }

    [Fact]
    public void MissingNamesAndWrongShapesAreRefused()
    {
        using var scope = NewDisposeScope();
        SafetensorsWriter.Write(_folder.At("a.safetensors"), new Dictionary<string, Tensor> { ["w"] = ones(2) });
        using var reader = new SafetensorsReader(_folder.At("a.safetensors"));

        Assert.Contains("'v'", Assert.Throws<KeyNotFoundException>(() => reader.Read("v")).Message);
        Assert.Contains("[3]", Assert.Throws<ArgumentException>(() => reader.ReadInto("w", zeros(3))).Message);
        Assert.Throws<FileNotFoundException>(() => new SafetensorsReader(_folder.At("none.safetensors")));
    }

    public static TheoryData<string, string, int> HostileHeaders() => new()
    {
        { "not valid JSON", "{\"a\":", 0 },
        { "not a JSON object", "[1]", 0 },
        { "not valid JSON", "{} x", 0 },
        { "twice", Entry("a", "F32", "[1]", 0, 4) + "," + Entry("a", "F32", "[1]", 4, 8), 8 },
        { "overlap", Entry("a", "F32", "[2]", 0, 8) + "," + Entry("b", "F32", "[1]", 4, 8), 8 },
        { "gap", Entry("a", "F32", "[1]", 0, 4) + "," + Entry("b", "F32", "[1]", 8, 12), 12 },
        { "belong to none", Entry("a", "F32", "[1]", 0, 4), 12 },
        { "claims bytes", Entry("a", "F32", "[2]", 0, 8), 4 },
        { "claims bytes", Entry("a", "F32", "[1]", 4, 0), 4 },
        { "claims bytes", Entry("a", "F32", "[1]", long.MaxValue - 3, long.MaxValue), 4 },
        { "does not fit", Entry("a", "F32", "[3]", 0, 4), 4 },
        { "does not fit", Entry("a", "F32", "[4611686018427387904, 4]", 0, 4), 4 },
        { "does not fit", Entry("a", "F64", "[9223372036854775807, 9223372036854775807, 0]", 0, 0), 0 },
        { "whole numbers", Entry("a", "F32", "[-1]", 0, 4), 4 },
        { "whole numbers", Entry("a", "F32", "[1.5]", 0, 4), 4 },
        { "whole numbers", Entry("a", "F32", "[99999999999999999999]", 0, 4), 4 },
        { "unknown type F8_E4M3", Entry("a", "F8_E4M3", "[4]", 0, 4), 4 },
        { "lacks", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4 },
        { "malformed member 'shape'", "{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4 },
        { "malformed member 'dtype'", "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4 },
        { "not a string", "{\"__metadata__\":{\"k\":1}}", 0 },
        { "whole numbers", "{\"a\":{\"dtype\":\"F32\",\"shape\":[[[[[[[[[[1]]]]]]]]]],\"data_offsets\":[0,4]}}", 4 },
    };

    [Theory]
    [MemberData(nameof(HostileHeaders))]
    public void HostileHeadersAreRefusedWithASentence(string expected, string header, int dataBytes)
    {
        var json = header.StartsWith('"') ? $"{{{header}}}" : header;
        Write(Encoding.UTF8.GetBytes(json), dataBytes);

        var error = Assert.Throws<InvalidDataException>(() => new SafetensorsReader(_folder.At("hostile.safetensors")));

        Assert.Contains(expected, error.Message);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Theory]
    [InlineData(0, "at least 8")]
    [InlineData(7, "at least 8")]
    public void AFileWithoutALengthIsRefused(int bytes, string expected)
    {
        File.WriteAllBytes(_folder.At("hostile.safetensors"), new byte[bytes]);

        Assert.Contains(expected, Assert.Throws<InvalidDataException>(() => new SafetensorsReader(_folder.At("hostile.safetensors"))).Message);
    }

    [Theory]
    [InlineData(1000UL, "beyond its end")]
    [InlineData(100_000_001UL, "at most 100000000")]
    [InlineData(ulong.MaxValue, "at most 100000000")]
    public void AHeaderLengthThatLiesIsRefusedBeforeAnythingIsAllocated(ulong length, string expected)
    {
        var file = new byte[64];
        BinaryPrimitives.WriteUInt64LittleEndian(file, length);
        File.WriteAllBytes(_folder.At("hostile.safetensors"), file);
        var before = GC.GetAllocatedBytesForCurrentThread();

        var error = Assert.Throws<InvalidDataException>(() => new SafetensorsReader(_folder.At("hostile.safetensors")));

        Assert.Contains(expected, error.Message);
        Assert.True(GC.GetAllocatedBytesForCurrentThread() - before < 1_000_000);
    }

    [Fact]
    public void EveryTruncationOfAGoodFileIsRefused()
    {
        using var scope = NewDisposeScope();
        SafetensorsWriter.Write(_folder.At("good.safetensors"), new Dictionary<string, Tensor> { ["a"] = ones(3), ["b"] = ones(2, 2) });
        var good = File.ReadAllBytes(_folder.At("good.safetensors"));
        for (var length = 0; length < good.Length; length++)
        {
            File.WriteAllBytes(_folder.At("hostile.safetensors"), good[..length]);
            Assert.Throws<InvalidDataException>(() => new SafetensorsReader(_folder.At("hostile.safetensors")));
        }
    }

    private static string Entry(string name, string type, string shape, long begin, long end) =>
        $"\"{name}\":{{\"dtype\":\"{type}\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}";

    private void Write(byte[] header, int dataBytes)
    {
        var file = new byte[8 + header.Length + dataBytes];
        BinaryPrimitives.WriteUInt64LittleEndian(file, (ulong)header.Length);
        header.CopyTo(file, 8);
        File.WriteAllBytes(_folder.At("hostile.safetensors"), file);
    }
}
