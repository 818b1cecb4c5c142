using Heed.Lab.Tests.Inspection;

namespace Heed.Cli.Tests;

/// <summary>A model folder with random weights, and a folder to write to.</summary>
public sealed class TinyModelFolder : IDisposable
{
    public TinyModelFolder()
    {
        using var model = TinyModel.Create();
        model.Save(Model);
        File.WriteAllText(Path.Combine(Model, "page.txt"), "And God said, Let there be light: and there was light.\n");
    }

    public string Root { get; } = Directory.CreateTempSubdirectory("heed-cli").FullName;

    public string Model => Path.Combine(Root, "tiny");

    /// <summary>A path in the folder.</summary>
    public string At(string name) => Path.Combine(Root, name);

    /// <summary>Writes a file into the folder.</summary>
    public string Write(string name, byte[] content)
    {
        File.WriteAllBytes(At(name), content);
        return At(name);
    }

    public void Dispose() => Directory.Delete(Root, recursive: true);
}
