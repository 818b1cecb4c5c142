using System.IO.Compression;
using System.Text;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Checkpoints;

public sealed class TorchCheckpointReaderTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Theory]
    [InlineData("f64", ScalarType.Float64)]
    [InlineData("f32", ScalarType.Float32)]
    [InlineData("f16", ScalarType.Float16)]
    [InlineData("bf16", ScalarType.BFloat16)]
    [InlineData("i64", ScalarType.Int64)]
    [InlineData("i32", ScalarType.Int32)]
    [InlineData("i16", ScalarType.Int16)]
    [InlineData("i8", ScalarType.Int8)]
    [InlineData("u8", ScalarType.Byte)]
    public void Every_type_is_read(string name, ScalarType type)
    {
        using var scope = NewDisposeScope();
        using var reader = new TorchCheckpointReader(Asset("types.pth"));
        Assert.Equal(type, reader.Entries[name].Type);
        Assert.Equal([2L, 3], reader.Entries[name].Shape);
        var value = reader.Read(name);
        Assert.Equal(type, value.dtype);
        Assert.Equal([0, 1, 2, 3, 4, 5], value.to(float64).data<double>().ToArray());
    }

    [Fact]
    public void Views_scalars_empty_tensors_and_parameters_are_read()
    {
        using var scope = NewDisposeScope();
        using var reader = new TorchCheckpointReader(Asset("types.pth"), "model");
        var all = arange(24, dtype: float32).view(4, 6);
        Assert.True(reader.Read("transposed").equal(all.t()).all().item<bool>());
        Assert.True(reader.Read("transposed").is_contiguous());
        Assert.True(reader.Read("slice").equal(all.slice(0, 1, 3, 1).slice(1, 2, 5, 1)).all().item<bool>());
        Assert.Equal(2.5f, reader.Read("scalar").item<float>());
        Assert.Equal([0L, 3], reader.Read("empty").shape);
        Assert.Equal([7f, 7, 7, 7], reader.Read("parameter").data<float>().ToArray());
        Assert.Equal([true, false, true], reader.Read("bool").data<bool>().ToArray());
        var wide = zeros(4, 6, dtype: float64);
        reader.ReadInto("slice", wide.narrow(0, 0, 2).narrow(1, 0, 3));
        Assert.Equal(8, wide[0, 0].item<double>());
        Assert.Throws<ArgumentException>(() => reader.ReadInto("slice", wide));
        Assert.Contains("'none'", Assert.Throws<KeyNotFoundException>(() => reader.Read("none")).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_bare_state_dictionary_is_read()
    {
        using var reader = new TorchCheckpointReader(Asset("norm.pth"));
        Assert.Equal(["bias", "num_batches_tracked", "running_mean", "running_var", "weight"], reader.Entries.Keys.Order(StringComparer.Ordinal));
    }

    [Theory]
    [InlineData("old.pth", "before version 1.6")]
    [InlineData("module.pth", "to import 'torch.nn.modules.batchnorm.BatchNorm1d'")]
    [InlineData("script.pt", "TorchScript")]
    [InlineData("list.pth", "does not hold a dictionary")]
    [InlineData("nested.pth", "its keys are weights_of_mine")]
    [InlineData("types.pth", "no dictionary under 'models'", "models")]
    [InlineData("README.txt", "is not the zip archive")]
    public void What_is_no_state_dictionary_is_told_in_a_sentence(string file, string sentence, string? key = null)
    {
        var path = Asset(file);
        if (file == "README.txt")
        {
            File.WriteAllText(path = _folder.At(file), "weights");
        }

        var message = Assert.Throws<InvalidDataException>(() => new TorchCheckpointReader(path, key)).Message;
        Assert.Contains(sentence, message, StringComparison.Ordinal);
        Assert.Contains(Path.GetFileName(path), message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_key_of_ones_own_and_a_missing_file()
    {
        using var reader = new TorchCheckpointReader(Asset("nested.pth"), "weights_of_mine");
        Assert.Equal(["a"], reader.Entries.Keys);
        Assert.Contains("does not exist", Assert.Throws<FileNotFoundException>(() => new TorchCheckpointReader(_folder.At("none.pth"))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_pickle_that_calls_anything_else_is_refused_before_it_could()
    {
        // What a hostile file would hold: os.system('touch ...') through the reduce operation.
        var marker = _folder.At("touched");
        var path = Write("evil.pth", [0x80, 2, .. "cposix\nsystem\n("u8, .. Text($"touch {marker}"), .. "tR."u8]);
        Assert.Contains("to import 'posix.system'", Assert.Throws<InvalidDataException>(() => new TorchCheckpointReader(path)).Message, StringComparison.Ordinal);
        Assert.False(File.Exists(marker));
    }

    [Theory]
    [InlineData(4, 0, "needs 4 elements, and its storage has 3")]
    [InlineData(3, 1, "needs 4 elements")]
    [InlineData(3, -1, "impossible strides")]
    [InlineData(-3, 0, "impossible strides")]
    public void A_tensor_must_lie_within_its_storage(int size, int offset, string sentence)
    {
        var path = Write("tensor.pth", OneTensor(size, 1, offset));
        Assert.Contains(sentence, Assert.Throws<InvalidDataException>(() => new TorchCheckpointReader(path)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_tensor_whose_elements_share_memory_cannot_claim_more_than_its_storage_has()
    {
        var path = Write("tensor.pth", OneTensor(1 << 30, 0, 0));
        Assert.Contains("needs 1,073,741,824 elements", Assert.Throws<InvalidDataException>(() => new TorchCheckpointReader(path)).Message, StringComparison.Ordinal);
        using var reader = new TorchCheckpointReader(Write("sound.pth", OneTensor(3, 1, 0)));
        Assert.Equal([3L], reader.Entries["w"].Shape);
    }

    [Fact]
    public void Damaged_files_are_refused_or_read_but_never_break_anything()
    {
        var sound = File.ReadAllBytes(Asset("types.pth"));
        var path = _folder.At("damaged.pth");
        var refused = 0;
        for (var i = 0; i < 240; i++)
        {
            var random = new Random(i);
            var bytes = (byte[])sound.Clone();
            if (i % 3 == 0)
            {
                bytes = bytes[..random.Next(bytes.Length)];
            }
            else
            {
                // Most of the first bytes are the pickle, the last the directory.
                bytes[i % 3 == 1 ? random.Next(1600) : random.Next(bytes.Length)] ^= (byte)(1 << random.Next(8));
            }

            File.WriteAllBytes(path, bytes);
            try
            {
                using var scope = NewDisposeScope();
                using var reader = new TorchCheckpointReader(path);
                foreach (var name in reader.Entries.Keys)
                {
                    reader.Read(name);
                }
            }
            catch (InvalidDataException error)
            {
                refused++;
                Assert.StartsWith(path, error.Message, StringComparison.Ordinal);
            }
        }

        Assert.InRange(refused, 80, 240);
    }

    private static string Asset(string name) => Path.Combine(AppContext.BaseDirectory, "Checkpoints", "Data", name);

    private static byte[] Text(string text) => [(byte)'X', .. BitConverter.GetBytes(Encoding.UTF8.GetByteCount(text)), .. Encoding.UTF8.GetBytes(text)];

    private static byte[] Number(int number) => [(byte)'J', .. BitConverter.GetBytes(number)];

    /// <summary>A dictionary with one float32 tensor 'w' over a storage that has three elements.</summary>
    private static byte[] OneTensor(int size, int stride, int offset) =>
    [
        0x80, 2, (byte)'}', .. Text("w"), .. "ctorch._utils\n_rebuild_tensor_v2\n("u8, (byte)'(', .. Text("storage"), .. "ctorch\nFloatStorage\n"u8, .. Text("0"), .. Text("cpu"), .. Number(3), (byte)'t', (byte)'Q',
        .. Number(offset), .. Number(size), 0x85, .. Number(stride), 0x85, 0x89, (byte)'N', (byte)'t', (byte)'R', (byte)'s', (byte)'.',
    ];

    private string Write(string name, byte[] pickle)
    {
        var path = _folder.At(name);
        using var archive = ZipFile.Open(path, ZipArchiveMode.Create);
        Add("archive/data.pkl", pickle);
        Add("archive/data/0", new byte[12]);
        return path;

        void Add(string entry, byte[] content)
        {
            using var stream = archive.CreateEntry(entry, CompressionLevel.NoCompression).Open();
            stream.Write(content);
        }
    }
}
