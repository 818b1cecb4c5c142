using System.Text.Json;

namespace Heed.Onnx.Tests;

/// <summary>An exported graph of the folder Data with what its network recorded.</summary>
internal sealed record Exported(string Path, Dictionary<string, OnnxTensor> Inputs, List<OnnxTensor> Maps, OnnxTensor Output)
{
    public static readonly string[] Names =
    [
        "causal-13", "scaled-queries-11", "scaled-both-17", "bias-12", "cross-17", "einsum-bijh-13", "einsum-ijbh-12", "einsum-keys-first-17", "merged-heads-14", "grouped-17", "sum-of-exponentials-13", "sink-17", "windows-17",
        "experts-17",
    ];

    public static Exported Read(string name)
    {
        var path = System.IO.Path.Combine(AppContext.BaseDirectory, "Data", name);
        using var document = JsonDocument.Parse(File.ReadAllBytes($"{path}.json"));
        var root = document.RootElement;
        return new(
            $"{path}.onnx",
            root.GetProperty("inputs").EnumerateObject().ToDictionary(input => input.Name, input => Tensor(input.Value)),
            [.. root.GetProperty("maps").EnumerateArray().Select(Tensor)],
            Tensor(root.GetProperty("output")));
    }

    public static void AreClose(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual, float tolerance = 2e-5f)
    {
        Xunit.Assert.Equal(expected.Length, actual.Length);
        for (var i = 0; i < expected.Length; i++)
        {
            Xunit.Assert.True(Math.Abs(expected[i] - actual[i]) <= tolerance, $"value {i} is {actual[i]}, and {expected[i]} was expected");
        }
    }

    private static OnnxTensor Tensor(JsonElement element) => OnnxTensor.Of(
        element.GetProperty("values").EnumerateArray().Select(value => value.GetSingle()).ToArray(), element.GetProperty("shape").EnumerateArray().Select(size => size.GetInt64()).ToArray());
}
