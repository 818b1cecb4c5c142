using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

public sealed unsafe class MassPerKeyTests
{
    [Fact]
    public void Mass_of_any_problem_agrees_with_the_reference() => ProblemSpec.Any(40, 70, 20).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec);
            problem.Forward();
            problem.Reference().MassPerKey().AssertClose(problem.MassPerKey(), "mass");
        },
        iter: 400);
}
