using Heed.Mixers;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class VisualMambaMixersTests : IDisposable
{
    private readonly DisposeScope _scope = NewDisposeScope();

    public void Dispose() => _scope.Dispose();

    [Theory]
    [InlineData("v0")]
    [InlineData("v3")]
    [InlineData("v05_noz")]
    [InlineData("v051d_nozact")]
    [InlineData("v052d_oact")]
    [InlineData("v2_onsoftmax_noz_no32")]
    [InlineData("v04_onsigmoid")]
    [InlineData("v05_ondwconv3")]
    [InlineData("v05_oncnorm_noz")]
    [InlineData("v05_onnone_noz")]
    public void Both_layouts_compute_the_same(string forwardType)
    {
        var options = new SS2DOptions { Width = 6, States = 2, Expand = 1 }.WithForwardType(forwardType);
        manual_seed(1);
        using var last = new SS2D(options);
        manual_seed(1);
        using var first = new SS2D(options with { ChannelFirst = true });
        var map = randn(2, 3, 4, 6);
        Assert.True(last.forward(map).permute(0, 3, 1, 2).allclose(first.forward(map.permute(0, 3, 1, 2)), atol: 1e-6));
        Assert.Equal(last.named_parameters().Select(entry => entry.name).Order(), first.named_parameters().Select(entry => entry.name).Order());
    }

    [Fact]
    public void Without_convolution_one_direction_is_causal_and_four_routes_see_everything()
    {
        Tensor Touched(ScanPattern pattern)
        {
            using var mixer = new SS2D(new() { Width = 4, States = 2, Convolution = 0, Pattern = pattern }).to(float64);
            var map = randn([1, 3, 4, 4], dtype: float64).requires_grad_();
            // What row 1, column 2 sees.
            mixer.forward(map)[0, 1, 2].sum().backward();
            return map.grad!.abs().sum(3).flatten().ne(0);
        }

        Assert.Equal(7, Touched(ScanPattern.Unidirectional).sum().item<long>());
        Assert.True(Touched(ScanPattern.Unidirectional)[..7].all().item<bool>());
        Assert.Equal(12, Touched(ScanPattern.Cross2d).sum().item<long>());
        Assert.Equal(12, Touched(ScanPattern.Continuous).sum().item<long>());

        // Atrous: an odd row and an even column, column by column; (1, 0) comes before it.
        Assert.Equal([4L, 6L], Touched(ScanPattern.Atrous).nonzero().flatten().data<long>().ToArray());
    }

    [Fact]
    public void Atrous_scans_of_odd_sides_are_those_of_the_padded_picture()
    {
        using var mixer = new AtrousSelectiveScan(4, 3);
        var map = randn(1, 4, 5, 3);
        var padded = mixer.forward(nn.functional.pad(map, [0, 1, 0, 1]));
        Assert.True(mixer.forward(map).allclose(padded.narrow(1, 0, 5).narrow(2, 0, 3), atol: 1e-6));
    }

    [Fact]
    public void Plain_mamba_as_in_the_paper_does_not_tell_a_picture_from_its_transpose_but_its_code_does()
    {
        foreach (var asPaper in new[] { true, false })
        {
            using var mixer = new PlainMambaMixer(new() { Width = 4, GridHeight = 3, GridWidth = 3, States = 2, Convolution = 1, AsPaper = asPaper });
            using (no_grad())
            {
                mixer.get_parameter("direction_Bs")!.zero_();
                // Steps long enough that the order matters.
                mixer.get_parameter("dt_proj.bias")!.fill_(1);
                mixer.get_parameter("dt_proj.weight")!.fill_(2);
            }

            var tokens = randn(1, 9, 4);
            Tensor Transposed(Tensor values) => values.view(1, 3, 3, 4).transpose(1, 2).reshape(1, 9, 4);
            Assert.Equal(asPaper, Transposed(mixer.forward(tokens)).allclose(mixer.forward(Transposed(tokens)), atol: 1e-5));
        }
    }

    [Theory]
    [InlineData("v", "h")]
    [InlineData("v_flip", "h_flip")]
    public void Columns_of_a_picture_that_is_not_square_are_the_rows_of_its_transpose(string column, string row)
    {
        manual_seed(1);
        using var columns = new LocalVimMixer(new() { Width = 8, States = 2, Grid = new(2, 5) }, [column]);
        manual_seed(1);
        using var rows = new LocalVimMixer(new() { Width = 8, States = 2, Grid = new(5, 2) }, [row]);
        var tokens = randn(1, 10, 8);
        var transposed = rows.forward(tokens.view(1, 2, 5, 8).transpose(1, 2).reshape(1, 10, 8)).view(1, 5, 2, 8).transpose(1, 2).reshape(1, 10, 8);
        Assert.True(columns.forward(tokens).allclose(transposed, atol: 1e-6));
    }

    [Fact]
    public void Mixers_show_a_response_for_each_route_and_direction()
    {
        using var ss2d = new SS2D(new() { Width = 4, States = 2 });
        using var plain = new PlainMambaMixer(new() { Width = 4, GridHeight = 3, GridWidth = 4, States = 2 });
        using var local = new LocalVimMixer(new() { Width = 8, States = 2, Grid = new(3, 4) { Others = [6] } }, ["h", "w2_flip", "v"]);
        Shows(ss2d, zeros(1, 3, 4, 4), [4, 4], "response, cross2d route 0");
        Shows(plain, randn(1, 12, 4), [4, 1], "response, continuous route 0");
        Shows(local, randn(1, 13, 8), [3, 3], "response, h");

        static void Shows(nn.Module<Tensor, Tensor> mixer, Tensor input, long[] maps, string label)
        {
            using var model = nn.Sequential(("mixer", mixer));
            using var recorder = MapRecorder.Install(model);
            model.forward(input).Dispose();
            Assert.Equal(["response", "step"], recorder.Maps.Select(map => map.Name));
            Assert.Equal(maps, recorder.Maps.Select(map => map.Values.shape[1]));
            Assert.All(recorder.Maps, map => Assert.Equal([3, 4], map.Values.shape[2..]));
            Assert.Equal(label, recorder.Maps[0].Labels[0]);
            Assert.True(recorder.Maps[1].Values.gt(0).all().item<bool>());
        }
    }

    [Theory]
    [InlineData("ss2d")]
    [InlineData("plain")]
    [InlineData("local")]
    [InlineData("atrous")]
    public void Training_steps_leave_nothing_behind(string name)
    {
        using nn.Module<Tensor, Tensor> mixer = name switch
        {
            "ss2d" => new SS2D(new() { Width = 8, States = 2 }),
            "plain" => new PlainMambaMixer(new() { Width = 8, GridHeight = 3, GridWidth = 4, States = 2, LayerScale = 0.1 }),
            "local" => new LocalVimMixer(new() { Width = 8, States = 2, Grid = new(3, 4) }, ["h", "w2_flip"]),
            _ => new AtrousSelectiveScan(8, 2),
        };
        var input = name == "ss2d" ? randn(1, 3, 4, 8) : name == "atrous" ? randn(1, 8, 3, 4) : randn(1, 12, 8);
        void Step()
        {
            using var output = mixer.forward(input);
            using var loss = output.sum();
            loss.backward();
        }

        for (var i = 0; i < 5; i++)
        {
            Step();
        }

        var before = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
        for (var i = 0; i < 50; i++)
        {
            Step();
        }

        Assert.Equal(before, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    [Fact]
    public void Wrong_shapes_are_refused_with_a_sentence()
    {
        Says("There is no forward type 'v9'", () => new SS2DOptions { Width = 4 }.WithForwardType("v9"));
        Says("There is no forward type 'v05_fast'", () => new SS2DOptions { Width = 4 }.WithForwardType("v05_fast"));
        Says("odd side (0 or 1: none), not 4", () => new SS2D(new() { Width = 4, Convolution = 4 }).Dispose());
        Says("takes [batch, height, width, 4], not [1, 4, 3, 3]", () => new SS2D(new() { Width = 4 }).forward(zeros(1, 4, 3, 3)));
        Says("a step of 2 only, not 3", () => new AtrousSelectiveScan(4, step: 3).Dispose());
        Says("takes [batch, 4, height, width], not [1, 3, 3, 4]", () => new AtrousSelectiveScan(4).forward(zeros(1, 3, 3, 4)));
        Says("an odd side, not 4, 8, 16 and 2", () => new PlainMambaMixer(new() { Width = 4, GridHeight = 2, GridWidth = 2, Convolution = 2 }).Dispose());
        Says("takes [batch, 2 * 3, 4], not [1, 5, 4]", () => new PlainMambaMixer(new() { Width = 4, GridHeight = 2, GridWidth = 3 }).forward(zeros(1, 5, 4)));
        Says("say by Grid", () => new LocalVimMixer(new() { Width = 8 }, ["h"]).Dispose());
        Says("in the middle, at 4, not at 0", () => new LocalVimMixer(new() { Width = 8, Grid = new(3, 3) { Others = [0] } }, ["h"]).Dispose());
        Says("There is no direction 'd'", () => new LocalVimMixer(new() { Width = 8, Grid = new(3, 3) }, ["d"]).Dispose());
        Says("at least one direction", () => new LocalVimMixer(new() { Width = 8, Grid = new(3, 3) }, []).Dispose());
        Says("9 tokens of 3 x 3 places and 0 class token(s), not 8", () => new LocalVimMixer(new() { Width = 8, Grid = new(3, 3) }, ["h"]).forward(zeros(1, 8, 8)));
    }

    private static void Says(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
}
