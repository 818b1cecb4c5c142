using System.Runtime.CompilerServices;
using Heed.Models.Checkpoints;
using Heed.Models.Images;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class MobileNetTests : IDisposable
{
    private static readonly MobileNetOptions Tiny = new()
    {
        Version = MobileNetVersion.V2, Channels = 1, Classes = 3, Stem = 4, Stages = [new(1, 4, 1, 1), new(2, 8, 2, 2)], Last = 8, Splits = 2,
    };

    private readonly TemporaryFolder _folder = new();

    static MobileNetTests() => RuntimeHelpers.RunModuleConstructor(typeof(MobileNet).Module.ModuleHandle);

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void Parameters_and_multiply_adds_are_the_published_ones()
    {
        // 4.2 M and 569 M (arXiv 1704.04861); 3.4 M and 300 M (1801.04381; torchvision's model of these names has 3,504,872).
        Assert.Equal(4_231_976, Count(MobileNet.V1Options));
        Assert.Equal(3_504_872, Count(MobileNet.V2Options));
        Assert.Equal(569, Math.Round(MobileNet.MultiplyAdds(MobileNet.V1Options, 224) / 1e6));
        Assert.Equal(300, MobileNet.MultiplyAdds(MobileNet.V2Options, 224) / 1e6, 1.0);
    }

    [Fact]
    public void Replaced_blocks_cost_what_the_papers_rows_say()
    {
        var (parameters, operations) = (Count(MobileNet.V2Options), MobileNet.MultiplyAdds(MobileNet.V2Options, 224));
        (double Parameters, double Operations) Saved(MobileNetOptions options) => ((parameters - Count(options)) / 1e6, (operations - MobileNet.MultiplyAdds(options, 224)) / 1e6);
        var (imageNet, fineGrained) = (Saved(MobileNet.UlsamImageNet), Saved(MobileNet.UlsamFineGrained));

        // The paper starts from 3.4 M and 300 M and rounds.
        Assert.Equal(2.96, 3.4 - imageNet.Parameters, 0.01);
        Assert.Equal(262, 300 - imageNet.Operations, 1.0);
        Assert.Equal(2.54, 3.4 - fineGrained.Parameters, 0.02);
        Assert.Equal(224, 300 - fineGrained.Operations, 1.0);
    }

    [Theory]
    [InlineData(MobileNetVersion.V1)]
    [InlineData(MobileNetVersion.V2)]
    public void Multiply_adds_are_those_of_the_layers(MobileNetVersion version)
    {
        var options = Tiny with { Version = version, Replace = [3], Insert = [1] };
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new MobileNet(options);
        // 9 x 9 pixels: 5 x 5 after the stem, 3 x 3 from block 2 on.
        long sum = 25 * 9 * 4;
        sum += 25 * 4 * (9 + 4);
        sum += 25 * 2 * 4;
        sum += version == MobileNetVersion.V1 ? 9 * 4 * (9 + 8) : (25 * 4 * 8) + (9 * 8 * (9 + 8));
        sum += 9 * 2 * 8;
        sum += (9 * 8 * 8) + (8 * 3);

        Assert.Equal(sum, MobileNet.MultiplyAdds(options, 9));
        Assert.Equal([2, 8, 3, 3], model.Features(randn(2, 1, 9, 9)).shape);
        Assert.Equal([2, 3], model.forward(randn(2, 1, 9, 9)).shape);
    }

    [Fact]
    public void Saved_under_torchvisions_names_and_loaded_back_the_model_says_the_same()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var options = Tiny with { Replace = [3], Insert = [2] };
        using var first = new MobileNet(options);
        using var second = new MobileNet(options);
        first.eval();
        second.eval();
        SafetensorsWriter.Write(_folder.At("model.safetensors"), first.state_dict());
        Assert.Superset(
            new HashSet<string>
            {
                "features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.1.weight", "features.2.conv.1.0.weight", "features.2.conv.3.running_mean", "features.3.subspaces.0.conv_dws.weight",
                "attention.2.subspaces.1.bn_point.weight", "features.4.0.weight", "classifier.1.bias",
            },
            first.state_dict().Keys.ToHashSet());

        second.LoadCheckpoint(_folder.At("model.safetensors"));

        var images = randn(2, 1, 12, 12);
        Assert.True(first.forward(images).equal(second.forward(images)).all().item<bool>());
    }

    [Fact]
    public void Blocks_that_cannot_be_replaced_are_told()
    {
        string Error(MobileNetOptions options) => Assert.Throws<ArgumentException>(() => new MobileNet(options)).Message;

        Assert.Contains("block 2 goes from 4 to 8 channels with stride 2: replace another, or insert behind it", Error(Tiny with { Replace = [2] }), StringComparison.Ordinal);
        Assert.Contains("There is no block 4: they are numbered 1 to 3", Error(Tiny with { Insert = [4] }), StringComparison.Ordinal);
        Assert.Contains("must divide the channels", Error(Tiny with { Insert = [3], Splits = 3 }), StringComparison.Ordinal);
        Assert.Contains("at least one block", Error(Tiny with { Stages = [] }), StringComparison.Ordinal);
    }

    private static long Count(MobileNetOptions options)
    {
        set_default_device(META);
        try
        {
            using var model = new MobileNet(options);
            return model.parameters().Sum(parameter => parameter.numel());
        }
        finally
        {
            set_default_device(CPU);
        }
    }
}
