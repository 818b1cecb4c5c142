using System.Runtime.CompilerServices;
using Heed.Interop;

namespace Heed.Lab;

/// <summary>Makes Heed load libtorch before this library uses TorchSharp, which would otherwise look for it its own way.</summary>
internal static class NativeLibraryLoading
{
#pragma warning disable CA2255 // A library initializer is meant: users must not need to know about the native libraries at all.
    [ModuleInitializer]
    internal static void Prepare() => RuntimeHelpers.RunModuleConstructor(typeof(NativeLibraries).Module.ModuleHandle);
#pragma warning restore CA2255
}
