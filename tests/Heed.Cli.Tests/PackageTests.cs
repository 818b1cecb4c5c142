using System.Diagnostics;
using System.IO.Compression;
using System.Text.Json;
using Xunit;

namespace Heed.Cli.Tests;

/// <summary>What `dotnet pack` makes, used as a stranger would use it: from a folder of packages, on a machine that knows nothing of this repository.</summary>
public sealed class PackageTests(PackageTests.Packed packed) : IClassFixture<PackageTests.Packed>
{
    [Theory]
    [InlineData("Heed.Kernels")]
    [InlineData("Heed")]
    [InlineData("Heed.Models")]
    [InlineData("Heed.Onnx")]
    public void LibrariesCarryReadmeLicenceAndDocs(string name)
    {
        using var package = packed.Open(name);
        var entries = package.Entries.Select(entry => entry.FullName).ToList();
        Assert.Contains("README.md", entries);
        Assert.Contains("LICENSE", entries);
        Assert.Contains($"lib/net10.0/{name}.dll", entries);
        Assert.Contains($"lib/net10.0/{name}.xml", entries);
        Assert.True(package.GetEntry($"lib/net10.0/{name}.xml")!.Length > 1000);
    }

    [Fact]
    public void NothingCarriesLibTorchOrAPathOfTheBuildingMachine()
    {
        foreach (var name in new[] { "Heed.Kernels", "Heed", "Heed.Models", "Heed.Onnx", "Heed.Cli" })
        {
            using var package = packed.Open(name);
            Assert.DoesNotContain(package.Entries, entry => entry.Name is "libtorch.path" || entry.Name.Contains("torch_cpu", StringComparison.Ordinal));

            // ONNX Runtime for three systems is 31 MB of the tool.
            Assert.True(package.Entries.Sum(entry => entry.CompressedLength) < 75_000_000, $"{name} is larger than 75 MB");
        }
    }

    [Fact]
    public void TheToolInstallsAndRuns()
    {
        var tools = Path.Combine(packed.Folder, "tools");
        Processes.Run("dotnet", packed.Folder, "tool", "install", "Heed.Cli", "--tool-path", tools, "--add-source", packed.Feed, "--no-cache");
        var json = Processes.Run(Path.Combine(tools, "heed"), packed.Folder, "papers", "--json");
        Assert.Equal(42, JsonDocument.Parse(json).RootElement.GetArrayLength());
    }

    [Fact]
    public void AProgramThatAddsTheKernelsRuns()
    {
        var folder = Path.Combine(packed.Folder, "program");
        Directory.CreateDirectory(folder);
        File.WriteAllText(Path.Combine(folder, "program.csproj"), """
            <Project Sdk="Microsoft.NET.Sdk">
              <PropertyGroup><OutputType>Exe</OutputType><TargetFramework>net10.0</TargetFramework></PropertyGroup>
              <ItemGroup><PackageReference Include="Heed.Kernels" Version="*" /></ItemGroup>
            </Project>
            """);
        File.WriteAllText(Path.Combine(folder, "Program.cs"), """
            using Heed.Kernels;
            float[] query = [1, 0], key = [1, 0, 0, 1], value = [5, 7], output = new float[1];
            unsafe_();
            unsafe void unsafe_()
            {
                fixed (float* q = query, k = key, v = value, o = output)
                {
                    FusedAttention.Forward(new AttentionArguments(new(q, 1, 1, 1, 2), new(k, 1, 1, 2, 2), new(v, 1, 1, 2, 1), new(o, 1, 1, 1, 1)) { Scale = 0 });
                }
            }
            System.Console.Write(output[0]);
            """);
        File.WriteAllText(Path.Combine(folder, "Directory.Build.props"), "<Project><PropertyGroup><AllowUnsafeBlocks>true</AllowUnsafeBlocks></PropertyGroup></Project>");
        // A cache of its own, so that a package of an earlier run with the same version is not taken for this one.
        Assert.Equal("6", Processes.Run(
            "dotnet", folder, new Dictionary<string, string> { ["NUGET_PACKAGES"] = Path.Combine(packed.Folder, "cache") }, "run", "-c", "Release", $"-p:RestoreAdditionalProjectSources={packed.Feed}"));
    }

    public sealed class Packed : IDisposable
    {
        public Packed()
        {
            Folder = Directory.CreateTempSubdirectory("heed-packages-").FullName;
            Feed = Path.Combine(Folder, "feed");
            Processes.Run("dotnet", Repository.Root, "pack", "src/Heed.Cli", "-c", "Release", "-o", Feed, $"-p:ArtifactsPath={Path.Combine(Folder, "artifacts")}");
            foreach (var name in new[] { "Heed.Kernels", "Heed", "Heed.Models", "Heed.Onnx" })
            {
                Processes.Run("dotnet", Repository.Root, "pack", $"src/{name}", "-c", "Release", "-o", Feed, $"-p:ArtifactsPath={Path.Combine(Folder, "artifacts")}");
            }
        }

        public string Folder { get; }

        public string Feed { get; }

        public ZipArchive Open(string name) => ZipFile.OpenRead(Directory.EnumerateFiles(Feed, $"{name}.*.nupkg").Single(file => char.IsAsciiDigit(Path.GetFileName(file)[name.Length + 1])));

        public void Dispose() => Directory.Delete(Folder, recursive: true);
    }
}

/// <summary>Where the repository is, seen from the running test.</summary>
internal static class Repository
{
    public static string Root { get; } = Find();

    private static string Find()
    {
        for (var folder = new DirectoryInfo(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            if (File.Exists(Path.Combine(folder.FullName, "Heed.slnx")))
            {
                return folder.FullName;
            }
        }

        throw new InvalidOperationException("The tests run from inside the repository: Heed.slnx was not found above the test program.");
    }
}

internal static class Processes
{
    public static string Run(string program, string folder, params string[] arguments) => Run(program, folder, new Dictionary<string, string>(), arguments);

    public static string Run(string program, string folder, Dictionary<string, string> environment, params string[] arguments)
    {
        var start = new ProcessStartInfo(program, arguments) { WorkingDirectory = folder, RedirectStandardOutput = true, RedirectStandardError = true, UseShellExecute = false };
        foreach (var (name, value) in environment)
        {
            start.Environment[name] = value;
        }

        using var process = Process.Start(start)!;
        var error = process.StandardError.ReadToEndAsync();
        var output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, $"{program} {string.Join(' ', arguments)} ended with {process.ExitCode}: {output}\n{error.Result}");
        return output;
    }
}
