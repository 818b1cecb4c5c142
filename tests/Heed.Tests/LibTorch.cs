using System.Runtime.CompilerServices;
using Heed.Interop;

namespace Heed.Tests;

/// <summary>Tests may create a tensor before anything in Heed is used.</summary>
internal static class LibTorch
{
#pragma warning disable CA2255 // A test assembly is a program: nobody else initializes it.
    [ModuleInitializer]
#pragma warning restore CA2255
    internal static void Load() => NativeLibraries.Load();
}
