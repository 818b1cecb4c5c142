using Heed.Mixers;
using Heed.Models.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class MambaOutTests
{
    private static readonly MambaOutOptions Small = new() { Depths = [1, 2], Widths = [8, 12], Classes = 5 };

    // Millions of parameters, measured on the authors' models.
    public static TheoryData<string, MambaOutOptions, double> Published => new()
    {
        { "femto", MambaOutOptions.Femto, 7.305 }, { "kobe", MambaOutOptions.Kobe, 9.141 }, { "tiny", MambaOutOptions.Tiny, 26.545 }, { "small", MambaOutOptions.Small, 48.488 }, { "base", MambaOutOptions.Base, 84.813 },
    };

    [Theory]
    [MemberData(nameof(Published))]
    public void Published_sizes_have_the_published_parameters(string name, MambaOutOptions options, double millions) =>
        Assert.True(Math.Abs((Count(options) / 1e6) - millions) <= 0.0005, $"{name}: {Count(options) / 1e6:0.0000} million, not {millions}");

    // The formula by which the published sizes are counted without making them.
    [Fact]
    public void The_formula_counts_what_a_model_has()
    {
        foreach (var options in new[] { Small, Small with { ConvRatio = 0.5, KernelSize = 3 }, Small with { Depths = [2], Widths = [10] } })
        {
            using var model = new MambaOut(options);
            Assert.Equal(model.parameters().Sum(parameter => parameter.numel()), Count(options));
        }
    }

    [Fact]
    public void A_checkpoint_in_the_authors_names_gives_the_same_model()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var first = new MambaOut(Small);
        using var second = new MambaOut(Small);
        foreach (var name in new[] { "downsample_layers.0.conv1.weight", "downsample_layers.0.norm2.bias", "downsample_layers.1.conv.bias", "stages.1.1.fc1.weight", "stages.0.0.conv.weight", "norm.weight", "head.norm.bias", "head.fc2.weight" })
        {
            Assert.Contains(name, first.state_dict().Keys);
        }

        var images = randn(2, 3, 36, 28);
        ModelChecks.SurvivesCheckpoint(first, second, images);
        Assert.Equal([2, 12], first.PooledFeatures(images).shape);
        Assert.Equal([2, 12, 5, 4], first.Features(images).shape);
    }

    [Fact]
    public void A_scan_joins_every_block_and_keeps_its_own_initial_values()
    {
        using var scope = NewDisposeScope();
        using var model = new MambaOut(Small with { Scan = channels => new StateSpaceScan(channels, ScanPattern.Bidirectional, states: 4) });
        var parameters = model.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter);
        Assert.Equal(3, parameters.Keys.Count(name => name.EndsWith(".ssm.Ds", StringComparison.Ordinal)));
        Assert.True(parameters["stages.0.0.ssm.Ds"].eq(1).all().item<bool>());
        using var recorder = MapRecorder.Install(model);
        model.forward(randn(1, 3, 32, 32));
        Assert.Contains(recorder.Maps, maps => maps.Site == "stages.0.0.ssm");
        Assert.Contains(recorder.Maps, maps => maps.Site == "stages.1.1" && maps.Name == "gate");
    }

    [Fact]
    public void Gradients_in_float32_are_those_in_float64()
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        using var model = new MambaOut(new() { Channels = 1, Classes = 10, Depths = [2], Widths = [48] });
        ModelChecks.GradientsInFloat32AreThoseInFloat64(model, randn(3, 1, 28, 28), arange(3));
    }

    [Fact]
    public void What_cannot_be_is_refused()
    {
        Assert.Contains("as many depths as widths", Assert.Throws<ArgumentException>(() => new MambaOut(Small with { Depths = [1] })).Message, StringComparison.Ordinal);
        Assert.Contains("side 4", Assert.Throws<ArgumentException>(() => new MambaOut(Small with { KernelSize = 4 })).Message, StringComparison.Ordinal);
        using var model = new MambaOut(Small);
        using var wrong = randn(1, 1, 32, 32);
        Assert.Contains("[batch, 3, height, width]", Assert.Throws<ArgumentException>(() => model.forward(wrong)).Message, StringComparison.Ordinal);
    }

    private static long Count(MambaOutOptions options)
    {
        long Norm(long width) => 2 * width;
        long Linear(long from, long to) => (from * to) + to;
        long first = options.Widths[0], last = options.Widths[^1];
        var total = Linear(9L * options.Channels, first / 2) + Norm(first / 2) + Linear(9 * (first / 2), first) + Norm(first);
        for (var stage = 0; stage < options.Depths.Count; stage++)
        {
            long width = options.Widths[stage], hidden = (long)(options.ExpansionRatio * width), convolved = (long)(options.ConvRatio * width);
            total += stage == 0 ? 0 : Linear(9L * options.Widths[stage - 1], width) + Norm(width);
            total += options.Depths[stage] * (Norm(width) + Linear(width, 2 * hidden) + (convolved * ((options.KernelSize * options.KernelSize) + 1)) + Linear(hidden, width));
        }

        return total + Norm(last) + Linear(last, 4 * last) + Norm(4 * last) + Linear(4 * last, options.Classes);
    }
}
