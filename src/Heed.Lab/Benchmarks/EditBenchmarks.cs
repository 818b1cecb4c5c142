using Heed.Edits;
using Heed.Lab.Reproductions;
using Heed.Models;
using Heed.Models.Decoders;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>What edits of attention weights cost, beside the same model without them: a token of generation, and reading a text.</summary>
internal static class EditBenchmarks
{
    private const double MostOfToken = 1.15;
    private const int ImageStart = 8, ImageLength = 256;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        if (ShippedReader.Folder() is { } folder)
        {
            using var reader = PretrainedModel.Load(folder);
            foreach (var row in Run(context, "reader", reader.Model, context.Quick ? [320] : [1024, 1700]))
            {
                yield return row;
            }
        }

        using var random = new Decoder(new()
        {
            VocabularySize = 1024, HiddenSize = context.Quick ? 64 : 512, IntermediateSize = context.Quick ? 128 : 1376, Layers = context.Quick ? 4 : 12, Heads = 8, KeyValueHeads = 8, ContextLength = 4096,
        });
        foreach (var row in Run(context, context.Quick ? "random 4 x 64" : "random 12 x 512", random, context.Quick ? [320] : [1024, 2048]))
        {
            yield return row;
        }
    }

    private static IEnumerable<BenchmarkResult> Run(BenchmarkContext context, string name, Decoder model, IReadOnlyList<int> lengths)
    {
        var shape = model.Configuration;
        foreach (var length in lengths)
        {
            foreach (var (edit, make) in Edits(shape))
            {
                using var plain = new Writer(model, length, null);
                using var edited = new Writer(model, length, make);
                yield return context.Row(
                    $"probes/{edit}, one token", $"{name}, from {length} cached tokens", edited.Step, "the model unedited", plain.Step, Aim.AtMost(MostOfToken));
            }
        }

        // Reading is what an edit does once a text: no aim, but no surprise either.
        foreach (var (edit, make) in Edits(shape))
        {
            using var plain = new Writer(model, lengths[0], null);
            using var edited = new Writer(model, lengths[0], make);
            yield return context.Row($"probes/{edit}, reading", $"{name}, {lengths[0]} tokens", edited.Read, "the model unedited", plain.Read, share: 0.7);
        }
    }

    /// <summary>Every head and layer that a method considers, thresholds low enough that there is work in each.</summary>
    private static IEnumerable<(string Name, Func<AttentionHooks, IDisposable> Install)> Edits(DecoderConfiguration shape)
    {
        yield return ("calibration of all heads", Installing(() => new CalibrationEdit(CalibrationEdit.Heads(shape.Layers, shape.Heads), 0.02)));
        yield return ("redistribution", Redistribution(shape));
        var tokens = new InformedTokens([.. Enumerable.Range(0, 64).Select(i => (long)(4 * i))], [.. Enumerable.Range(0, 16).Select(i => (long)((16 * i) + 1))]);
        yield return ("informed tokens", Installing(() => new InformedTokenEdit([tokens])));
    }

    private static Func<AttentionHooks, IDisposable> Installing(Func<AttentionHook> make)
    {
        var edit = make();
        return hooks => hooks.Install(edit);
    }

    private static Func<AttentionHooks, IDisposable> Redistribution(DecoderConfiguration shape)
    {
        // About one token in ten passes for a sink, and no head is spared.
        var edit = new RedistributionEdit([0, shape.HiddenSize / 2], threshold: 2, rho: 1, minimumImageAttention: 0);
        return edit.InstallOn;
    }

    /// <summary>A text being written, edited or not, with a cache of its own.</summary>
    private sealed class Writer : IDisposable
    {
        private readonly Decoder _model;
        private readonly Func<AttentionHooks, IDisposable>? _install;
        private readonly KeyValueCache _cache;
        private readonly TokenLayout _layout;
        private readonly Tensor _prompt;
        private readonly Tensor _next;

        public Writer(Decoder model, int length, Func<AttentionHooks, IDisposable>? install)
        {
            (_model, _install) = (model, install);
            _layout = new(new(TokenKind.Text, 0, ImageStart), new(TokenKind.Image, ImageStart, ImageLength), new(TokenKind.Text, ImageStart + ImageLength, length - ImageStart - ImageLength));
            using var generator = new Generator(3);
            _prompt = randint(0, model.Configuration.VocabularySize, [1, length], dtype: int64, generator: generator).DetachFromDisposeScope();
            _next = _prompt.narrow(1, 7, 1).DetachFromDisposeScope();
            _cache = model.CreateCache();
            Forward(_prompt, _cache);
        }

        public void Step() => Forward(_next, _cache);

        public void Read() => Forward(_prompt, null);

        public void Dispose()
        {
            _cache.Dispose();
            _prompt.Dispose();
            _next.Dispose();
        }

        private void Forward(Tensor ids, KeyValueCache? cache)
        {
            using var quiet = inference_mode();
            var before = _model.Hooks.Layout;
            using var installed = _install?.Invoke(_model.Hooks);
            _model.Hooks.Layout = _layout;
            try
            {
                _model.forward(ids, cache, lastOnly: true).Dispose();
            }
            finally
            {
                _model.Hooks.Layout = before;
            }
        }
    }
}
