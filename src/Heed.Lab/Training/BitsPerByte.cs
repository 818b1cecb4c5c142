using System.Text;
using Heed.Lab.Corpora;
using Heed.Models.Tokenizers;
using static TorchSharp.torch;
using Decoder = Heed.Models.Decoders.Decoder;

namespace Heed.Lab.Training;

/// <summary>
/// How well a decoder predicts texts: the mean number of bits that it needs for a byte, whatever its vocabulary. Every text is read on its own, after the begin token; a text longer than the
/// context is read in pieces, each after a begin token of its own.
/// </summary>
public sealed class BitsPerByte
{
    private readonly List<long[]> _pieces = [];

    /// <summary>Prepares the texts.</summary>
    /// <param name="documents">The texts.</param>
    /// <param name="tokenizer">The decoder's tokenizer; it must have a begin token.</param>
    /// <param name="context">Tokens read at once, the begin token included.</param>
    public BitsPerByte(IEnumerable<TextDocument> documents, TextTokenizer tokenizer, int context)
    {
        var begin = (long)(tokenizer.BeginTokenId ?? throw new ArgumentException("The tokenizer has no begin token to read a text after.", nameof(tokenizer)));
        foreach (var document in documents)
        {
            Bytes += Encoding.UTF8.GetByteCount(document.Text);
            _pieces.AddRange(tokenizer.EncodeIds(document.Text, addBegin: false).Chunk(context - 1).Select(piece => (long[])[begin, .. piece]));
        }
    }

    /// <summary>Number of bytes of the texts.</summary>
    public long Bytes { get; }

    /// <summary>Bits per byte of a decoder. Leaves no tensor behind.</summary>
    public double Measure(Decoder decoder, CancellationToken cancellation = default)
    {
        using var gradient = no_grad();
        double nats = 0;
        foreach (var piece in _pieces)
        {
            cancellation.ThrowIfCancellationRequested();
            using var scope = NewDisposeScope();
            var ids = tensor(piece).unsqueeze(0);
            var logits = decoder.forward(ids.narrow(1, 0, piece.Length - 1));
            nats += nn.functional.cross_entropy(logits.squeeze(0), ids[0].narrow(0, 1, piece.Length - 1), reduction: nn.Reduction.Sum).to(float64).item<double>();
        }

        return nats / Math.Log(2) / Bytes;
    }
}
