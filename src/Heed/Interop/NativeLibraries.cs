using System.Diagnostics;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Loader;
using System.Security.Cryptography;

namespace Heed.Interop;

/// <summary>
/// Finds and loads libtorch and TorchSharp's native library, so that a program that uses Heed starts on systems where
/// TorchSharp alone does not, without a copy of libtorch beside every program.
/// </summary>
/// <remarks>
/// <para>Runs by itself when anything in Heed is first used. A program that calls TorchSharp before Heed calls <see cref="Load"/>
/// first.</para>
/// <para>libtorch is looked for, in this order, in: the folder that the environment variable <c>HEED_LIBTORCH</c> names; the folder that
/// the file <c>libtorch.path</c> beside the program names; the folders in which the runtime itself looks for the program's native
/// libraries; the program's own folder and its <c>runtimes/PLATFORM/native</c>; the NuGet package cache.</para>
/// <para>The only TorchSharp that is published asks for <c>GLIBCXX_3.4.32</c>, which Debian 12 and Ubuntu 22.04 lack, but uses nothing of
/// it. There, and only there, a private copy in which that requirement is marked weak is loaded in its place (see
/// <see cref="ElfVersionNeeds"/>). The package cache is never written to.</para>
/// </remarks>
public static class NativeLibraries
{
    private const string VersionRequirement = "GLIBCXX_3.4.32";
    private static readonly Lock Gate = new();
    // Not through `torch`, whose static constructor loads libtorch its own way.
    private static readonly Assembly TorchSharpAssembly = typeof(TorchSharp.DeviceType).Assembly;
    private static bool _loaded;

    /// <summary>The folder that libtorch was loaded from; null where the program's own loader found it.</summary>
    public static string? LibTorchDirectory { get; private set; }

    /// <summary>The file that TorchSharp's native library was loaded from; null where the program's own loader found it.</summary>
    public static string? LibTorchSharpPath { get; private set; }

    /// <summary>libtorch's version that this Heed was built against.</summary>
    /// <remarks>Comes from the build: asking TorchSharp would make it load libtorch its own way first.</remarks>
    public static string LibTorchVersion { get; } = typeof(NativeLibraries).Assembly
        .GetCustomAttributes<AssemblyMetadataAttribute>().Single(entry => entry.Key == "LibTorchVersion").Value!;

    /// <summary>Loads libtorch now. Safe to call again, from any thread.</summary>
    /// <exception cref="DllNotFoundException">libtorch is nowhere; the message says where it was looked for and how to get it.</exception>
    public static void Load()
    {
        lock (Gate)
        {
            if (_loaded)
            {
                return;
            }

            if (OperatingSystem.IsLinux())
            {
                LoadOnLinux();
            }

            _loaded = true;
        }
    }

#pragma warning disable CA2255 // A library initializer is meant: users must not need to know about the native libraries at all.
    [ModuleInitializer]
    internal static void LoadQuietly()
#pragma warning restore CA2255
    {
        try
        {
            Load();
        }
        catch (Exception error) when (error is DllNotFoundException or BadImageFormatException or IOException or UnauthorizedAccessException)
        {
            // A module initializer that throws hides its reason behind a TypeInitializationException: the explicit call reports it instead.
            Trace.WriteLine(error.Message);
        }
    }

    private static void LoadOnLinux()
    {
        var folders = CandidateFolders().ToList();
        var libtorch = folders.FirstOrDefault(folder => File.Exists(Path.Combine(folder, "libtorch_cpu.so")));
        var library = folders.Select(folder => Path.Combine(folder, "libLibTorchSharp.so")).FirstOrDefault(File.Exists);
        if (libtorch is null || library is null)
        {
            var missing = libtorch is null ? "libtorch" : "TorchSharp's native library";
            throw new DllNotFoundException(
                $"{missing} was not found in {string.Join(", ", folders)}. Add the package TorchSharp-cpu to the program, "
                + "or name the folder that holds libtorch_cpu.so in the environment variable HEED_LIBTORCH.");
        }

        if (File.Exists(Path.Combine(libtorch, "libtorch_cuda.so")))
        {
            // A CUDA build has its own order of loading, which TorchSharp knows.
            libtorch = null;
        }
        else
        {
            foreach (var file in Directory.EnumerateFiles(libtorch, "libgomp*").Concat(
                new[] { "libc10.so", "libtorch_cpu.so", "libtorch.so" }.Select(name => Path.Combine(libtorch, name))))
            {
                NativeLibrary.Load(file);
            }
        }

        LibTorchDirectory = libtorch;
        LibTorchSharpPath = library = PrivateCopyWhereNeeded(library, StandardLibrary(), CacheFolder());
        var handle = new Lazy<nint>(() => NativeLibrary.Load(library));
        var context = AssemblyLoadContext.GetLoadContext(TorchSharpAssembly) ?? AssemblyLoadContext.Default;
        context.ResolvingUnmanagedDll += (_, name) => name switch
        {
            "LibTorchSharp" => handle.Value,
            "torch_cpu" when libtorch is not null => NativeLibrary.Load(Path.Combine(libtorch, "libtorch_cpu.so")),
            _ => 0,
        };
    }

