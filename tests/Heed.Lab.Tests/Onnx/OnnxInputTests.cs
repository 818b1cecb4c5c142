using System.Text;
using Heed.Lab.Onnx;
using Heed.Onnx;
using Xunit;

namespace Heed.Lab.Tests.Onnx;

public sealed class OnnxInputTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-onnx-input-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void TensorsOfNumpyAndJsonAreRead()
    {
        var header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }".PadRight(117) + "\n";
        File.WriteAllBytes(At("x.npy"), [0x93, .. "NUMPY"u8, 1, 0, (byte)header.Length, 0, .. Encoding.Latin1.GetBytes(header), .. new[] { 1f, 2, 3, 4.5f }.SelectMany(BitConverter.GetBytes)]);
        var numpy = TensorFile.Read(At("x.npy"))[""];
        Assert.Equal([2, 2], numpy.Shape);
        Assert.Equal([1, 2, 3, 4.5f], numpy.ToSingles());
        File.WriteAllText(At("x.json"), "[[1, 2], [3, 4]]");
        Assert.Equal(OnnxElementType.Int64, TensorFile.Read(At("x.json"))[""].Type);
        foreach (var wrong in new[] { "[[1, 2], [3]]", "[]", "[1, \"a\"]", "[1" })
        {
            File.WriteAllText(At("x.json"), wrong);
            Assert.Throws<InvalidDataException>(() => TensorFile.Read(At("x.json")));
        }

        File.WriteAllBytes(At("y.npy"), File.ReadAllBytes(At("x.npy"))[..^3]);
        Assert.Contains("shorter", Assert.Throws<InvalidDataException>(() => TensorFile.Read(At("y.npy"))).Message, StringComparison.Ordinal);
        File.WriteAllText(At("z.npy"), "no tensor at all");
        Assert.Throws<InvalidDataException>(() => TensorFile.Read(At("z.npy")));
    }

    [Fact]
    public void WordPiecesOfAVocabularyBesideTheModelAreKnown()
    {
        File.WriteAllLines(At("vocab.txt"), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "atten", "##tion", "is", "all"]);
        Assert.Equal(["[CLS]", "atten", "##tion", "is", "all", "[SEP]"], OnnxText.Encode(_folder, "Attention is all").Select(token => token.Text));
        File.WriteAllText(At("tokenizer.json"), """{"normalizer":{"type":"BertNormalizer","lowercase":true},"model":{"type":"WordPiece","vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"[MASK]":4,"is":5,"all":6}}}""");
        Assert.Equal([2, 5, 6, 3], OnnxText.Encode(_folder, "IS all").Select(token => token.Id));
        var ids = OnnxText.InputOf(new("input_ids", OnnxElementType.Int64, [null, null]), [2, 5, 3])!;
        Assert.Equal([1, 3], ids.Shape);
        Assert.Equal([1f, 1, 1], OnnxText.InputOf(new("attention_mask", OnnxElementType.Int64, [null, null]), [2, 5, 3])!.ToSingles());
        Assert.Null(OnnxText.InputOf(new("pixels", OnnxElementType.Float32, [null, 3, 4, 4]), [2, 5, 3]));
    }

    [Fact]
    public void EditsAreReadByName()
    {
        var heads = Assert.IsType<OnnxHeadScaling>(Assert.Single(OnnxEdits.Parse("heads:scale=1.0/1.3,by=0.5", 2)));
        Assert.Equal([1], heads.Layers!);
        Assert.Equal([0, 3], heads.Heads!.Order());
        Assert.Equal(0.5, heads.Factor);
        var columns = Assert.IsType<OnnxColumnScaling>(Assert.Single(OnnxEdits.Parse("columns:at=0/4..6/-1,by=2,then=renormalise", 2)));
        Assert.Equal([0, 4, 5, 6, -1], columns.Columns);
        Assert.Equal((OnnxFreedMass.Renormalise, null, null), (columns.FreedMass, columns.Layers, columns.Heads));
        Assert.Equal(2, OnnxEdits.Parse("heads:scale=0.*/1.2,by=0", 2).Count);
        foreach (var wrong in new[] { "heads:scale=2.0", "heads:scale=x", "heads:scale=*.0/1.0", "columns", "columns:at=6..4", "columns:at=1,then=keep", "columns:at=a", "heads:of=1", "warp" })
        {
            Assert.Throws<ArgumentException>(() => OnnxEdits.Parse(wrong, 2));
        }
    }

    [Fact]
    public void LinesAreDecodedGreedily()
    {
        File.WriteAllText(At("letters.txt"), "a\nb\nc\n");
        var reader = LineReader.Find(null, At("model.onnx"), 5)!;
        // Blank, a, a, blank, a, space, c: repeats melt together unless a blank stands between them.
        int[] best = [0, 1, 1, 0, 1, 4, 3];
        var probabilities = new float[7 * 5];
        for (var step = 0; step < best.Length; step++)
        {
            probabilities.AsSpan(step * 5, 5).Fill(0.05f);
            probabilities[(step * 5) + best[step]] = 0.8f;
        }

        var read = reader.Read(OnnxTensor.Of(probabilities, 1, 7, 5));
        Assert.Equal("aa c", string.Concat(read.Select(character => character.Text)));
        Assert.Equal([(1, 2), (4, 4), (5, 5), (6, 6)], read.Select(character => (character.First, character.Last)));
        Assert.All(read, character => Assert.Equal(0.8, character.Probability, 1e-5));
        Assert.Null(LineReader.Find(null, At("model.onnx"), 9));
        Assert.Contains("lists 3 characters", Assert.Throws<InvalidDataException>(() => LineReader.Find(At("letters.txt"), At("model.onnx"), 9)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void PixelsHaveNames()
    {
        Assert.True(OnnxPixels.Parse("half:bgr").BlueFirst);
        Assert.False(OnnxPixels.Parse("imagenet").BlueFirst);
        Assert.Throws<ArgumentException>(() => OnnxPixels.Parse("raw"));
        Assert.Throws<ArgumentException>(() => OnnxPixels.Parse("half:rgba"));
    }

    private string At(string name) => Path.Combine(_folder, name);
}
