using Heed.Layers;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The token mixer of MLP-Mixer (arXiv 2105.01601, section 2): a two-layer perceptron along the tokens, the same for every channel. What a token receives from another depends on their places
/// alone, never on their content; the number of tokens is fixed.</summary>
public sealed class TokenPerceptron : nn.Module<Tensor, Tensor>
{
    private readonly GeluFeedForward mlp;
    private readonly long _tokens;

    /// <summary>Makes the module.</summary>
    /// <param name="tokens">Number N of tokens, at least 1.</param>
    /// <param name="hidden">Hidden width of the perceptron, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is below 1.</exception>
    public TokenPerceptron(long tokens, long hidden)
        : base(nameof(TokenPerceptron))
    {
        mlp = new(tokens, hidden);
        _tokens = tokens;
        RegisterComponents();
    }

    /// <summary>The mixed tokens.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">There is another number of tokens.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[1] != _tokens)
        {
            throw new ArgumentException($"The input must be [batch, {_tokens}, width], not [{string.Join(", ", input.shape)}]: a mixer of tokens works for the number of tokens it was made for.", nameof(input));
        }

        using var scope = NewDisposeScope();
        return mlp.forward(input.transpose(1, 2)).transpose(1, 2).MoveToOuterDisposeScope();
    }
}
