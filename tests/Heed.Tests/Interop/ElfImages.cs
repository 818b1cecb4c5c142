using System.Buffers.Binary;
using System.Text;

namespace Heed.Tests.Interop;

/// <summary>Small ELF images with a version-needs section, laid out by the System V gABI and the GNU symbol versioning extension.</summary>
internal static class ElfImages
{
    private const int Header = 64, SectionHeader = 64, Entry = 16;

    /// <summary>Where the flags of the requirement with that index stand.</summary>
    public static int FlagsAt(int index) => Header + Entry + (index * Entry) + 4;

    /// <summary>Where the file offset of the version needs stands, in an image of so many versions of the length of
    /// <c>GLIBCXX_3.4.32</c>.</summary>
    public static int NeedsOffsetAt(int versions) => Header + Entry + (versions * Entry) + 1 + (versions * 15) + SectionHeader + 0x18;

    /// <summary>A 64-bit little-endian image that needs the versions from one library.</summary>
    public static byte[] Create(params string[] versions)
    {
        var strings = new MemoryStream();
        strings.WriteByte(0);
        var names = versions.Select(version =>
        {
            var at = (int)strings.Position;
            strings.Write(Encoding.ASCII.GetBytes(version + "\0"));
            return at;
        }).ToArray();
        var stringsAt = Header + Entry + (versions.Length * Entry);
        var sectionsAt = stringsAt + (int)strings.Length;
        var image = new byte[sectionsAt + (3 * SectionHeader)];
        "\u007fELF\u0002\u0001"u8.CopyTo(image);
        Write64(image, 0x28, sectionsAt);
        Write16(image, 0x3a, SectionHeader);
        Write16(image, 0x3c, 3);

        // One library with all the versions.
        Write16(image, Header, 1);
        Write16(image, Header + 2, versions.Length);
        Write32(image, Header + 8, Entry);
        for (var i = 0; i < versions.Length; i++)
        {
            var at = Header + Entry + (i * Entry);
            Write32(image, at + 8, names[i]);
            Write32(image, at + 12, i + 1 < versions.Length ? Entry : 0);
        }

        strings.ToArray().CopyTo(image, stringsAt);

        // Section 1: the needs, linked to the strings of section 2.
        var needs = sectionsAt + SectionHeader;
        Write32(image, needs + 4, 0x6ffffffe);
        Write64(image, needs + 0x18, Header);
        Write32(image, needs + 0x28, 2);
        Write64(image, sectionsAt + (2 * SectionHeader) + 0x18, stringsAt);
        return image;
    }

    private static void Write16(byte[] image, int at, int value) => BinaryPrimitives.WriteUInt16LittleEndian(image.AsSpan(at), (ushort)value);

    private static void Write32(byte[] image, int at, int value) => BinaryPrimitives.WriteInt32LittleEndian(image.AsSpan(at), value);

    private static void Write64(byte[] image, int at, long value) => BinaryPrimitives.WriteInt64LittleEndian(image.AsSpan(at), value);
}
