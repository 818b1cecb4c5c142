using static TorchSharp.torch;

namespace Heed.Models.Generation;

/// <summary>A prompt that is given as embeddings: text, and whatever else stands among its tokens. Disposing it disposes the embeddings.</summary>
public sealed class EmbeddedPrompt : IDisposable
{
    /// <summary>Initializes a prompt.</summary>
    /// <param name="embeddings"><c>[1, N, C]</c> with at least one token; the prompt's own from now on.</param>
    /// <param name="layout">What the tokens stand for, as long as the prompt; null: text.</param>
    /// <exception cref="ArgumentException">The embeddings are not those of one sequence, or the layout has another length.</exception>
    public EmbeddedPrompt(Tensor embeddings, TokenLayout? layout = null)
    {
        ArgumentNullException.ThrowIfNull(embeddings);
        if (embeddings.dim() != 3 || embeddings.shape[0] != 1 || embeddings.shape[1] < 1)
        {
            throw new ArgumentException($"A prompt is one sequence of embeddings [1, tokens, width] with at least one token, not [{string.Join(", ", embeddings.shape)}].", nameof(embeddings));
        }

        if (layout is not null && layout.Length != embeddings.shape[1])
        {
            throw new ArgumentException($"The layout describes {layout.Length} tokens, and the prompt has {embeddings.shape[1]}.", nameof(layout));
        }

        (Embeddings, Layout) = (embeddings.DetachFromDisposeScope(), layout);
    }

    /// <summary>The embeddings, <c>[1, N, C]</c>.</summary>
    public Tensor Embeddings { get; }

    /// <summary>What the tokens stand for; null: text.</summary>
    public TokenLayout? Layout { get; }

    /// <summary>Number N of tokens.</summary>
    public int Length => (int)Embeddings.shape[1];

    /// <inheritdoc/>
    public void Dispose() => Embeddings.Dispose();
}
