using System.Diagnostics;
using System.Runtime.InteropServices;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Publishes Heed.Kernels.AotTester with NativeAOT and runs what comes out.</summary>
public class AheadOfTimeTests
{
    [Fact]
    public async Task The_kernels_work_when_compiled_ahead_of_time()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux() && RuntimeInformation.ProcessArchitecture == Architecture.X64, "The tester is published for linux-x64.");
        Assert.SkipUnless(Finds("clang") && File.Exists("/usr/include/zlib.h"), "NativeAOT needs clang and zlib: apt-get install clang zlib1g-dev");
        var root = new DirectoryInfo(AppContext.BaseDirectory);
        while (root is not null && !File.Exists(Path.Combine(root.FullName, "Heed.slnx")))
        {
            root = root.Parent;
        }

        Assert.SkipWhen(root is null, "The sources of the tester are not above the test program.");
        var folder = Directory.CreateTempSubdirectory("heed-aot-");
        try
        {
            var project = Path.Combine(root.FullName, "tests", "Heed.Kernels.AotTester", "Heed.Kernels.AotTester.csproj");
            var (published, log) = await Run(
                "dotnet", "publish", project, "-c", "Release", "-r", "linux-x64", "-o", Path.Combine(folder.FullName, "out"),
                "-p:PublishAheadOfTime=true", $"-p:ArtifactsPath={Path.Combine(folder.FullName, "artifacts")}", "-p:RunAnalyzers=false", "-nodeReuse:false");
            Assert.SkipWhen(
                published != 0 && log.Contains("NU1101", StringComparison.Ordinal) | log.Contains("NU1301", StringComparison.Ordinal),
                "The compiler package of NativeAOT (runtime.linux-x64.Microsoft.DotNet.ILCompiler) cannot be restored here: " + log);
            Assert.True(published == 0, log);
            Assert.DoesNotContain("warning IL", log, StringComparison.Ordinal);
            var (exit, report) = await Run(Path.Combine(folder.FullName, "out", "Heed.Kernels.AotTester"));
            Assert.True(exit == 0, report);
            Assert.Contains("runtime code generation: no", report, StringComparison.Ordinal);
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static bool Finds(string program) =>
        (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':', StringSplitOptions.RemoveEmptyEntries).Any(folder => File.Exists(Path.Combine(folder, program)));

    private static async Task<(int Exit, string Output)> Run(string program, params string[] arguments)
    {
        var start = new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true };
        using var process = Process.Start(start)!;
        try
        {
            var output = process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
            var errors = process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
            await process.WaitForExitAsync(TestContext.Current.CancellationToken);
            return (process.ExitCode, await output + await errors);
        }
        finally
        {
            if (!process.HasExited)
            {
                process.Kill(entireProcessTree: true);
            }
        }
    }
}
