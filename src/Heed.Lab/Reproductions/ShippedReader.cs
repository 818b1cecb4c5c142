namespace Heed.Lab.Reproductions;

/// <summary>The reader that ships with Heed.</summary>
internal static class ShippedReader
{
    /// <summary>Its folder: <c>models/reader</c> beside the program, or, in a build of the repository, in a folder above it; null where there is none.</summary>
    public static string? Folder()
    {
        for (var at = new DirectoryInfo(AppContext.BaseDirectory); at is not null; at = at.Parent)
        {
            var folder = Path.Combine(at.FullName, "models", "reader");
            if (File.Exists(Path.Combine(folder, "config.json")))
            {
                return folder;
            }
        }

        return null;
    }
}
