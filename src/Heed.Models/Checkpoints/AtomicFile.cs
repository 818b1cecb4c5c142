namespace Heed.Models.Checkpoints;

/// <summary>Writes files so that a reader, or a crash, sees the old one or the new one and never half of one.</summary>
internal static class AtomicFile
{
    /// <summary>Writes to a temporary file in the same folder, forces it to the disk, then puts it in place.</summary>
    /// <exception cref="IOException">The disk is full or the folder cannot be written; nothing was changed.</exception>
    public static void Write(string path, Action<Stream> write)
    {
        var full = Path.GetFullPath(path);
        var temporary = $"{full}.{Guid.NewGuid():N}.tmp";
        try
        {
            using (var stream = new FileStream(temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None, 1 << 16))
            {
                write(stream);
                stream.Flush(flushToDisk: true);
            }

            File.Move(temporary, full, overwrite: true);
        }
        catch
        {
            File.Delete(temporary);
            throw;
        }
    }
}
