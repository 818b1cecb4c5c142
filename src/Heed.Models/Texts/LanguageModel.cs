using static TorchSharp.torch;

namespace Heed.Models.Texts;

/// <summary>A small causal language model: from tokens to the logits of what follows each. Attention in it goes through the door and so takes probes and edits (<see cref="Hooks"/>).</summary>
public abstract class LanguageModel : nn.Module<Tensor, Tensor>
{
    /// <summary>Makes the base of a model.</summary>
    /// <param name="name">The model's name.</param>
    /// <param name="vocabulary">Number of different tokens, at least 1.</param>
    /// <param name="length">Most tokens that it reads at once, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is below 1.</exception>
    protected LanguageModel(string name, int vocabulary, int length)
        : base(name)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(vocabulary, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(length, 1);
        (Vocabulary, Length) = (vocabulary, length);
    }

    /// <summary>Number of different tokens.</summary>
    public int Vocabulary { get; }

    /// <summary>Most tokens that the model reads at once.</summary>
    public int Length { get; }

    /// <summary>The hooks of every attention call in the model.</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>What training adds to the loss of the last forward pass, a scalar with a gradient (the balance of a router, for example); null: nothing.</summary>
    public virtual Tensor? ExtraLoss() => null;

    /// <summary>Throws where tokens are not what the model reads.</summary>
    /// <exception cref="ArgumentException">They are not int64 <c>[B, N]</c> with N from 1 to <see cref="Length"/>.</exception>
    protected void CheckTokens(Tensor tokens)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 2 || tokens.dtype != ScalarType.Int64 || tokens.shape[1] < 1 || tokens.shape[1] > Length)
        {
            throw new ArgumentException($"Tokens must be int64 [batch, 1 to {Length}], not {tokens.dtype} [{string.Join(", ", tokens.shape)}].", nameof(tokens));
        }
    }
}
