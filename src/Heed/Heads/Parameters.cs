using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Makes parameters that outlive the dispose scope in which a module happens to be built.</summary>
internal static class Parameters
{
    public static Parameter Make(long[] shape, Action<Tensor>? fill)
    {
        var data = empty(shape, dtype: float32);
        fill?.Invoke(data);
        var parameter = new Parameter(data);
        parameter.DetachFromDisposeScope();
        return parameter;
    }
}
