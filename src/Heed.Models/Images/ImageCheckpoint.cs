using Heed.Models.Checkpoints;

namespace Heed.Models.Images;

/// <summary>Loads checkpoints of image models, in the names of their authors.</summary>
public static class ImageCheckpoint
{
    /// <summary>Fills a model from a checkpoint whose tensors have the authors' names (<see cref="ImageClassifier.NameOf"/> says what the model calls them): all of it, or where anything does not fit, nothing.</summary>
    /// <param name="model">The model.</param>
    /// <param name="path">A file that PyTorch wrote (<c>.pth</c>), or a safetensors file.</param>
    /// <param name="key">For a file that PyTorch wrote: under which key the tensors lie; null: see <see cref="TorchCheckpointReader"/>.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">The file is broken, or tensors are missing, superfluous or of another shape; the message names the first of each. The model is as it was.</exception>
    public static void LoadCheckpoint(this ImageClassifier model, string path, string? key = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        NamedTensors.Load(model, model.NameOf, path, key);
    }
}
