using Heed.Biases;
using TorchSharp;
using Xunit;

namespace Heed.Tests;

/// <summary>The README's program is the one that is compiled and run here.</summary>
public sealed class ReadmeTests
{
    [Fact]
    public void TheProgramRuns()
    {
        using var scope = torch.NewDisposeScope();
        var query = torch.randn(1, 8, 1024, 64).requires_grad_();
        var key = torch.randn(1, 2, 1024, 64);      // two key/value heads serve eight query heads
        var value = torch.randn(1, 2, 1024, 64);
        var sinks = torch.zeros(8).requires_grad_();

        var output = Attention.Compute(query, key, value, AttentionOptions.CausalSelf with
        {
            WindowBefore = 255,                     // a sliding window of 256 tokens: only its blocks are computed
            Sinks = sinks,                          // a learned logit per head joins the softmax
            Biases = [new AlibiBias(torch.pow(2, -torch.arange(1, 9, dtype: torch.float32)))],
        });
        output.sum().backward();                    // gradients to query, sinks, and everything else that asks

        Assert.Equal([1, 8, 1024, 64], output.shape);
        Assert.True(query.grad!.isfinite().all().item<bool>());
        Assert.True(sinks.grad!.abs().sum().item<float>() > 0);
    }

    [Fact]
    public void TheProgramIsTheReadmes()
    {
        var folder = new DirectoryInfo(AppContext.BaseDirectory);
        while (!File.Exists(Path.Combine(folder.FullName, "Heed.slnx")))
        {
            folder = folder.Parent ?? throw new InvalidOperationException("The repository was not found above its tests.");
        }

        var readme = File.ReadAllText(Path.Combine(folder.FullName, "README.md"));
        var start = readme.IndexOf("```csharp\n", StringComparison.Ordinal) + "```csharp\n".Length;
        var program = readme[start..readme.IndexOf("```", start, StringComparison.Ordinal)];
        var source = File.ReadAllText(Path.Combine(folder.FullName, "tests", "Heed.Tests", "ReadmeTests.cs")).Replace("\n        ", "\n", StringComparison.Ordinal);
        Assert.Contains(program[program.IndexOf("using var scope", StringComparison.Ordinal)..].Trim(), source, StringComparison.Ordinal);
    }
}
