using System.Buffers.Binary;
using System.Text;

namespace Heed.Interop;

/// <summary>Edits the version-needs section of a 64-bit little-endian ELF image (System V gABI and the GNU symbol versioning
/// extension).</summary>
internal static class ElfVersionNeeds
{
    private const uint GnuVersionNeeds = 0x6ffffffe;
    private const ushort WeakFlag = 2;

    /// <summary>Bytes of an entry, of either kind.</summary>
    private const int EntrySize = 16;

    /// <summary>More entries than any library has; a chain that goes on is damaged, and following it could take for ever.</summary>
    private const int MostEntries = 1 << 16;

    /// <summary>Marks every requirement of <paramref name="version"/> weak, so that the loader does not refuse the image where it is
    /// absent.</summary>
    /// <param name="image">The whole file; changed in place.</param>
    /// <param name="version">The version's name, for example <c>GLIBCXX_3.4.32</c>.</param>
    /// <returns>True if a requirement was found. False for anything that is not such an image or does not ask for the version.</returns>
    public static bool TryMakeWeak(Span<byte> image, string version)
    {
        if (image.Length < 64 || !image[..6].SequenceEqual("\u007fELF\u0002\u0001"u8))
        {
            return false;
        }

        try
        {
            var found = false;
            var sections = (int)BinaryPrimitives.ReadUInt64LittleEndian(image[0x28..]);
            var size = BinaryPrimitives.ReadUInt16LittleEndian(image[0x3a..]);
            var count = BinaryPrimitives.ReadUInt16LittleEndian(image[0x3c..]);
            for (var i = 0; i < count; i++)
            {
                var header = image.Slice(sections + (i * size), size);
                if (BinaryPrimitives.ReadUInt32LittleEndian(header[4..]) == GnuVersionNeeds)
                {
                    var link = (int)BinaryPrimitives.ReadUInt32LittleEndian(header[0x28..]);
                    var strings = image[(int)BinaryPrimitives.ReadUInt64LittleEndian(image[(sections + (link * size) + 0x18)..])..];
                    found |= MarkWeak(image[(int)BinaryPrimitives.ReadUInt64LittleEndian(header[0x18..])..], strings, Encoding.ASCII.GetBytes(version));
                }
            }

            return found;
        }
        catch (ArgumentOutOfRangeException)
        {
            // Truncated or inconsistent: whatever it is, it is not an image this edit understands.
            return false;
        }
    }

    private static bool MarkWeak(Span<byte> needs, ReadOnlySpan<byte> strings, ReadOnlySpan<byte> version)
    {
        var found = false;
        var entries = 0;
        while (true)
        {
            var auxiliaries = BinaryPrimitives.ReadUInt16LittleEndian(needs[2..]);
            var auxiliary = needs[(int)BinaryPrimitives.ReadUInt32LittleEndian(needs[8..])..];
            for (var i = 0; i < auxiliaries; i++)
            {
                var name = strings[(int)BinaryPrimitives.ReadUInt32LittleEndian(auxiliary[8..])..];
                if (name[..(version.Length + 1)].StartsWith(version) && name[version.Length] == 0)
                {
                    var flags = BinaryPrimitives.ReadUInt16LittleEndian(auxiliary[4..]);
                    BinaryPrimitives.WriteUInt16LittleEndian(auxiliary[4..], (ushort)(flags | WeakFlag));
                    found = true;
                }

                if (++entries > MostEntries)
                {
                    return false;
                }

                auxiliary = auxiliary[(int)BinaryPrimitives.ReadUInt32LittleEndian(auxiliary[12..])..];
            }

            var next = (int)BinaryPrimitives.ReadUInt32LittleEndian(needs[12..]);
            if (next == 0)
            {
                return found;
            }

            if (next < EntrySize || ++entries > MostEntries)
            {
                return false;
            }

            needs = needs[next..];
        }
    }
}
