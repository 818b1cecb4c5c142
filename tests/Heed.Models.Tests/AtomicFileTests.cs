using Xunit;

namespace Heed.Models.Tests;

public sealed class AtomicFileTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-atomic").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Writes_into_folders_that_do_not_exist_yet()
    {
        var path = Path.Combine(_folder, "a", "b", "report.html");
        AtomicFile.WriteText(path, "héllo");
        Assert.Equal("héllo"u8.ToArray(), File.ReadAllBytes(path));
    }

    [Fact]
    public void Failure_halfway_leaves_the_old_file_and_nothing_else()
    {
        var path = Path.Combine(_folder, "report.html");
        AtomicFile.WriteText(path, "old");
        Assert.Throws<IOException>(() => AtomicFile.Write(path, stream =>
        {
            stream.Write("new"u8);
            throw new IOException("No space left on device");
        }));
        Assert.Equal("old", File.ReadAllText(path));
        Assert.Equal([path], Directory.GetFileSystemEntries(_folder));
    }

    [Fact]
    public void Full_disk_is_an_error()
    {
        Assert.SkipUnless(File.Exists("/dev/full"), "This system has no /dev/full.");
        Assert.Throws<IOException>(() => AtomicFile.WriteText("/dev/full", new string('x', 1 << 20)));
        Assert.True(File.Exists("/dev/full"));
    }

    [Fact]
    public void Folder_is_no_file()
    {
        var error = Assert.Throws<IOException>(() => AtomicFile.WriteText(_folder, "x"));
        Assert.Contains("is a folder", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_is_no_folder_to_write_into()
    {
        var path = Path.Combine(_folder, "taken");
        AtomicFile.WriteText(path, "old");
        foreach (var below in new[] { Path.Combine(path, "report.html"), Path.Combine(path, "deeper", "report.html") })
        {
            Assert.StartsWith($"{below} cannot be written", Assert.Throws<IOException>(() => AtomicFile.WriteText(below, "x")).Message, StringComparison.Ordinal);
        }

        Assert.Equal("old", File.ReadAllText(path));
        Assert.Equal([path], Directory.GetFileSystemEntries(_folder));
    }

    [Fact]
    public void Link_stays_a_link()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "Links need a privilege on Windows.");
        var (file, link) = (Path.Combine(_folder, "file"), Path.Combine(_folder, "link"));
        AtomicFile.WriteText(file, "old");
        File.CreateSymbolicLink(link, file);
        AtomicFile.WriteText(link, "new");
        Assert.Equal("new", File.ReadAllText(file));
        Assert.NotNull(new FileInfo(link).LinkTarget);
    }

    [Fact]
    public void Error_names_the_file_that_was_asked_for()
    {
        var blocked = Path.Combine(_folder, "plain");
        File.WriteAllText(blocked, "");
        var error = Assert.Throws<IOException>(() => AtomicFile.WriteText(Path.Combine(blocked, "x.html"), "x"));
        Assert.DoesNotContain(".partial", error.Message, StringComparison.Ordinal);
    }
}
