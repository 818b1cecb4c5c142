using Heed.Lab.Verification;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Verification;

public sealed class GoldenVerifierTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-golden-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void AWrongOutputOrGradientFailsAndNamesTheTensor()
    {
        foreach (var name in new[] { "out.output", "out.gate_score", "out.attn_weights", "grad.in.x", "grad.param.k_norm.weight" })
        {
            var result = Changed(tensors => tensors[name] = tensors[name] * 1.5);

            Assert.False(result.Passed);
            Assert.Contains(name, result.Message);
            Assert.True(result.MaxError > result.Tolerance);
        }
    }

    [Fact]
    public void AnErrorJustWithinToleranceIsAllowedAndJustBeyondIsNot()
    {
        Assert.True(Changed(tensors => tensors["out.output"] = tensors["out.output"] + 0.9e-5).Passed);
        Assert.False(Changed(tensors => tensors["out.output"] = (tensors["out.output"] * 1.0002) + 2e-5).Passed);
    }

    [Fact]
    public void NotANumberIsNoAnswer()
    {
        var result = Changed(tensors => tensors["in.x"] = tensors["in.x"] * double.NaN);

        Assert.False(result.Passed);
        Assert.Equal(double.PositiveInfinity, result.MaxError);
    }

    [Fact]
    public void WhatIsExpectedAndNotComputedFails()
    {
        Assert.Contains("'out.surprise' was not computed", Changed(tensors => tensors["out.surprise"] = ones(1)).Message);
        Assert.Contains("'grad.in.position_ids' was not computed", Changed(tensors => tensors["grad.in.position_ids"] = ones(1)).Message);
        Assert.Contains("lacks the tensor 'in.x'", Changed(tensors => tensors.Remove("in.x")).Message);
        Assert.Contains("lacks the parameter 'q_norm.weight'", Changed(tensors => tensors.Remove("param.q_norm.weight")).Message);
        Assert.Contains("no parameter 'extra'", Changed(tensors => tensors["param.extra"] = ones(1)).Message);
        Assert.Contains("shape", Changed(tensors => tensors["out.output"] = tensors["out.output"].flatten()).Message);
    }

    [Fact]
    public void ATiedWeightMayBeListedUnderBothNames()
    {
        // Outputs of another model, so values differ; what matters is that everything is loaded and computed.
        string Tied(string config) => config.Replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true", StringComparison.Ordinal);
        var twice = Changed(_ => { }, "qwen3_model_headwise", Tied);
        var once = Changed(
            tensors =>
            {
                tensors.Remove("param.lm_head.weight");
                tensors.Remove("grad.param.lm_head.weight");
            },
            "qwen3_model_headwise", Tied);

        Assert.NotNull(twice.MaxError);
        Assert.NotNull(once.MaxError);
    }

    [Fact]
    public void WhatCannotBeRunFailsAndWhatIsNoCaseIsPassedOver()
    {
        using var scope = NewDisposeScope();
        Directory.CreateDirectory(Path.Combine(_folder, "inner", "deeper"));
        var tensors = new Dictionary<string, Tensor> { ["out.x"] = ones(1) };
        void Write(string name, params (string Key, string Text)[] metadata) =>
            SafetensorsWriter.Write(Path.Combine(_folder, name), tensors, metadata.ToDictionary(entry => entry.Key, entry => entry.Text));
        Write("inner/unknown.safetensors", ("op", "no/Such"), ("config", "{}"), ("atol", "1e-5"), ("rtol", "0"));
        Write("weights.safetensors");
        Write("inner/deeper/too_deep.safetensors", ("op", "no/Such"), ("atol", "1e-5"), ("rtol", "0"));
        Write("bad_config.safetensors", ("op", "checkpoint/Logits"), ("config", "{"), ("atol", "1e-5"), ("rtol", "0"));
        Write("bad_tolerance.safetensors", ("op", "checkpoint/Logits"), ("config", "{}"), ("atol", "lots"), ("rtol", "0"));
        Write("no_folder.safetensors", ("op", "checkpoint/Logits"), ("config", "{\"folder\":\"../x\"}"), ("atol", "1e-5"), ("rtol", "0"));
        File.WriteAllText(Path.Combine(_folder, "broken.safetensors"), "nothing");

        var results = GoldenVerifier.Verify(_folder).ToList();

        Assert.Equal(["bad_config", "bad_tolerance", "broken", "no_folder", "inner/unknown"], results.Select(result => result.Case));
        Assert.All(results, result => Assert.False(result.Passed));
        Assert.Equal(
            ["not valid JSON", "no atol", "not a valid safetensors file", "not a plain name", "'no/Such' is not known"],
            results.Zip(["not valid JSON", "no atol", "not a valid safetensors file", "not a plain name", "'no/Such' is not known"], (result, part) => result.Message.Contains(part, StringComparison.Ordinal) ? part : result.Message));
        Assert.Throws<DirectoryNotFoundException>(() => GoldenVerifier.Verify(Path.Combine(_folder, "none")));
    }

    /// <summary>The result of a shipped case with some tensors changed.</summary>
    private GoldenResult Changed(Action<Dictionary<string, Tensor>> change, string source = "qwen3_headwise", Func<string, string>? configure = null)
    {
        using var scope = NewDisposeScope();
        using var reader = new SafetensorsReader(Path.Combine(GoldenCasesTests.GoldenFolder, "gated-attention", source + ".safetensors"));
        var tensors = reader.Entries.Keys.ToDictionary(name => name, reader.Read);
        change(tensors);
        var path = Path.Combine(_folder, "changed.safetensors");
        var metadata = new Dictionary<string, string>(reader.Metadata);
        metadata["config"] = configure?.Invoke(metadata["config"]) ?? metadata["config"];
        SafetensorsWriter.Write(path, tensors, metadata);
        return GoldenVerifier.Run(path, "changed")!;
    }
}
