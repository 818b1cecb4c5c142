using Heed.Lab.Mechanisms;
using Xunit;

namespace Heed.Lab.Tests.Mechanisms;

public sealed class HeadListTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-heads-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void An_edit_takes_the_heads_of_a_file()
    {
        var hooks = new AttentionHooks();
        var file = Write("""{ "model": "reader", "heads": [[0, 1], [2, 3], [0, 1]] }""");
        Assert.Equal([(0, 1), (2, 3)], HeadList.Read(file));
        using (ModelEdit.Parse($"heads:scale={file},by=0.5")(new(hooks, 3, 4)))
        {
            Assert.Equal([true, false, true], Enumerable.Range(0, 3).Select(layer => hooks.StagesAt(new(layer, AttentionKind.Self, "")) != AttentionStages.None));
        }

        Assert.Contains("layers are 0 to 1", Assert.Throws<ArgumentException>(() => ModelEdit.Parse($"heads:scale={file}")(new(hooks, 2, 4))).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("""{ "heads": [] }""", "kept none")]
    [InlineData("""{ "heads": [[1, 2, 3]] }""", "[[layer, head], ...]")]
    [InlineData("""{ "heads": [["a", "b"]] }""", "[[layer, head], ...]")]
    [InlineData("""[1, 2]""", "[[layer, head], ...]")]
    [InlineData("""{ "tried": [] }""", "[[layer, head], ...]")]
    [InlineData("no JSON", "[[layer, head], ...]")]
    public void What_is_no_list_is_told_in_a_sentence(string content, string sentence) =>
        Assert.Contains(sentence, Assert.Throws<InvalidDataException>(() => HeadList.Read(Write(content))).Message, StringComparison.Ordinal);

    [Fact]
    public void A_file_that_is_not_there_is_told() =>
        Assert.Contains("heed search writes one", Assert.Throws<FileNotFoundException>(() => HeadList.Read(Path.Combine(_folder, "none.json"))).Message, StringComparison.Ordinal);

    private string Write(string content)
    {
        var path = Path.Combine(_folder, "heads.json");
        File.WriteAllText(path, content);
        return path;
    }
}
