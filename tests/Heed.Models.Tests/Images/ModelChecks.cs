using Heed.Models.Checkpoints;
using Heed.Models.Images;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

/// <summary>What several image models are held to.</summary>
internal static class ModelChecks
{
    /// <summary>A checkpoint of one model makes the other compute the same, bit for bit. Leaves both in evaluation mode.</summary>
    public static void SurvivesCheckpoint(ImageClassifier first, ImageClassifier second, Tensor images)
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        using var quiet = no_grad();
        var path = folder.At("model.safetensors");
        SafetensorsWriter.Write(path, first.state_dict());
        second.LoadCheckpoint(path);
        first.eval();
        second.eval();
        Assert.Equal(first.forward(images).data<float>().ToArray(), second.forward(images).data<float>().ToArray());
    }

    /// <summary>float32 goes through kernels of our own, float64 through libtorch: the gradients of all parameters are the same. Leaves the model in float64.</summary>
    public static void GradientsInFloat32AreThoseInFloat64(ImageClassifier model, Tensor images, Tensor labels)
    {
        using var scope = NewDisposeScope();
        Tensor[] Gradients(Tensor input) => [.. autograd.grad([nn.functional.cross_entropy(model.forward(input), labels)], model.parameters().Cast<Tensor>().ToList())];
        var single = Gradients(images);
        model.to(float64);
        var exact = Gradients(images.to(float64));

        // A hundred roundings of 2^-24, of the whole gradient: parts of it are small because large terms cancel.
        var tolerance = 100 * Math.ScaleB(1, -24) * Math.Sqrt(exact.Sum(gradient => gradient.square().sum().item<double>()));
        foreach (var ((gradient, expected), (name, _)) in single.Zip(exact).Zip(model.named_parameters()))
        {
            var error = (gradient.to(float64) - expected).norm().item<double>();
            Assert.True(error <= tolerance, $"{name}: {error} is more than {tolerance}");
        }
    }
}
