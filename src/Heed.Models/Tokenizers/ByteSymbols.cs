namespace Heed.Models.Tokenizers;

/// <summary>The printable character that byte-level tokenizers write for each byte: the byte's own Latin-1 character where that is printable, else one from U+0100 on.</summary>
internal static class ByteSymbols
{
    static ByteSymbols()
    {
        Bytes = Enumerable.Repeat(-1, 512).ToArray();
        var next = 256;
        for (var value = 0; value < 256; value++)
        {
            var printable = value is (>= '!' and <= '~') or (>= 0xA1 and <= 0xAC) or (>= 0xAE and <= 0xFF);
            Symbols[value] = (char)(printable ? value : next++);
            Bytes[Symbols[value]] = value;
        }
    }

    /// <summary>Symbol of each byte.</summary>
    public static char[] Symbols { get; } = new char[256];

    private static int[] Bytes { get; }

    /// <summary>The byte of a symbol; -1 where the character is no symbol.</summary>
    public static int ByteOf(char symbol) => symbol < Bytes.Length ? Bytes[symbol] : -1;
}
