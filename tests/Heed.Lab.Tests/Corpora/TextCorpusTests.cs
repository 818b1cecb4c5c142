using System.Text;
using Heed.Lab.Corpora;
using Xunit;

namespace Heed.Lab.Tests.Corpora;

public sealed class TextCorpusTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-corpus-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Verses_become_chapters_without_references()
    {
        const string printed = """
            Ge1:1 In the beginning God created the heaven and the earth.
            Ge1:2 And the earth was without form.
            Ge2:1 Thus the heavens and the earth were finished.

            (a line that is no verse)
            1Sm3:10 Speak; for thy servant heareth.
            """;

        var chapters = KingJamesText.Parse(printed, out var verses);

        Assert.Equal(4, verses);
        Assert.Equal(
            [
                new TextDocument("Ge 1", "In the beginning God created the heaven and the earth.\nAnd the earth was without form.\n"),
                new TextDocument("Ge 2", "Thus the heavens and the earth were finished.\n"),
                new TextDocument("1Sm 3", "Speak; for thy servant heareth.\n"),
            ],
            chapters);
    }

    [Fact]
    public void Every_twentieth_document_is_held_out_whole()
    {
        var documents = Enumerable.Range(1, 45).Select(i => new TextDocument($"{i}", $"text {i}\n")).ToList();

        var corpus = new TextCorpus("numbers", documents);

        Assert.Equal(["20", "40"], corpus.HeldOut.Select(document => document.Name));
        Assert.Equal(43, corpus.Training.Count);
        Assert.DoesNotContain("text 20\n", corpus.TrainingText, StringComparison.Ordinal);
        Assert.StartsWith("text 1\n\ntext 2\n", corpus.TrainingText, StringComparison.Ordinal);
        Assert.Equal(corpus.Sha256, new TextCorpus("same", documents).Sha256);
        Assert.NotEqual(corpus.Sha256, new TextCorpus("other", documents.Skip(1).ToList()).Sha256);
    }

    [Fact]
    public void A_file_is_cut_at_line_ends_and_loses_nothing_but_empty_edges()
    {
        var path = Path.Combine(_folder, "lines.txt");
        var lines = Enumerable.Range(0, 4_000).Select(i => $"Line {i}: déjà vu, ein Stück Text.").ToList();
        File.WriteAllText(path, string.Join("\r\n", lines), Encoding.UTF8);

        var corpus = TextCorpus.FromFile(path);

        var all = corpus.Training.Concat(corpus.HeldOut).OrderBy(document => int.Parse(document.Name[5..])).SelectMany(document => document.Text.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.Equal(lines, all);
        Assert.Equal("lines.txt", corpus.Name);
    }

    [Fact]
    public void Short_missing_and_binary_files_are_errors_that_say_what_to_do()
    {
        var shortFile = Path.Combine(_folder, "short.txt");
        File.WriteAllText(shortFile, "Too short.");
        var binary = Path.Combine(_folder, "binary");
        File.WriteAllBytes(binary, [0x41, 0xFF, 0xFE, 0x80]);

        Assert.Contains("longer text", Assert.Throws<ArgumentException>(() => TextCorpus.FromFile(shortFile)).Message, StringComparison.Ordinal);
        Assert.Contains("There is no file", Assert.Throws<FileNotFoundException>(() => TextCorpus.FromFile(Path.Combine(_folder, "none"))).Message, StringComparison.Ordinal);
        Assert.Contains("not UTF-8", Assert.Throws<InvalidDataException>(() => TextCorpus.FromFile(binary)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Windows_cover_an_epoch_once_and_depend_on_seed_and_number_alone()
    {
        var stream = Enumerable.Range(0, 1_003).ToArray();
        var sampler = new WindowSampler(stream, 10, seed: 7);

        var epoch = Enumerable.Range(0, 99).SelectMany(i => sampler[i].ToArray()).ToList();
        var next = Enumerable.Range(99, 99).SelectMany(i => sampler[i].ToArray()).ToList();

        Assert.Equal(990, epoch.Distinct().Count());
        Assert.Equal(990, next.Distinct().Count());
        Assert.NotEqual(epoch, next);
        Assert.Equal(epoch[500..510], new WindowSampler(stream, 10, seed: 7)[50].ToArray());
        Assert.NotEqual(epoch[..10], new WindowSampler(stream, 10, seed: 8)[0].ToArray());
        Assert.Contains("longer text", Assert.Throws<ArgumentException>(() => new WindowSampler(stream, 900, 1)).Message, StringComparison.Ordinal);
    }
}
