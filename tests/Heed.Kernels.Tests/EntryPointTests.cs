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
            DecodingLoop.Compute(new CheckedProblem(problem.Arguments));
            problem.Reference().Output.AssertClose(problem.Arguments.Output, "output");
        },
        iter: 60,
        threads: 1);

    [Fact]
    public void Scans_agree_with_the_reference() => ScanSpec.Any(50).Sample(
        spec =>
        {
            using var problem = new ScanProblem(spec);
            problem.Compute(2);
            problem.AssertMatches();
        },
        iter: 40,
        threads: 1);
}
