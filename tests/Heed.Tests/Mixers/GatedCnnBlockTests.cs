using Heed.Mixers;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class GatedCnnBlockTests
{
    [Theory]
    [InlineData(12, 1.0, 32, 12)]
    [InlineData(10, 1.0, 26, 10)]
    [InlineData(10, 0.55, 26, 5)]
    [InlineData(96, 1.0, 256, 96)]
    [InlineData(288, 1.0, 768, 288)]
    public void Ratios_are_of_the_width_and_are_truncated(int width, double convRatio, int hidden, int convolved)
    {
        using var block = new GatedCnnBlock(width, convRatio: convRatio);
        var shapes = block.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter.shape);
        Assert.Equal([2 * hidden, width], shapes["fc1.weight"]);
        Assert.Equal([convolved, 1, 7, 7], shapes["conv.weight"]);
        Assert.Equal([width, hidden], shapes["fc2.weight"]);
    }

    [Fact]
    public void Only_the_last_channels_look_around()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var block = new GatedCnnBlock(8, expansionRatio: 2, kernelSize: 3, convRatio: 0.5);

        // The last 4 of 16 gated channels are convolved; without their way out, a position is alone.
        block.state_dict()["fc2.weight"].narrow(1, 12, 4).zero_();
        var input = randn(1, 6, 6, 8);
        var changed = input.clone();
        changed[0, 3, 3] = 4f;
        Assert.Equal(1, block.forward(changed).sub(block.forward(input)).abs().sum(3).gt(0).sum().item<long>());
    }

    [Fact]
    public void A_state_space_model_after_the_convolution_sees_what_the_filters_do_not()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var input = randn(1, 1, 30, 8).requires_grad_();
        using var convolution = new GatedCnnBlock(8, kernelSize: 3);
        using var scan = new GatedCnnBlock(8, kernelSize: 3, scan: channels => new StateSpaceScan(channels, ScanPattern.Raster, states: 4));
        Assert.Contains(scan.named_parameters(), entry => entry.name == "ssm.A_logs");
        Assert.Equal(3, Seen(convolution));
        Assert.Equal(22, Seen(scan));

        // Positions from which the one before the tenth last takes something: of a scan all before it and the neighbour that the filter sees.
        long Seen(GatedCnnBlock block) => autograd.grad([block.forward(input)[0, 0, 20].sum()], [input])[0].abs().sum(3).gt(0).sum().item<long>();
    }

    [Fact]
    public void A_recorder_gets_the_length_of_the_gate()
    {
        using var block = new GatedCnnBlock(8);
        using var model = nn.Sequential(block);
        using var recorder = MapRecorder.Install(model);
        using var input = randn(2, 6, 5, 8);
        block.forward(input).Dispose();
        Assert.Equal("gate", Assert.Single(recorder.Maps).Name);
        Assert.Equal([2, 1, 6, 5], recorder.Maps[0].Values.shape);
    }

    [Fact]
    public void What_cannot_be_is_refused()
    {
        Assert.Contains("side 6", Assert.Throws<ArgumentException>(() => new GatedCnnBlock(8, kernelSize: 6)).Message, StringComparison.Ordinal);
        Assert.Contains("convolved channels", Assert.Throws<ArgumentException>(() => new GatedCnnBlock(8, convRatio: 3)).Message, StringComparison.Ordinal);
        Assert.Contains("at least 1", Assert.Throws<ArgumentException>(() => new GatedCnnBlock(8, convRatio: 0.1)).Message, StringComparison.Ordinal);
        using var block = new GatedCnnBlock(8);
        using var wrong = randn(1, 8, 4, 4);
        Assert.Contains("[batch, height, width, 8]", Assert.Throws<ArgumentException>(() => block.forward(wrong)).Message, StringComparison.Ordinal);
        using var scan = new StateSpaceScan(8, ScanPattern.Cross2d);
        Assert.Contains("[batch, height, width, 8]", Assert.Throws<ArgumentException>(() => scan.forward(wrong)).Message, StringComparison.Ordinal);
    }
}
