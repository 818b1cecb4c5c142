using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Checkpoints;

public sealed class ShardedCheckpointTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void ShardsReadAsOne()
    {
        WriteShards("""{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}""");
        using var scope = NewDisposeScope();

        using var checkpoint = new ShardedCheckpoint(_folder.Path);

        Assert.Equal(["a", "b"], checkpoint.Names.Order());
        Assert.Equal(2, checkpoint.Read("b")[0].item<float>());
        Assert.Contains("'c'", Assert.Throws<KeyNotFoundException>(() => checkpoint.Read("c")).Message);
    }

    [Theory]
    [InlineData("""{"weight_map":{"a":"three.safetensors"}}""", "three.safetensors, which is not in the folder")]
    [InlineData("""{"weight_map":{"a":"../one.safetensors"}}""", "not a plain file name")]
    [InlineData("""{"weight_map":{"a":"/etc/passwd"}}""", "not a plain file name")]
    [InlineData("""{"weight_map":{"a":".."}}""", "not a plain file name")]
    [InlineData("""{"weight_map":{"a":""}}""", "not a plain file name")]
    [InlineData("""{"weight_map":{"b":"one.safetensors"}}""", "does not have it")]
    [InlineData("""{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}""", "twice")]
    [InlineData("""{"weight_map":{"a":1}}""", "weight_map")]
    [InlineData("""{"weights":{}}""", "weight_map")]
    [InlineData("[]", "weight_map")]
    [InlineData("{", "not valid JSON")]
    public void ABrokenIndexIsRefusedWithASentence(string index, string expected)
    {
        WriteShards(index);

        Assert.Contains(expected, Assert.Throws<InvalidDataException>(() => new ShardedCheckpoint(_folder.Path)).Message);
    }

    [Fact]
    public void AFolderWithoutWeightsIsRefused() =>
        Assert.Contains("neither", Assert.Throws<FileNotFoundException>(() => new ShardedCheckpoint(_folder.Path)).Message);

    private void WriteShards(string index)
    {
        using var scope = NewDisposeScope();
        SafetensorsWriter.Write(_folder.At("one.safetensors"), new Dictionary<string, Tensor> { ["a"] = ones(1) });
        SafetensorsWriter.Write(_folder.At("two.safetensors"), new Dictionary<string, Tensor> { ["b"] = ones(1) * 2 });
        File.WriteAllText(_folder.At(ShardedCheckpoint.IndexFile), index);
    }
}
