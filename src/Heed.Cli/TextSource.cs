using System.Text;

namespace Heed.Cli;

/// <summary>Reads the text that a command works on.</summary>
internal static class TextSource
{
    /// <summary>Standard input.</summary>
    public const string StandardInput = "-";

    private const string PageFile = "page.txt";

    /// <summary>Reads UTF-8 text. Line ends become <c>\n</c>, as models know them.</summary>
    /// <param name="file">A file; <see cref="StandardInput"/>; or null for the page that ships with a model.</param>
    /// <param name="modelFolder">Where that page lies.</param>
    /// <param name="mostBytes">Where to stop: text past it could not be used anyway.</param>
    /// <param name="cancellation">Stops waiting for standard input.</param>
    /// <returns>The text and what to call it.</returns>
    /// <exception cref="InvalidDataException">It is empty or not UTF-8 text.</exception>
    /// <exception cref="IOException">It cannot be read.</exception>
    public static (string Text, string Name) Read(string? file, string modelFolder, long mostBytes, CancellationToken cancellation)
    {
        if (file is null)
        {
            file = Path.Combine(modelFolder, PageFile);
            if (!File.Exists(file))
            {
                throw new FileNotFoundException($"The model in {modelFolder} ships no page of text ({PageFile}): name a text with --text FILE, or --text - for standard input.");
            }
        }

        var name = file == StandardInput ? "standard input" : Path.GetFileName(file);
        if (Directory.Exists(file))
        {
            throw new InvalidDataException($"{file} is a folder: name a text file.");
        }

        if (file != StandardInput && !File.Exists(file))
        {
            throw new FileNotFoundException($"There is no file {file}.");
        }

        byte[] bytes;
        using (var stream = file == StandardInput ? Console.OpenStandardInput() : File.OpenRead(file))
        {
            bytes = ReadUpTo(stream, mostBytes, cancellation);
        }

        return (Decode(bytes, name, cut: bytes.LongLength >= mostBytes), name);
    }

    private static byte[] ReadUpTo(Stream stream, long most, CancellationToken cancellation)
    {
        using var collected = new MemoryStream();
        var buffer = new byte[1 << 16];
        while (collected.Length < most)
        {
            // Waiting for standard input must not outlive Ctrl+C.
            var read = stream.ReadAsync(buffer.AsMemory(0, (int)Math.Min(buffer.Length, most - collected.Length)), cancellation).AsTask().WaitAsync(cancellation).GetAwaiter().GetResult();
            if (read == 0)
            {
                break;
            }

            collected.Write(buffer, 0, read);
        }

        return collected.ToArray();
    }

    internal static string Decode(ReadOnlySpan<byte> bytes, string name, bool cut)
    {
        var start = bytes.StartsWith(Encoding.UTF8.Preamble) ? Encoding.UTF8.Preamble.Length : 0;
        bytes = bytes[start..];
        if (cut)
        {
            // The cut may lie within a character: look back for its first byte, which says how many there should be.
            var first = bytes.Length - 1;
            while (first > bytes.Length - 4 && first > 0 && (bytes[first] & 0xC0) == 0x80)
            {
                first--;
            }

            var needed = first < 0 ? 0 : bytes[first] switch { >= 0xF0 => 4, >= 0xE0 => 3, >= 0xC0 => 2, _ => 1 };
            bytes = needed > bytes.Length - first ? bytes[..first] : bytes;
        }

        if (bytes.IndexOf((byte)0) is >= 0 and var zero)
        {
            throw new InvalidDataException($"{name} is not text: it has a zero byte at offset {start + zero}.");
        }

        string text;
        try
        {
            text = new UTF8Encoding(false, throwOnInvalidBytes: true).GetString(bytes);
        }
        catch (DecoderFallbackException error)
        {
            throw new InvalidDataException($"{name} is not UTF-8 text (the byte 0x{error.BytesUnknown?[0]:X2} at offset {start + error.Index} does not fit): convert it first, for example with iconv.", error);
        }

        text = text.Replace("\r\n", "\n", StringComparison.Ordinal);
        return string.IsNullOrWhiteSpace(text) ? throw new InvalidDataException($"{name} is empty: there is nothing to look at.") : text;
    }
}
