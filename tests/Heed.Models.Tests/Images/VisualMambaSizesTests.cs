using System.Runtime.CompilerServices;
using Heed.Models.Images;
using TorchSharp;
using Xunit;

namespace Heed.Models.Tests.Images;

/// <summary>The published sizes of the visual Mambas. Models are made without memory for their weights.</summary>
public sealed class VisualMambaSizesTests
{
    static VisualMambaSizesTests() => RuntimeHelpers.RunModuleConstructor(typeof(VMamba).Module.ModuleHandle);

    // README of MzeroMiko/VMamba: 30M, 50M, 89M; of hunto/LocalMamba: 8M, 8M, 28M.
    [Theory]
    [InlineData("VMamba.Tiny", 30)]
    [InlineData("VMamba.Small", 50)]
    [InlineData("VMamba.Base", 89)]
    [InlineData("LocalVim.Tiny", 8)]
    [InlineData("LocalVim.TinyMiddleClassToken", 8)]
    [InlineData("LocalVim.Small", 28)]
    public void Sizes_have_the_millions_of_parameters_that_the_authors_tables_say(string name, int millions) => Assert.Equal(millions, Math.Round(Count(name) / 1e6));

    // Training logs of TerryPei/EfficientVMamba: 6.494 M, 11.274 M, 33.717 M.
    [Theory]
    [InlineData("EfficientVMamba.Tiny", 6.494)]
    [InlineData("EfficientVMamba.Small", 11.274)]
    [InlineData("EfficientVMamba.Base", 33.717)]
    public void Efficient_sizes_have_the_parameters_of_the_authors_logs(string name, double millions) => Assert.Equal(millions, Math.Round(Count(name) / 1e6, 3));

    // README of ChenhongyiYang/PlainMamba: 7.3, 25.7, 50.5, cut off after the first digit and without the head.
    [Theory]
    [InlineData("PlainMamba.L1", 192, 7.3)]
    [InlineData("PlainMamba.L2", 384, 25.7)]
    [InlineData("PlainMamba.L3", 448, 50.5)]
    public void Plain_sizes_have_the_published_parameters_before_the_head(string name, int width, double millions) =>
        Assert.Equal(millions, Math.Floor((Count(name) - ((width + 1) * 1000)) / 1e5) / 10, 6);

    private static long Count(string name)
    {
        torch.set_default_device(torch.META);
        try
        {
            using ImageClassifier model = name switch
            {
                "VMamba.Tiny" => VMamba.Tiny(),
                "VMamba.Small" => VMamba.Small(),
                "VMamba.Base" => VMamba.Base(),
                "PlainMamba.L1" => PlainMamba.L1(),
                "PlainMamba.L2" => PlainMamba.L2(),
                "PlainMamba.L3" => PlainMamba.L3(),
                "LocalVim.Tiny" => LocalVim.Tiny(),
                "LocalVim.TinyMiddleClassToken" => LocalVim.TinyMiddleClassToken(),
                "LocalVim.Small" => LocalVim.Small(),
                "EfficientVMamba.Tiny" => EfficientVMamba.Tiny(),
                "EfficientVMamba.Small" => EfficientVMamba.Small(),
                _ => EfficientVMamba.Base(),
            };
            return model.parameters().Sum(parameter => parameter.numel());
        }
        finally
        {
            torch.set_default_device(torch.CPU);
        }
    }
}
