using System.Runtime.CompilerServices;
using CsCheck;
using Heed.Interop;

namespace Heed.Tests;

/// <summary>Set-up of the test program.</summary>
internal static class LibTorch
{
#pragma warning disable CA2255 // A test assembly is a program: nobody else initializes it.
    [ModuleInitializer]
#pragma warning restore CA2255
    internal static void Load()
    {
        // Tests may create a tensor before anything in Heed is used.
        NativeLibraries.Load();
        Check.Threads = 1;
    }
}
