using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using Heed.Lab.Training;
using Heed.Models;

namespace Heed.Lab.Search;

/// <summary>How well a decoder of a model folder predicts a text, as the metric of a search: bits per byte, with an identity that says of which model and text.</summary>
public sealed class TextEvaluation
{
    private readonly PretrainedModel _pretrained;
    private readonly BitsPerByte _measure;

    /// <summary>Prepares the evaluation.</summary>
    /// <param name="pretrained">The model; it stays the caller's.</param>
    /// <param name="folder">The folder that it was loaded from.</param>
    /// <param name="text">The text.</param>
    /// <param name="tokens">Tokens read at once, the begin token included: a longer text is read in pieces.</param>
    /// <exception cref="ArgumentException">The model has no tokenizer, or one without a begin token, or so many tokens are too few or too many for it.</exception>
    public TextEvaluation(PretrainedModel pretrained, string folder, string text, int tokens)
    {
        ArgumentNullException.ThrowIfNull(pretrained);
        ArgumentException.ThrowIfNullOrEmpty(folder);
        ArgumentException.ThrowIfNullOrEmpty(text);
        var context = pretrained.Configuration.ContextLength;
        if (tokens < 2 || tokens > context)
        {
            throw new ArgumentException($"The model reads 2 to {context} tokens at once, not {tokens}.", nameof(tokens));
        }

        _pretrained = pretrained;
        var tokenizer = pretrained.Tokenizer ?? throw new ArgumentException($"The model in {folder} has no tokenizer.json, so text cannot be given to it.", nameof(pretrained));
        _measure = new([new("text", text)], tokenizer, tokens);
        Identity = [("model", HashOf(folder)), ("text", Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(text)))), ("tokens", tokens.ToString(CultureInfo.InvariantCulture)), ("metric", Metric)];
    }

    /// <summary>The metric's name.</summary>
    public static string Metric => "bits per byte";

    /// <summary>What decides the metric of the model as it was loaded, by name.</summary>
    public IReadOnlyList<(string Name, string Value)> Identity { get; }

    /// <summary>Bits per byte of the model as it is now.</summary>
    public double Measure(CancellationToken cancellation) => _measure.Measure(_pretrained.Model, cancellation);

    // Weights, shape and tokenizer, whatever their files are called.
    private static string HashOf(string folder)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (var file in Directory.GetFiles(folder).Where(file => Path.GetExtension(file) is ".safetensors" || Path.GetFileName(file) is "config.json" or "tokenizer.json").Order(StringComparer.Ordinal))
        {
            using var stream = File.OpenRead(file);
            hash.AppendData(SHA256.HashData(stream));
        }

        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }
}
