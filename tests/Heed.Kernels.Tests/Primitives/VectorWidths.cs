using System.Runtime.Intrinsics;

namespace Heed.Kernels.Tests;

/// <summary>Something to run at every vector width that this process supports.</summary>
internal interface IWidthAction
{
    void Run<TVector, TOps>()
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>;
}

internal static class VectorWidths
{
    public static void ForEach(IWidthAction action)
    {
        action.Run<Vector128<float>, Vector128Operations>();
        action.Run<Vector256<float>, Vector256Operations>();
        action.Run<Vector512<float>, Vector512Operations>();
    }
}
