using Heed.Interop;
using Xunit;

namespace Heed.Tests.Interop;

public sealed class ElfVersionNeedsTests
{
    private const string Version = "GLIBCXX_3.4.32";

    [Fact]
    public void Marks_the_requirement_and_changes_nothing_else()
    {
        var image = ElfImages.Create("GLIBCXX_3.4", Version, "GLIBCXX_3.4.3");
        var expected = image.ToArray();
        expected[ElfImages.FlagsAt(1)] |= 2;
        Assert.True(ElfVersionNeeds.TryMakeWeak(image, Version));
        Assert.Equal(expected, image);
    }

    [Theory]
    [InlineData("GLIBCXX_3.4.3")]
    [InlineData("GLIBCXX_3.4.320")]
    [InlineData("CXXABI_1.3")]
    public void Leaves_other_requirements_alone(string other)
    {
        var image = ElfImages.Create(other);
        var before = image.ToArray();
        Assert.False(ElfVersionNeeds.TryMakeWeak(image, Version));
        Assert.Equal(before, image);
    }

    [Fact]
    public void Finds_the_requirement_of_the_published_library()
    {
        var path = NativeLibraries.LibTorchSharpPath;
        Assert.SkipUnless(path is not null, "TorchSharp's native library was found by the program's own loader.");
        Assert.True(ElfVersionNeeds.TryMakeWeak(File.ReadAllBytes(path), Version));
    }

    [Fact]
    public void Truncated_images_are_refused_without_harm()
    {
        var image = ElfImages.Create("GLIBCXX_3.4", Version);
        for (var length = 0; length < image.Length; length++)
        {
            // Cut anywhere, the section headers at the end are incomplete.
            Assert.False(ElfVersionNeeds.TryMakeWeak(image.AsSpan(0, length).ToArray(), Version));
        }
    }

    [Fact]
    public void Damaged_images_end_in_an_answer()
    {
        var random = new Random(1);
        var original = ElfImages.Create("GLIBCXX_3.4", Version, "GLIBCXX_3.4.29");
        for (var round = 0; round < 20_000; round++)
        {
            var image = original.ToArray();
            for (var change = random.Next(1, 5); change > 0; change--)
            {
                image[random.Next(6, image.Length)] = random.Next(3) == 0 ? byte.MaxValue : (byte)random.Next(256);
            }

            ElfVersionNeeds.TryMakeWeak(image, Version);
        }
    }

    [Theory]
    [InlineData(16)]
    [InlineData(1)]
    public void Chains_that_do_not_end_are_cut_off(int step)
    {
        // A chain of libraries as long as the file, each with the most versions: following them all would take hours.
        const int chain = 4096;
        var image = new byte[1 << 20];
        ElfImages.Create(Version).CopyTo(image, 0);
        image.AsSpan(ElfImages.NeedsOffsetAt(1), 8).Clear();
        image[ElfImages.NeedsOffsetAt(1) + 1] = chain >> 8;
        for (var at = chain; at + 16 <= image.Length; at += 16)
        {
            image[at + 2] = image[at + 3] = byte.MaxValue;
            image[at + 12] = (byte)step;
        }

        var watch = System.Diagnostics.Stopwatch.StartNew();
        Assert.False(ElfVersionNeeds.TryMakeWeak(image, Version));
        Assert.True(watch.Elapsed < TimeSpan.FromSeconds(5));
    }
}
