using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>A part of a model that adds something to the loss in training, for example the balance of a router. Models sum it over their parts.</summary>
public interface IExtraLoss
{
    /// <summary>What the part adds to the loss of its last forward pass, a scalar with a gradient; null: nothing.</summary>
    Tensor? ExtraLoss();
}
