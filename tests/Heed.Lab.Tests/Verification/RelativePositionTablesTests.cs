using Heed.Heads;
using Heed.Lab.Verification;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Verification;

/// <summary>The tables that the golden cases of MoH-ViT bring along are those that the library computes.</summary>
public sealed class RelativePositionTablesTests
{
    [Theory]
    [InlineData("transnext_attention")]
    [InlineData("transnext_aggregated")]
    [InlineData("transnext_block")]
    public void Computed_tables_are_those_of_the_golden_cases(string name)
    {
        using var scope = NewDisposeScope();
        using var golden = GoldenCase.Open(Path.Combine(GoldenCasesTests.GoldenFolder, "moh", $"{name}.safetensors"))!;
        var (rows, columns, reduction) = (golden.Integer("height"), golden.Integer("width"), golden.Integer("sr_ratio", 1));
        var positions = RelativePositions.Of(rows, columns, golden.Integer("pool_height", rows / reduction), golden.Integer("pool_width", columns / reduction));
        Assert.True(positions.Index().eq(golden.Read("in.relative_pos_index").to(int64)).all().item<bool>());

        // A logarithm of a float32.
        Assert.True((positions.Table() - golden.Read("in.relative_coords_table").to(float32)).abs().max().item<float>() < 1e-6);
    }
}
