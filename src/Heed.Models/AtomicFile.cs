namespace Heed.Models;

/// <summary>Writes whole files: a reader finds the old file or the new one, never half of one.</summary>
public static class AtomicFile
{
    /// <summary>Writes to a temporary file in the same folder, flushes it to disk, and moves it into place. Missing folders are made.</summary>
    /// <param name="path">The file.</param>
    /// <param name="write">Writes the content.</param>
    /// <exception cref="IOException">The folder cannot be made, the disk is full, or the path is a folder; the file is as it was.</exception>
    /// <exception cref="UnauthorizedAccessException">The folder or the file cannot be written to; the file is as it was.</exception>
    public static void Write(string path, Action<Stream> write)
    {
        ArgumentException.ThrowIfNullOrWhiteSpace(path);
        ArgumentNullException.ThrowIfNull(write);
        var target = Path.GetFullPath(path);
        if (Directory.Exists(target))
        {
            throw new IOException($"{path} is a folder: name a file to write to.");
        }

        if (target.StartsWith("/dev/", StringComparison.Ordinal))
        {
            // A device must be written to, not replaced by a file.
            using var device = new FileStream(target, FileMode.Open, FileAccess.Write);
            write(device);
            return;
        }

        // The file that a link points to is the one that is meant.
        if (new FileInfo(target).LinkTarget is not null)
        {
            target = File.ResolveLinkTarget(target, returnFinalTarget: true)?.FullName ?? target;
        }

        var folder = Path.GetDirectoryName(target) ?? ".";
        var partial = Path.Combine(folder, $".{Path.GetFileName(target)}.{Environment.ProcessId}.{Guid.NewGuid():N}.partial");
        try
        {
            Directory.CreateDirectory(folder);
            using (var stream = new FileStream(partial, FileMode.CreateNew, FileAccess.Write, FileShare.None, 1 << 16))
            {
                write(stream);
                stream.Flush(flushToDisk: true);
            }

            File.Move(partial, target, overwrite: true);
        }
        catch (Exception exception)
        {
            TryDelete(partial);
            // What the system says names the temporary file; the user asked for another one.
            switch (exception)
            {
                case UnauthorizedAccessException:
                    throw new UnauthorizedAccessException($"{path} cannot be written (permission denied)", exception);
                case IOException when !Directory.Exists(folder):
                    throw new IOException($"{path} cannot be written: its folder {folder} cannot be made ({exception.Message.TrimEnd('.')})", exception);
                case IOException when exception.Message.Contains(partial, StringComparison.Ordinal):
                    throw new IOException($"{path} cannot be written: {exception.Message.Replace(partial, target, StringComparison.Ordinal)}", exception);
                default:
                    throw;
            }
        }
    }

    /// <summary>Writes text as UTF-8 without a byte order mark; see <see cref="Write"/>.</summary>
    public static void WriteText(string path, string text) => Write(path, stream =>
    {
        using var writer = new StreamWriter(stream, leaveOpen: true);
        writer.Write(text);
    });

    private static void TryDelete(string path)
    {
        try
        {
            File.Delete(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // The first error is the one that the user needs.
        }
    }
}
