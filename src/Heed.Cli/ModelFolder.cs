namespace Heed.Cli;

/// <summary>Finds model folders: by path, or by the name of a model that ships with the tool.</summary>
internal static class ModelFolder
{
    /// <summary>The model that commands use where none is named.</summary>
    public const string Default = "reader";

    private const string ConfigurationFile = "config.json";

    /// <summary>The folder of a model.</summary>
    /// <param name="nameOrFolder">A folder, or a shipped model's name.</param>
    /// <exception cref="DirectoryNotFoundException">There is no such model folder; the message lists the models that ship.</exception>
    public static string Find(string nameOrFolder)
    {
        if (Directory.Exists(nameOrFolder))
        {
            return File.Exists(Path.Combine(nameOrFolder, ConfigurationFile))
                ? nameOrFolder
                : throw new DirectoryNotFoundException($"{nameOrFolder} is not a model folder: it has no {ConfigurationFile}.");
        }

        var shipped = Shipped();
        if (shipped.TryGetValue(nameOrFolder, out var folder))
        {
            return folder;
        }

        var known = shipped.Count == 0 ? "no model ships with this build" : $"the models that ship with heed are: {string.Join(", ", shipped.Keys)}";
        throw new DirectoryNotFoundException($"There is no model folder {nameOrFolder}: name a folder that holds a {ConfigurationFile} ({known}).");
    }

    /// <summary>What to call the model of a folder.</summary>
    public static string NameOf(string folder) => new DirectoryInfo(folder).Name;

    /// <summary>The models that ship with the tool, by name: in <c>models</c> beside the program, or, in a build of the repository, in that of a folder above it.</summary>
    private static SortedDictionary<string, string> Shipped()
    {
        var found = new SortedDictionary<string, string>(StringComparer.Ordinal);
        for (var at = new DirectoryInfo(AppContext.BaseDirectory); at is not null && found.Count == 0; at = at.Parent)
        {
            var models = Path.Combine(at.FullName, "models");
            foreach (var folder in Directory.Exists(models) ? Directory.EnumerateDirectories(models) : [])
            {
                if (File.Exists(Path.Combine(folder, ConfigurationFile)))
                {
                    found[Path.GetFileName(folder)] = folder;
                }
            }
        }

        return found;
    }
}
