using static TorchSharp.torch;

namespace Heed.Models.Generation;

/// <summary>Changes the logits of each step of a generation before a token is chosen, for example by those of another text.</summary>
public interface ILogitsCombiner
{
    /// <summary>The logits to choose from.</summary>
    /// <param name="logits">The model's, <c>[1, 1, V]</c>.</param>
    /// <param name="generated">What was generated before this step: empty where the prompt was just read, and a generation starts.</param>
    /// <returns>Logits of that shape.</returns>
    Tensor Combine(Tensor logits, IReadOnlyList<int> generated);
}
