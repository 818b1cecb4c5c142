using System.IO.Compression;
using System.Security.Cryptography;
using Heed.Interop;
using Xunit;

namespace Heed.Tests.Interop;

public sealed class NativeLibrariesTests : IDisposable
{
    private const string Requirement = "GLIBCXX_3.4.32";
    private readonly string _folder = Directory.CreateTempSubdirectory("heed").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void TorchSharp_works_without_any_call_to_set_it_up()
    {
        using var ones = TorchSharp.torch.ones(3);
        Assert.Equal(3, ones.sum().item<float>());
        Assert.SkipUnless(OperatingSystem.IsLinux(), "Only Linux needs help in finding libtorch.");
        NativeLibraries.Load();
        Assert.True(File.Exists(NativeLibraries.LibTorchSharpPath));
    }

    [Fact]
    public void A_system_that_has_the_version_is_left_alone()
    {
        var library = Library();
        Assert.Equal(library, NativeLibraries.PrivateCopyWhereNeeded(library, "...GLIBCXX_3.4.31\0GLIBCXX_3.4.32\0"u8.ToArray(), _folder));
        Assert.Equal(library, NativeLibraries.PrivateCopyWhereNeeded(library, null, _folder));
        Assert.Empty(Directory.GetFileSystemEntries(_folder, "native"));
    }

    [Fact]
    public void A_system_that_lacks_the_version_gets_one_private_copy_and_the_original_stays_as_it_is()
    {
        var library = Library();
        var (before, written) = (Hash(library), File.GetLastWriteTimeUtc(library));
        var copy = NativeLibraries.PrivateCopyWhereNeeded(library, "GLIBCXX_3.4.30\0"u8.ToArray(), _folder);
        Assert.NotEqual(library, copy);
        Assert.StartsWith(_folder, copy);
        Assert.Equal(before, Hash(library));
        Assert.Equal(written, File.GetLastWriteTimeUtc(library));

        // Two bytes at most differ: the flag of the one requirement.
        var (original, changed) = (File.ReadAllBytes(library), File.ReadAllBytes(copy));
        Assert.Equal(original.Length, changed.Length);
        Assert.InRange(original.Zip(changed).Count(pair => pair.First != pair.Second), 1, 2);
        Assert.Single(Directory.GetFiles(Path.GetDirectoryName(copy)!));

        // Again: the copy is used, not written; a damaged copy is replaced.
        var time = File.GetLastWriteTimeUtc(copy);
        Assert.Equal(copy, NativeLibraries.PrivateCopyWhereNeeded(library, [], _folder));
        Assert.Equal(time, File.GetLastWriteTimeUtc(copy));
        File.WriteAllBytes(copy, new byte[original.Length]);
        Assert.Equal(copy, NativeLibraries.PrivateCopyWhereNeeded(library, [], _folder));
        Assert.Equal(changed, File.ReadAllBytes(copy));
    }

    [Fact]
    public void The_package_cache_holds_what_the_package_holds()
    {
        var packages = Environment.GetEnvironmentVariable("NUGET_PACKAGES")
            ?? Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".nuget", "packages");
        var package = Directory.Exists(Path.Combine(packages, "torchsharp"))
            ? Directory.EnumerateFiles(Path.Combine(packages, "torchsharp"), "*.nupkg", SearchOption.AllDirectories).Max()
            : null;
        Assert.SkipUnless(package is not null && OperatingSystem.IsLinux(), "TorchSharp is not in a package cache here.");
        NativeLibraries.Load();
        using var archive = ZipFile.OpenRead(package);
        using var entry = archive.GetEntry("runtimes/linux-x64/native/libLibTorchSharp.so")!.Open();
        using var shipped = new MemoryStream();
        entry.CopyTo(shipped);
        var cached = File.ReadAllBytes(Path.Combine(Path.GetDirectoryName(package)!, "runtimes", "linux-x64", "native", "libLibTorchSharp.so"));
        Assert.True(cached.AsSpan().SequenceEqual(shipped.ToArray()));
    }

    [Fact]
    public void A_cache_that_cannot_be_written_is_named_in_the_error()
    {
        var library = Library();
        var file = Path.Combine(_folder, "file");
        File.WriteAllText(file, "not a folder");
        var error = Assert.Throws<DllNotFoundException>(() => NativeLibraries.PrivateCopyWhereNeeded(library, [], file));
        Assert.Contains("HEED_CACHE", error.Message);
    }

    [Fact]
    public void A_library_that_asks_for_nothing_is_left_alone()
    {
        var library = Path.Combine(_folder, "other.so");
        File.WriteAllBytes(library, ElfImages.Create("GLIBCXX_3.4.30"));
        Assert.Equal(library, NativeLibraries.PrivateCopyWhereNeeded(library, [], _folder));
    }

    /// <summary>An image that asks for the version.</summary>
    private string Library()
    {
        var library = Path.Combine(_folder, "libLibTorchSharp.so");
        File.WriteAllBytes(library, ElfImages.Create("GLIBCXX_3.4.30", Requirement));
        return library;
    }

    private static string Hash(string file) => Convert.ToHexString(SHA256.HashData(File.ReadAllBytes(file)));
}
