using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

public sealed unsafe class BackwardTests
{
    [Fact]
    public void Gradients_of_any_problem_agree_with_the_reference() => ProblemSpec.Any(40, 70, 20).Sample(AssertAgrees, iter: 600, threads: 1);

    private static void AssertAgrees(ProblemSpec spec)
    {
        using var problem = new AttentionProblem(spec);
        problem.WantGradients();
        problem.Forward();
        problem.Backward();
        problem.AssertGradients(problem.ReferenceGradients(problem.Reference()));
        problem.AssertNothingElseWritten();
    }
}
