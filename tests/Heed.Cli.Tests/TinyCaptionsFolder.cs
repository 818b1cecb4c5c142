using Heed.Lab.Images;
using Heed.Lab.Scenes;
using Heed.Models.Checkpoints;
using Heed.Models.VisionLanguage;

namespace Heed.Cli.Tests;

/// <summary>A vision-language model with random weights in a folder as <c>heed train captions</c> leaves it, a picture, and a folder to write to.</summary>
public sealed class TinyCaptionsFolder : IDisposable
{
    /// <summary>Patches of a side.</summary>
    public const int Grid = 3;

    /// <summary>Layers of the decoder, and heads of each.</summary>
    public const int Layers = 3, Heads = 2;

    public TinyCaptionsFolder()
    {
        Directory.CreateDirectory(Model);
        using var model = SceneTask.Create(new() { VisionWidth = 16, VisionLayers = 2, Patch = Scene.Side / Grid, Width = 32, Layers = Layers, Heads = Heads }, 5);
        SafetensorsWriter.Write(Path.Combine(Model, "model.safetensors"), model.state_dict(), new Dictionary<string, string> { ["format"] = "pt", ["attention"] = "full" });
        _ = new PretrainedVisionLanguageModel(model, SceneWords.Tokenizer(), SceneTask.Normalization).WriteCard(Model);
        File.WriteAllBytes(Picture, PictureFile.Png(SceneAnswers.Scenes(1, 8, new())[0].Pixels, Scene.Task));
    }

    public string Root { get; } = Directory.CreateTempSubdirectory("heed-captions-").FullName;

    public string Model => Path.Combine(Root, "captions");

    public string Picture => Path.Combine(Root, "scene.png");

    /// <summary>A path in the folder.</summary>
    public string At(string name) => Path.Combine(Root, name);

    /// <summary>The folder of the same model with something else in its configuration.</summary>
    public string Changed(string name, string value, string replacement)
    {
        var changed = Directory.CreateDirectory(At(name)).FullName;
        foreach (var file in Directory.GetFiles(Model))
        {
            File.Copy(file, Path.Combine(changed, Path.GetFileName(file)), overwrite: true);
        }

        var (configuration, text) = (Path.Combine(changed, "config.json"), File.ReadAllText(Path.Combine(Model, "config.json")));
        File.WriteAllText(configuration, text.Contains(value, StringComparison.Ordinal) ? text.Replace(value, replacement, StringComparison.Ordinal) : throw new ArgumentException($"{value} is not in {text}"));
        return changed;
    }

    public void Dispose() => Directory.Delete(Root, recursive: true);
}
