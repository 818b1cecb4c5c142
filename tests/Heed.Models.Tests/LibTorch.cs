using System.Runtime.CompilerServices;
using Heed.Interop;

namespace Heed.Models.Tests;

/// <summary>Tests may touch TorchSharp before anything of Heed, so that libtorch is found here first.</summary>
internal static class LibTorch
{
    [ModuleInitializer]
    internal static void Load() => NativeLibraries.Load();
}
