using Heed.Models.Checkpoints;
using Heed.Models.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class AgentModelsTests : IDisposable
{
    private readonly int _threads = get_num_threads();

    // Small tensors: handing them to threads takes longer than the work.
    public AgentModelsTests() => set_num_threads(1);

    /// <summary>Every published size: what the authors' code counts, and the millions in their table (which rounds two of them up).</summary>
    public static TheoryData<string, long, double> Published => new()
    {
        { "DeiT-T", 6_015_640, 6.0 }, { "DeiT-S", 22_647_112, 22.7 }, { "DeiT-S 448", 23_070_472, 23.1 }, { "DeiT-B", 87_204_904, 87.2 },
        { "PVT-T", 11_570_352, 11.6 }, { "PVT-S", 20_635_066, 20.6 }, { "PVT-M", 35_921_746, 35.9 }, { "PVT-M 256", 36_083_682, 36.1 }, { "PVT-L", 48_738_180, 48.7 },
        { "Swin-T", 28_902_964, 29 }, { "Swin-S", 49_666_684, 50 }, { "Swin-S 288", 49_707_964, 50 }, { "Swin-B", 88_095_096, 88 }, { "Swin-B 384", 88_305_016, 88 },
        { "CSwin-T", 20_458_672, 21 }, { "CSwin-S", 32_814_100, 33 }, { "CSwin-B", 73_249_696, 73 }, { "CSwin-B 384", 73_328_416, 73 },
    };

    public void Dispose() => set_num_threads(_threads);

    [Theory]
    [MemberData(nameof(Published))]
    public void Published_sizes_have_the_published_number_of_parameters(string name, long parameters, double millions)
    {
        // Shapes alone: nothing is allocated or drawn. Tests of this assembly run one at a time.
        set_default_device(META);
        try
        {
            using var scope = NewDisposeScope();
            ImageClassifier model = name switch
            {
                "DeiT-T" => AgentDeiT.Tiny(), "DeiT-S" => AgentDeiT.Small(), "DeiT-S 448" => AgentDeiT.Small(448), "DeiT-B" => AgentDeiT.Base(),
                "PVT-T" => AgentPVT.Tiny(), "PVT-S" => AgentPVT.Small(), "PVT-M" => AgentPVT.Medium(), "PVT-M 256" => AgentPVT.Medium(256), "PVT-L" => AgentPVT.Large(),
                "Swin-T" => AgentSwin.Tiny(), "Swin-S" => AgentSwin.Small(), "Swin-S 288" => AgentSwin.Small(288), "Swin-B" => AgentSwin.Base(), "Swin-B 384" => AgentSwin.Base(384),
                "CSwin-T" => AgentCSwin.Tiny(), "CSwin-S" => AgentCSwin.Small(), "CSwin-B" => AgentCSwin.Base(), _ => AgentCSwin.Base(384),
            };
            var counted = model.parameters().Sum(parameter => parameter.numel());
            Assert.Equal(parameters, counted);
            Assert.InRange(counted / 1e6 / millions, 0.97, 1.01);
            model.Dispose();
        }
        finally
        {
            set_default_device(CPU);
        }
    }

    [Theory]
    [InlineData("deit", "blocks.1.attn.ca_bias", "blocks.2.attn.qkv.bias")]
    [InlineData("swin", "layers.0.blocks.0.attn.dwc.weight", "layers.1.blocks.1.attn.relative_position_bias_table")]
    [InlineData("pvt", "block2.0.attn.kv.weight", "pos_embed4")]
    [InlineData("cswin", "stage2.0.attns.1.get_v.weight", "stage1_conv_embed.2.bias")]
    public void Checkpoints_in_the_authors_names_load_back(string family, string name, string another)
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        using var first = Small(family);
        using var second = Small(family);
        first.eval();
        second.eval();
        var images = randn(2, 3, 64, 64);
        var tensors = first.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter);
        Assert.Contains(name, tensors.Keys);
        Assert.Contains(another, tensors.Keys);
        tensors["layers.1.blocks.1.attn.relative_position_index"] = zeros(2);
        var path = Path.Combine(folder.Path, "model.safetensors");
        SafetensorsWriter.Write(path, tensors.ToDictionary(entry => entry.Key, entry => entry.Value));
        using (var reader = new SafetensorsReader(path))
        {
            using var quiet = no_grad();
            var targets = second.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter);
            foreach (var stored in reader.Entries.Keys.Where(stored => family == "swin" || !stored.EndsWith("_index", StringComparison.Ordinal)))
            {
                if (second.NameOf(stored) is { } target)
                {
                    targets[target].copy_(reader.Read(stored));
                    targets.Remove(target);
                }
            }

            Assert.Empty(targets);
        }

        using var still = no_grad();
        var (expected, actual) = (first.forward(images), second.forward(images));
        Assert.Equal([2, 5], expected.shape);
        Assert.True(expected.eq(actual).all().item<bool>());
    }

    [Theory]
    [InlineData("deit", 64)]
    [InlineData("swin", 64)]
    [InlineData("pvt", 64)]
    [InlineData("cswin", 64)]
    public void Models_train_show_agents_and_refuse_other_pictures(string family, int channels)
    {
        using var scope = NewDisposeScope();
        using var model = Small(family);
        var images = randn(2, 3, 64, 64);
        Assert.All(model.named_parameters(), entry => Assert.True(entry.parameter.isfinite().all().item<bool>(), $"{entry.name} starts with something that is no number"));
        var loss = nn.functional.cross_entropy(model.forward(images), tensor(new long[] { 1, 4 }));
        loss.backward();
        Assert.All(model.named_parameters(), entry => Assert.True(entry.parameter.grad is not null && entry.parameter.grad.isfinite().all().item<bool>(), $"{entry.name} has no gradient"));
        using (var recorder = MapRecorder.Install(model))
        {
            var features = model.Features(images);
            Assert.Equal(4, features.dim());
            Assert.Equal(channels, features.shape[1]);
            Assert.Contains(recorder.Maps, map => map.Name == "where agents look" && map.Site.Length > 0);

            // What the positions read of the agents sums to one at every position.
            var reads = recorder.Maps.First(map => map.Name == "who reads agents").Values;
            Assert.True((reads.sum(1) - 1).abs().max().item<float>() < 1e-5);
        }

        Assert.Throws<ArgumentException>(() => model.forward(randn(1, 3, 32, 64)));
        Assert.Throws<ArgumentException>(() => model.forward(randn(1, 1, 64, 64)));
    }

    [Fact]
    public void Half_the_blocks_of_a_mixed_stage_have_agents()
    {
        using var model = Small("swin");
        Assert.Contains(model.named_parameters(), entry => entry.name == "layers.1.blocks.0.attn.an_bias");
        Assert.DoesNotContain(model.named_parameters(), entry => entry.name == "layers.1.blocks.1.attn.an_bias");
    }

    [Theory]
    [InlineData("AA")]
    [InlineData("AXAB")]
    [InlineData("AAM")]
    [InlineData("AAMB")]
    [InlineData("AABB2")]
    public void Types_that_are_none_are_refused(string types)
    {
        var error = Assert.Throws<ArgumentException>(() => new AgentSwin(new() { ImageSize = 64, Width = 8, Depths = [1, 1, 1, 1], Heads = [1, 1, 1, 1], Types = types }));
        Assert.Contains(types, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Sizes_that_do_not_fit_are_refused()
    {
        Assert.Contains("32", Assert.Throws<ArgumentException>(() => AgentPVT.Tiny(100)).Message, StringComparison.Ordinal);
        Assert.Contains("depth", Assert.Throws<ArgumentException>(() => new AgentPVT(new() { Depths = [1, 1] })).Message, StringComparison.Ordinal);
        Assert.Contains("four", Assert.Throws<ArgumentException>(() => AgentDeiT.Make(new() { ImageSize = 32, PatchSize = 16, Width = 8, Depth = 1, ClassToken = true }, 1, [4])).Message, StringComparison.Ordinal);
    }

    private static ImageClassifier Small(string family) => family switch
    {
        "deit" => AgentDeiT.Make(new() { ImageSize = 64, PatchSize = 16, Classes = 5, Width = 64, Depth = 3, FeedForwardRatio = 2, ClassToken = true }, 2, [4, 9, 9, 9], 2),
        "swin" => new AgentSwin(new() { ImageSize = 64, Classes = 5, Width = 8, Depths = [1, 2, 3, 1], Heads = [1, 2, 2, 4], Window = 4, Types = "AMBB1", Agents = [4, 9, 4, 4] }),
        "pvt" => new AgentPVT(new() { ImageSize = 64, Classes = 5, Widths = [8, 16, 32, 64], Depths = [1, 1, 1, 1], Heads = [1, 2, 4, 8], FeedForwardRatios = [2, 2, 1, 1], Agents = [4, 9, 4, 4], Reductions = [2, 1, 1, 1] }),
        _ => new AgentCSwin(new() { ImageSize = 64, Classes = 5, Width = 8, Depths = [1, 1, 2, 1], Heads = [2, 2, 4, 4], Splits = [2, 2, 2, 2], AgentSplits = [16, 4, 4, 2], Types = "AAMB1", Agents = [4, 9, 4, 4] }),
    };
}
