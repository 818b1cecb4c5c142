using Heed.Models.Checkpoints;
using Heed.Models.Diffusion;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Diffusion;

public sealed class DiTTests
{
    private static readonly DiTOptions Small = new() { InputSize = 8, Width = 16, HeadWidth = 4, Classes = 3, Blocks = [new(2, 2, 0), new(6, 2, 2)] };

    // The counts of DiT (arXiv 2212.09748, table 4): the heads average to those of DiT, and routers are small.
    public static TheoryData<string, double> Published => new()
    {
        { nameof(DiT.S2Percent90), 33 }, { nameof(DiT.S2Percent75), 33 }, { nameof(DiT.B2Percent90), 130 }, { nameof(DiT.B2Percent75), 130 }, { nameof(DiT.L2Percent90), 458 }, { nameof(DiT.L2Percent75), 458 },
        { nameof(DiT.XL2Percent90), 675 }, { nameof(DiT.XL2Percent75), 675 },
    };

    // Blocks with the same heads are alike: one of each kind tells what all have.
    [Theory]
    [MemberData(nameof(Published))]
    public void Published_sizes_have_the_published_number_of_parameters(string name, double millions)
    {
        var options = (DiTOptions)typeof(DiT).GetProperty(name)!.GetValue(null)!;
        var kinds = options.Blocks.GroupBy(heads => heads).ToArray();
        using var one = new DiT(options with { Blocks = [.. kinds.Select(kind => kind.Key)] });
        long Of(string prefix) => one.named_parameters().Where(entry => entry.name.StartsWith(prefix, StringComparison.Ordinal)).Sum(entry => entry.parameter.numel());
        var count = Of("") - Of("pos_embed") + kinds.Index().Sum(kind => (kind.Item.Count() - 1) * Of($"blocks.{kind.Index}."));
        Assert.InRange(count / 1e6, millions - 1, millions + 1);
        Assert.Equal(name.Contains("XL", StringComparison.Ordinal) ? 28 : name.Contains('L', StringComparison.Ordinal) ? 24 : 12, options.Blocks.Count);
    }

    [Fact]
    public void A_fresh_model_predicts_nothing_and_keeps_its_positions()
    {
        using var scope = NewDisposeScope();
        using var model = new DiT(Small);
        model.eval();
        var output = model.forward(randn(2, 4, 8, 8), tensor(new[] { 3f, 900.5f }), tensor(new long[] { 0, 3 }));
        Assert.Equal([2, 8, 8, 8], output.shape);
        Assert.Equal(0, output.abs().sum().item<float>());
        Assert.False(model.named_parameters().Single(entry => entry.name == "pos_embed").parameter.requires_grad);

        // Column 1, row 0: sines of the column start the first half, those of the row the second.
        var positions = DiT.Positions(4, 16)[0, 1];
        Assert.Equal(Math.Sin(1), positions[0].item<float>(), 1e-6);
        Assert.Equal(0, positions[8].item<float>(), 1e-6);
    }

    [Fact]
    public void Saved_under_the_authors_names_and_loaded_back_the_model_says_the_same()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var folder = new TemporaryFolder();
        using var saved = new DiT(Small);
        using var loaded = new DiT(Small);
        foreach (var parameter in saved.parameters())
        {
            // Fresh models predict nothing, whatever their routers do.
            parameter.add_(randn(parameter.shape) * 0.1);
        }

        foreach (var name in new[]
        {
            "x_embedder.proj.weight", "t_embedder.mlp.0.weight", "t_embedder.mlp.2.bias", "y_embedder.embedding_table.weight", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.bias",
            "blocks.0.attn.wg_1.weight", "blocks.1.attn.wg.weight", "blocks.1.attn.wg_0.weight", "blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.bias", "blocks.1.adaLN_modulation.1.weight",
            "final_layer.linear.weight", "final_layer.adaLN_modulation.1.bias",
        })
        {
            Assert.Contains(name, saved.state_dict().Keys);
        }

        saved.eval();
        loaded.eval();
        SafetensorsWriter.Write(folder.At("moh-dit.safetensors"), saved.state_dict());
        var (latents, times, labels) = (randn(2, 4, 8, 8), tensor(new[] { 3f, 900.5f }), tensor(new long[] { 0, 3 }));
        Assert.False(saved.forward(latents, times, labels).allclose(loaded.forward(latents, times, labels)));
        loaded.LoadCheckpoint(folder.At("moh-dit.safetensors"));
        Assert.True(saved.forward(latents, times, labels).Equals(loaded.forward(latents, times, labels)));

        using var other = new DiT(Small with { Blocks = [new(2, 2, 0)] });
        Assert.Contains("has in excess", Assert.Throws<InvalidDataException>(() => other.LoadCheckpoint(folder.At("moh-dit.safetensors"))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Wrong_inputs_are_refused()
    {
        using var scope = NewDisposeScope();
        using var model = new DiT(Small);
        Assert.Contains("Latents must be", Assert.Throws<ArgumentException>(() => model.forward(zeros(1, 3, 8, 8), zeros(1), zeros(1, dtype: int64))).Message, StringComparison.Ordinal);
        Assert.Contains("int64 label", Assert.Throws<ArgumentException>(() => model.forward(zeros(1, 4, 8, 8), zeros(1), zeros(1))).Message, StringComparison.Ordinal);
        Assert.Contains("multiple of 4", Assert.Throws<ArgumentException>(() => new DiT(Small with { Width = 18 })).Message, StringComparison.Ordinal);
        Assert.Contains("divide into patches", Assert.Throws<ArgumentException>(() => new DiT(Small with { InputSize = 9 })).Message, StringComparison.Ordinal);
        Assert.Contains("more than the 2", Assert.Throws<ArgumentException>(() => new DiT(Small with { Blocks = [new(2, 2, 1)] })).Message, StringComparison.Ordinal);
    }
}
