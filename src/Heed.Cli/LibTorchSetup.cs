using System.ComponentModel;
using System.Diagnostics;
using System.Runtime.InteropServices;
using Heed.Interop;

namespace Heed.Cli;

/// <summary>
/// Sees to it that libtorch is there. Built from the repository it is restored with the project; installed as a .NET tool the package does not carry it (half a
/// gigabyte a platform), so the first run asks the SDK to restore it into the package cache, where the loader finds it from then on.
/// </summary>
internal static class LibTorchSetup
{
    /// <summary>Loads libtorch, restoring it first where it is missing.</summary>
    /// <exception cref="DllNotFoundException">It is missing and could not be restored; the message says what to do.</exception>
    public static void Ensure()
    {
        try
        {
            NativeLibraries.Load();
        }
        catch (DllNotFoundException missing) when (RuntimeInformation.ProcessArchitecture == Architecture.X64 && OperatingSystem.IsLinux())
        {
            Restore(missing);
            NativeLibraries.Load();
        }
    }

    private static void Restore(DllNotFoundException missing)
    {
        var package = $"libtorch-cpu-linux-x64 {NativeLibraries.LibTorchVersion}";
        Console.Error.WriteLine($"First run: restoring {package} into the NuGet package cache (about 130 MB to fetch, 0.5 GB on disk) ...");
        var folder = Directory.CreateTempSubdirectory("heed-restore-");
        try
        {
            var project = Path.Combine(folder.FullName, "restore.csproj");
            File.WriteAllText(project, $"""
                <Project Sdk="Microsoft.NET.Sdk">
                  <PropertyGroup><TargetFramework>net10.0</TargetFramework></PropertyGroup>
                  <ItemGroup><PackageDownload Include="libtorch-cpu-linux-x64" Version="[{NativeLibraries.LibTorchVersion}]" /></ItemGroup>
                </Project>
                """);
            var start = new ProcessStartInfo("dotnet", ["restore", project, "--verbosity", "quiet"]) { RedirectStandardOutput = true, UseShellExecute = false };
            using var restore = Process.Start(start)!;
            var output = restore.StandardOutput.ReadToEnd();
            restore.WaitForExit();
            if (restore.ExitCode != 0)
            {
                throw new DllNotFoundException($"{package} could not be restored ({output.Split('\n')[0].Trim()}): check the network and the NuGet sources, or name a folder that holds libtorch_cpu.so in HEED_LIBTORCH.");
            }
        }
        catch (Win32Exception)
        {
            // No `dotnet` on the path: nothing to restore with.
            throw missing;
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }
}
