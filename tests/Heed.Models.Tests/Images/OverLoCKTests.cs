using System.Runtime.CompilerServices;
using Heed.Mixers;
using Heed.Models.Checkpoints;
using Heed.Models.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class OverLoCKTests : IDisposable
{
    private static readonly OverLoCKOptions Tiny = new()
    {
        Channels = 1, Classes = 3, Depth = [1, 1, 1, 1], SubDepth = [2, 1], EmbedDim = [4, 4, 8, 8], KernelSize = [7, 5, 5, 5], SmallKernelSize = 3, FeedForwardRatio = [2, 2, 2, 2], SubFeedForwardRatio = [2, 2],
        SubHeads = [1, 1], Projection = 8, Strides = [2, 2, 1, 2],
    };

    private readonly TemporaryFolder _folder = new();

    static OverLoCKTests() => RuntimeHelpers.RunModuleConstructor(typeof(OverLoCK).Module.ModuleHandle);

    public void Dispose() => _folder.Dispose();

    // Measured by the specification with both heads; the README's 16, 33, 56 and 95 M are the merged forms without the auxiliary head.
    [Theory]
    [InlineData("XT", 16.8, 17.3, 16)]
    [InlineData("T", 34.0, 35.0, 33)]
    [InlineData("S", 56.7, 58.3, 56)]
    [InlineData("B", 95.5, 98.0, 95)]
    public void Published_sizes_have_the_published_parameters(string name, double merged, double trained, double readme)
    {
        Assert.Equal(trained, Count(name, deploy: false).All / 1e6, 0.05);
        var (all, auxiliary) = Count(name, deploy: true);
        Assert.Equal(merged, all / 1e6, 0.05);
        // The README cuts off what stands behind the point, or rounds it.
        Assert.Equal(readme, (all - auxiliary) / 1e6, 1.0);
    }

    [Fact]
    public void Merging_changes_nothing_in_evaluation_and_takes_parameters_away()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new OverLoCK(Tiny);
        var images = randn(4, 1, 28, 28);
        model.train();
        model.forward(images);
        model.eval();

        using var merged = model.Merged();

        var (expected, actual) = (model.forward(images), merged.forward(images));
        // Folded filters round differently at every layer; a relative error of 1e-5 is the specification's own.
        Assert.True((expected - actual).abs().max().item<float>() <= 1e-5 * (1 + expected.abs().max().item<float>()));
        Assert.True(merged.parameters().Sum(parameter => parameter.numel()) < model.parameters().Sum(parameter => parameter.numel()));
    }

    [Fact]
    public void Saved_under_the_authors_names_and_loaded_back_the_model_says_the_same()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var first = new OverLoCK(Tiny);
        using var second = new OverLoCK(Tiny);
        first.eval();
        second.eval();
        SafetensorsWriter.Write(_folder.At("model.safetensors"), first.state_dict());
        Assert.Superset(
            new HashSet<string> { "sub_blocks3.0.weight_query.0.weight", "sub_blocks3.0.rpb2", "blocks1.0.proj.1.dil_conv_k5_1.weight", "patch_embedx.h_proj.0.weight", "aux_head.2.bias" },
            new SafetensorsReader(_folder.At("model.safetensors")).Entries.Keys.ToHashSet());

        second.LoadCheckpoint(_folder.At("model.safetensors"));

        var images = randn(2, 1, 28, 28);
        Assert.True(first.forward(images).equal(second.forward(images)).all().item<bool>());
    }

    [Fact]
    public void Without_context_the_overview_does_not_reach_the_logits()
    {
        using var scope = NewDisposeScope();
        var images = randn(2, 1, 28, 28);
        long Learning(bool usesContext, FocusKernels kernels = FocusKernels.Dynamic)
        {
            using var model = new OverLoCK(Tiny with { UsesContext = usesContext, Kernels = kernels });
            model.forward(images).square().sum().backward();
            return model.named_parameters().Count(entry => entry.name.StartsWith("blocks4", StringComparison.Ordinal) && entry.parameter.grad is { } gradient && gradient.abs().max().item<float>() > 0);
        }

        Assert.True(Learning(true) > 10);
        Assert.True(Learning(true, FocusKernels.Static) > 10);
        Assert.Equal(0, Learning(false));
    }

    [Fact]
    public void The_loss_weighs_both_heads_and_every_block_shows_its_kernels()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new OverLoCK(Tiny);
        model.eval();
        var (images, labels) = (randn(3, 1, 28, 28), tensor(new long[] { 0, 2, 1 }));
        using var recorder = MapRecorder.Install(model);

        var (logits, auxiliary, features, context) = model.ForwardWithEverything(images);

        var expected = nn.functional.cross_entropy(logits, labels) + (0.4 * nn.functional.cross_entropy(auxiliary, labels));
        Assert.Equal(["sub_blocks3.0", "sub_blocks3.1", "sub_blocks4.0"], recorder.Maps.Select(map => map.Site).Distinct());
        Assert.Equal(expected.item<float>(), model.Loss(images, labels).item<float>(), 1e-5);
        Assert.Equal([3, 10, 4, 4], features.shape);
        Assert.Equal([3, 8, 4, 4], context.shape);
    }

    [Fact]
    public void Shapes_that_make_no_sense_are_told()
    {
        string Error(OverLoCKOptions options) => Assert.Throws<ArgumentException>(() => new OverLoCK(options)).Message;

        Assert.Contains("are four each", Error(Tiny with { Depth = [1, 1, 1] }), StringComparison.Ordinal);
        Assert.Contains("are two each", Error(Tiny with { SubHeads = [1] }), StringComparison.Ordinal);
        Assert.Contains("at least one block", Error(Tiny with { SubDepth = [0, 1] }), StringComparison.Ordinal);
        Assert.Contains("The stem's stride is 1, 2 or 4", Error(Tiny with { Strides = [3, 1, 1, 1] }), StringComparison.Ordinal);
        Assert.Contains("a multiple of 4 x heads", Error(Tiny with { SubHeads = [3, 1] }), StringComparison.Ordinal);
        using var scope = NewDisposeScope();
        using var model = new OverLoCK(Tiny);
        Assert.Contains("Pictures must be [batch, 1, height, width]", Assert.Throws<ArgumentException>(() => model.forward(randn(1, 3, 28, 28))).Message, StringComparison.Ordinal);
    }

    private static (long All, long Auxiliary) Count(string name, bool deploy)
    {
        set_default_device(META);
        try
        {
            using var model = name switch
            {
                "XT" => OverLoCK.XT(deploy: deploy),
                "T" => OverLoCK.T(deploy: deploy),
                "S" => OverLoCK.S(deploy: deploy),
                _ => OverLoCK.B(deploy: deploy),
            };
            return (model.parameters().Sum(parameter => parameter.numel()), model.named_parameters().Where(entry => entry.name.StartsWith("aux_head", StringComparison.Ordinal)).Sum(entry => entry.parameter.numel()));
        }
        finally
        {
            set_default_device(CPU);
        }
    }
}
