using System.Text;
using Heed.Lab.Corpora;
using static TorchSharp.torch;

namespace Heed.Lab.Texts;

/// <summary>A corpus as small language models read it: a token a byte, and one that begins every window.</summary>
public sealed class TextData
{
    /// <summary>The token that begins a window.</summary>
    public const int Begin = 256;

    /// <summary>Number of different tokens.</summary>
    public const int Vocabulary = 257;

    private readonly int[] _training;
    private readonly byte[] _heldOut;

    /// <summary>Reads a corpus.</summary>
    public TextData(TextCorpus corpus)
    {
        ArgumentNullException.ThrowIfNull(corpus);
        Corpus = corpus;
        _training = [.. Encoding.UTF8.GetBytes(corpus.TrainingText).Select(value => (int)value)];
        _heldOut = Encoding.UTF8.GetBytes(string.Join('\n', corpus.HeldOut.Select(document => document.Text)));
    }

    /// <summary>The corpus.</summary>
    public TextCorpus Corpus { get; }

    /// <summary>Bytes to train on.</summary>
    public long TrainingBytes => _training.LongLength;

    /// <summary>Bytes held out.</summary>
    public long HeldOutBytes => _heldOut.LongLength;

    /// <summary>Batches for training: every epoch all windows once, cut at a phase and in an order of its own.</summary>
    /// <param name="size">Windows of a batch.</param>
    /// <param name="length">Bytes of a window.</param>
    /// <param name="seed">Decides phases and orders.</param>
    /// <returns>The batch of a step, counted from 0, the same one whenever it is asked for: what is read, the begin token first, and what follows each, both int64 <c>[size, length]</c>.</returns>
    /// <exception cref="ArgumentException">The text is shorter than two windows.</exception>
    public Func<long, (Tensor Input, Tensor Target)> Batches(int size, int length, int seed)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(size, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(length, 1);
        var sampler = new WindowSampler(_training, length, seed);
        return step =>
        {
            var (input, target) = (new long[size * length], new long[size * length]);
            for (var i = 0; i < size; i++)
            {
                Fill(sampler[(step * size) + i], input.AsSpan(i * length, length), target.AsSpan(i * length, length));
            }

            return (tensor(input).view(size, length), tensor(target).view(size, length));
        };
    }

    /// <summary>How many whole windows the held-out text has.</summary>
    public int HeldOutWindows(int length) => _heldOut.Length / length;

    /// <summary>Windows of the held-out text, one after the other.</summary>
    /// <param name="first">The first one.</param>
    /// <param name="count">How many.</param>
    /// <param name="length">Bytes of a window.</param>
    /// <returns>What is read, the begin token first, and what follows each, both int64 <c>[count, length]</c>.</returns>
    public (Tensor Input, Tensor Target) HeldOut(int first, int count, int length)
    {
        var (input, target) = (new long[count * length], new long[count * length]);
        var window = new int[length];
        for (var i = 0; i < count; i++)
        {
            for (var j = 0; j < length; j++)
            {
                window[j] = _heldOut[((first + i) * length) + j];
            }

            Fill(window, input.AsSpan(i * length, length), target.AsSpan(i * length, length));
        }

        return (tensor(input).view(count, length), tensor(target).view(count, length));
    }

    private static void Fill(ReadOnlySpan<int> window, Span<long> input, Span<long> target)
    {
        input[0] = Begin;
        for (var i = 0; i < window.Length; i++)
        {
            target[i] = window[i];
            if (i + 1 < window.Length)
            {
                input[i + 1] = window[i];
            }
        }
    }
}
