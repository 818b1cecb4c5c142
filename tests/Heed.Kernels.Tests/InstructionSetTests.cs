using System.Diagnostics;
using System.Runtime.Intrinsics;
using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Every public entry point against the oracle, with the vectors that this process has. <see cref="InstructionSetTests"/> runs it again with fewer.</summary>
public class EntryPointTests
{
    internal const string ExpectedBits = "HEED_EXPECTED_VECTOR_BITS";

    /// <summary>Bits of the widest vectors that the hardware and the environment allow; 0: no vector hardware.</summary>
    internal static int VectorBits => Vector512.IsHardwareAccelerated ? 512 : Vector256.IsHardwareAccelerated ? 256 : Vector128.IsHardwareAccelerated ? 128 : 0;

    [Fact]
    public void Vectors_are_as_wide_as_the_environment_says()
    {
        var expected = Environment.GetEnvironmentVariable(ExpectedBits);
        Assert.SkipWhen(expected is null, $"{ExpectedBits} is not set: this is not a run under a restricted instruction set.");
        Assert.Equal(expected, $"{VectorBits}");
    }

    [Fact]
    public void Forward_backward_statistics_and_mass_agree_with_the_reference() => ProblemSpec.Any(24, 40, 20).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec);
            if (spec.Normalizer == Normalizer.Softmax)
            {
                problem.WantStatistics();
            }

            problem.WantGradients();
            problem.Forward();
            var expected = problem.Reference();
            expected.Output.AssertClose(problem.Arguments.Output, "output");
            if (spec.Normalizer == Normalizer.Softmax)
            {
                expected.LogSumExp.AssertClose(problem.LogSumExp, "log-sum-exp");
                problem.AssertStatistics(expected.Statistics());
            }

            expected.MassPerKey().AssertClose(problem.MassPerKey(), "mass per key");
            problem.Backward();
            problem.AssertGradients(problem.ReferenceGradients(expected));
            problem.AssertNothingElseWritten();
        },
        iter: 60,
        threads: 1);

    [Fact]
    public void Decoding_agrees_with_the_reference() => ProblemSpec.Any(16, 400, 70).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(
                spec with { Normalizer = Normalizer.Softmax, QueryBlock = 0, Rank = 0, Sequences = 0, Modified = false, Predicated = false });
            Assert.True(DecodingAttention.TryForward<UnmodifiedScore, AllPairs>(new CheckedProblem(problem.Arguments)));
            problem.Reference().Output.AssertClose(problem.Arguments.Output, "output");
        },
        iter: 60,
        threads: 1);
}

/// <summary>Runs <see cref="EntryPointTests"/> in processes of their own with narrower vectors than the hardware has.</summary>
public class InstructionSetTests
{
    // The runtime renamed its switches with .NET 10; each version ignores the other's name.
    [Theory]
    [InlineData(256, "EnableAVX512F", "EnableAVX512")]
    [InlineData(128, "EnableAVX2", "EnableAVX512F", "EnableAVX512")]
    [InlineData(0, "EnableHWIntrinsic")]
    public async Task Entry_points_agree_with_the_reference(int bits, params string[] switchedOff)
    {
        Assert.SkipWhen(EntryPointTests.VectorBits <= bits, $"The hardware has vectors of {EntryPointTests.VectorBits} bits: there is nothing to switch off.");
        var start = new ProcessStartInfo("dotnet") { RedirectStandardOutput = true, RedirectStandardError = true };
        start.ArgumentList.Add(typeof(InstructionSetTests).Assembly.Location);
        start.ArgumentList.Add("-class");
        start.ArgumentList.Add(typeof(EntryPointTests).FullName!);
        start.Environment[EntryPointTests.ExpectedBits] = $"{bits}";
        foreach (var name in switchedOff)
        {
            start.Environment[$"DOTNET_{name}"] = "0";
        }

        using var child = Process.Start(start)!;
        var output = child.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        var errors = child.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        try
        {
            await child.WaitForExitAsync(TestContext.Current.CancellationToken);
        }
        finally
        {
            if (!child.HasExited)
            {
                child.Kill(entireProcessTree: true);
            }
        }

        var report = await output + await errors;
        Assert.True(child.ExitCode == 0, report);
        Assert.Contains("Total: 3", report, StringComparison.Ordinal);
        Assert.Contains("Skipped: 0", report, StringComparison.Ordinal);
    }
}