    private static IEnumerable<string> CandidateFolders()
    {
        var platform = $"linux-{RuntimeInformation.ProcessArchitecture.ToString().ToLowerInvariant()}";
        if (Environment.GetEnvironmentVariable("HEED_LIBTORCH") is { Length: > 0 } named)
        {
            yield return named;
        }

        var pointer = Path.Combine(AppContext.BaseDirectory, "libtorch.path");
        if (File.Exists(pointer))
        {
            yield return File.ReadAllText(pointer).Trim();
        }

        foreach (var folder in (AppContext.GetData("NATIVE_DLL_SEARCH_DIRECTORIES") as string ?? "").Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries))
        {
            yield return folder;
        }

        yield return AppContext.BaseDirectory;
        yield return Path.Combine(AppContext.BaseDirectory, "runtimes", platform, "native");
        var packages = Environment.GetEnvironmentVariable("NUGET_PACKAGES") is { Length: > 0 } moved
            ? moved
            : Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".nuget", "packages");
        var torchSharp = TorchSharpAssembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+')[0];
        yield return Path.Combine(packages, $"libtorch-cpu-{platform}", LibTorchVersion, "runtimes", platform, "native");
        yield return Path.Combine(packages, "torchsharp", torchSharp ?? "", "runtimes", platform, "native");
    }

    /// <summary>The library to load: the given one, or a copy without the version requirement where the system cannot meet it.</summary>
    /// <param name="library">TorchSharp's native library; only read.</param>
    /// <param name="standardLibrary">The system's C++ library; null where it is unknown, which is a reason to change nothing.</param>
    /// <param name="cache">The folder that keeps the copy.</param>
    /// <exception cref="DllNotFoundException">The copy is needed and cannot be written.</exception>
    internal static string PrivateCopyWhereNeeded(string library, byte[]? standardLibrary, string cache)
    {
        if (standardLibrary is null || standardLibrary.AsSpan().IndexOf("GLIBCXX_3.4.32\0"u8) >= 0)
        {
            return library;
        }

        var bytes = File.ReadAllBytes(library);
        if (!ElfVersionNeeds.TryMakeWeak(bytes, VersionRequirement))
        {
            return library;
        }

        var folder = Path.Combine(cache, "native", Convert.ToHexStringLower(SHA256.HashData(bytes))[..16]);
        var copy = Path.Combine(folder, Path.GetFileName(library));
        var partial = $"{copy}.{Path.GetRandomFileName()}";
        try
        {
            // Code is about to be loaded from there: what was left by an interrupted or another program's write does not count.
            if (File.Exists(copy) && File.ReadAllBytes(copy).AsSpan().SequenceEqual(bytes))
            {
                return copy;
            }

            Directory.CreateDirectory(folder);
            File.WriteAllBytes(partial, bytes);
            File.Move(partial, copy, overwrite: true);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            if (File.Exists(partial))
            {
                File.Delete(partial);
            }

            throw new DllNotFoundException(
                $"This system's libstdc++ lacks {VersionRequirement}, and a copy of TorchSharp's native library that does without could not be written to {folder} ({error.Message}); "
                + "name a folder that can be written to in the environment variable HEED_CACHE.", error);
        }

        Trace.WriteLine($"Heed: this system's libstdc++ lacks {VersionRequirement}; a copy of TorchSharp's native library that does not ask for it is at {copy}.");
        return copy;
    }

    private static string CacheFolder()
    {
        if (Environment.GetEnvironmentVariable("HEED_CACHE") is { Length: > 0 } named)
        {
            return named;
        }

        var local = Environment.GetFolderPath(Environment.SpecialFolder.LocalApplicationData, Environment.SpecialFolderOption.DoNotVerify);
        return Path.Combine(local.Length > 0 ? local : Path.GetTempPath(), "heed");
    }

    private static byte[]? StandardLibrary()
    {
        // The loaded libstdc++ is the one that counts, wherever the system keeps it: ask the loader, then read the file it mapped.
        if (!NativeLibrary.TryLoad("libstdc++.so.6", out _))
        {
            return null;
        }

        var line = File.ReadLines("/proc/self/maps").FirstOrDefault(entry => entry.Contains("/libstdc++.so.6", StringComparison.Ordinal));
        var path = line?[line.IndexOf('/', StringComparison.Ordinal)..];
        return path is not null && File.Exists(path) ? File.ReadAllBytes(path) : null;
    }
}
