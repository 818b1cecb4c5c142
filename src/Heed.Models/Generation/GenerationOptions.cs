using static TorchSharp.torch;

namespace Heed.Models.Generation;

/// <summary>How tokens are chosen and when generation stops.</summary>
public sealed record GenerationOptions
{
    /// <summary>The most tokens to generate.</summary>
    public int MaximumTokens { get; init; } = 128;

    /// <summary>Divides the logits before sampling; 0: always the likeliest token.</summary>
    public double Temperature { get; init; } = 1;

    /// <summary>Sample among this many likeliest tokens; 0: all.</summary>
    public int TopK { get; init; }

    /// <summary>Sample among the fewest likeliest tokens that together have at least this probability (arXiv 1904.09751), above 0 up to 1.</summary>
    public double TopP { get; init; } = 1;

    /// <summary>Seed of the sampling: the same seed, model and prompt give the same tokens.</summary>
    public int Seed { get; init; }

    /// <summary>Tokens that end the generation; null: those of the model's configuration and of the tokenizer.</summary>
    public IReadOnlyCollection<int>? StopTokenIds { get; init; }

    /// <summary>Element type of the key-value cache; null: the model's own. bfloat16 halves its memory.</summary>
    public ScalarType? CacheType { get; init; }

    /// <summary>Changes the logits of every step before a token is chosen; null: nobody.</summary>
    public ILogitsCombiner? Combiner { get; init; }

    /// <summary>Refuses values out of range.</summary>
    /// <exception cref="ArgumentException">A value is out of range; the message names it.</exception>
    public void Validate()
    {
        if (MaximumTokens < 0)
        {
            throw new ArgumentException($"MaximumTokens must not be negative, not {MaximumTokens}.");
        }

        if (!(Temperature >= 0) || double.IsInfinity(Temperature))
        {
            throw new ArgumentException($"Temperature must be a number from 0, not {Temperature}.");
        }

        if (TopK < 0)
        {
            throw new ArgumentException($"TopK must not be negative, not {TopK}.");
        }

        if (!(TopP > 0 && TopP <= 1))
        {
            throw new ArgumentException($"TopP must be above 0 and at most 1, not {TopP}.");
        }
    }
}

/// <summary>Why a generation stopped.</summary>
public enum StopReason
{
    /// <summary>The number of tokens asked for was reached.</summary>
    MaximumTokens,

    /// <summary>The model gave a stop token (which is not part of the result).</summary>
    StopToken,

    /// <summary>The model's context length was reached.</summary>
    ContextLength,
}

/// <summary>What a generation gave.</summary>
/// <param name="Ids">The generated tokens, without the prompt and the stop token.</param>
/// <param name="Text">Their text; null without a tokenizer.</param>
/// <param name="Reason">Why it stopped.</param>
/// <param name="PromptTokens">Number of tokens of the prompt.</param>
/// <param name="PromptTime">Time until the first token was known.</param>
/// <param name="DecodingTime">Time for the tokens after the first.</param>
/// <param name="CacheBytes">Bytes of the key-value cache at the end.</param>
public sealed record GenerationResult(
    IReadOnlyList<int> Ids, string? Text, StopReason Reason, int PromptTokens, TimeSpan PromptTime, TimeSpan DecodingTime, long CacheBytes)
{
    /// <summary>Tokens per second after the first; 0 where there was none.</summary>
    public double TokensPerSecond => Ids.Count > 1 && DecodingTime > TimeSpan.Zero ? (Ids.Count - 1) / DecodingTime.TotalSeconds : 0;
}
