using System.Diagnostics;
using Xunit;

namespace Heed.Kernels.Tests;

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
        Assert.Contains("Total: 4", report, StringComparison.Ordinal);
        Assert.Contains("Skipped: 0", report, StringComparison.Ordinal);
    }
}
