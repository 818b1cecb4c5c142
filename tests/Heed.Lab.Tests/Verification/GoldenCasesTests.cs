using Heed.Lab.Verification;
using Xunit;

namespace Heed.Lab.Tests.Verification;

public class GoldenCasesTests
{
    public static string GoldenFolder { get; } = Path.Combine(AppContext.BaseDirectory, "golden");

    [Fact]
    public void EveryShippedCasePasses()
    {
        var results = GoldenVerifier.Verify(GoldenFolder).ToList();

        Assert.NotEmpty(results);
        var failures = results.Where(result => !result.Passed).Select(result => $"{result.Case}: {result.MaxError} > {result.Tolerance} {result.Message}");
        Assert.Empty(failures);
        Assert.Superset(GoldenVerifier.Operations.Keys.ToHashSet(), results.Select(result => result.Operation).ToHashSet());
        Assert.Subset(GoldenVerifier.Operations.Keys.ToHashSet(), results.Select(result => result.Operation).ToHashSet());
    }
}
