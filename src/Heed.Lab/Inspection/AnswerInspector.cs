using System.Diagnostics;
using Heed.Models.Generation;
using Heed.Models.VisionLanguage;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>Looks into a vision-language model while it talks about a picture.</summary>
public static class AnswerInspector
{
    // A byte each in the page, four here.
    private const long MostWeights = 12L << 20;

    /// <summary>Lets the model talk, as it was trained and with an edit, and notes for each word where on the picture it looked.</summary>
    /// <param name="pretrained">The model, with a tokenizer.</param>
    /// <param name="name">What to call it.</param>
    /// <param name="picture">The picture, as large as the model reads it.</param>
    /// <param name="prompt">The prompt.</param>
    /// <param name="options">How words are chosen, and how many.</param>
    /// <param name="edit">An edit and its name; null: none. Maps are seen as the edit leaves them where it changes the map itself.</param>
    /// <param name="cancellation">Stops between words.</param>
    /// <exception cref="ArgumentException">The picture has another size, or the prompt does not fit.</exception>
    /// <exception cref="InvalidOperationException">There is no tokenizer.</exception>
    /// <exception cref="NotSupportedException">The class token is read as a patch, which has no place in the picture.</exception>
    public static AnswerInspection Run(
        PretrainedVisionLanguageModel pretrained, string name, InspectedPicture picture, string prompt, GenerationOptions options, (string Name, Func<IDisposable> Apply)? edit = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(pretrained);
        ArgumentNullException.ThrowIfNull(picture);
        ArgumentNullException.ThrowIfNull(prompt);
        ArgumentNullException.ThrowIfNull(options);
        var (model, tokenizer) = (pretrained.Model, pretrained.Tokenizer ?? throw new InvalidOperationException("The model has no tokenizer, so it cannot be told what to say."));
        if (pretrained.Configuration.KeepClassToken)
        {
            throw new NotSupportedException("The model reads the class token as a patch, and that has no place in the picture: it cannot be inspected.");
        }

        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var text = pretrained.Configuration.Text;
        var clock = Stopwatch.StartNew();
        using var look = new AttentionMapProbe(new AttentionMapRequest(Rows: [0]));
        EmbeddedPrompt read;
        using (model.Vision.Hooks.Install(look))
        {
            read = pretrained.Prompt(picture.Pixels, prompt);
        }

        using var given = read;
        var image = given.Layout!.Only(TokenKind.Image);
        var classAttention = look.Sites.Select(site => look[site].to(float32).mean([1L])[0, 0].narrow(0, 1, image.Length).contiguous().data<float>().ToArray()).ToArray();
        var runs = new List<AnswerText> { Talk("as trained") };
        if (edit is { } change)
        {
            using var applied = change.Apply();

            // Once more from the pixels: an edit may choose by what the encoder does.
            using var again = pretrained.Prompt(picture.Pixels, prompt);
            runs.Add(Talk(change.Name));
        }

        var (dimensions, threshold, sinks) = Sinks(model, given, image);
        return new(
            name, model.parameters().Sum(parameter => parameter.numel()), picture, pretrained.Configuration.Vision.ImageSize, prompt, pretrained.Configuration.Vision.Grid, text.Layers, text.Heads, runs, dimensions, threshold,
            sinks, classAttention, clock.Elapsed.TotalSeconds);

        AnswerText Talk(string title)
        {
            using var probe = new AttentionMapProbe(new AttentionMapRequest(Rows: [-1]), site => site.Kind == AttentionKind.Self);
            using var installed = model.Hooks.Install(probe);
            var words = new List<AnswerWord>();
            long taken = 0;
            var result = new TextGenerator(model.Language, tokenizer).Generate(
                given, options,
                (int id) =>
                {
                    taken += (long)text.Layers * text.Heads * image.Length;
                    if (taken > MostWeights)
                    {
                        throw new ArgumentException($"The maps of so many words would make the page too large: ask for at most {words.Count} tokens.", nameof(options));
                    }

                    words.Add(WordOf(tokenizer.TokenText(id), probe, image));
                },
                cancellation);
            return new(title, result.Text ?? "", words, result.TokensPerSecond);
        }
    }

    /// <summary>The hidden dimensions in which the begin token stands out, in any text: it attends to nothing but itself.</summary>
    /// <param name="model">The model.</param>
    /// <exception cref="InvalidOperationException">The model begins texts with no token.</exception>
    public static long[] SinkDimensionsOf(VisionLanguageModel model)
    {
        ArgumentNullException.ThrowIfNull(model);
        var begin = model.Configuration.Text.BeginTokenId ?? throw new InvalidOperationException("The model begins texts with no token, so its sink dimensions are not known: name them.");
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var unedited = model.Hooks.Suspend();
        var states = new List<Tensor>();
        model.Language.forward(tensor((long[])[begin]).unsqueeze(0), null, states);

        // The last is normalised.
        return SinkDimensions.FromBos(stack(states.SkipLast(1)));
    }

    private static AnswerWord WordOf(string text, AttentionMapProbe probe, TokenSpan image)
    {
        using var scope = NewDisposeScope();
        var rows = cat([.. probe.Sites.OrderBy(site => site.Layer).Select(site => probe[site].to(float32)[0, TensorIndex.Colon, 0].narrow(1, image.Start, image.Length))], 0).cpu().contiguous();
        return new(text.Trim(), rows.sum([1L]).data<float>().ToArray(), rows.data<float>().ToArray());
    }

    private static (long[] Dimensions, double Threshold, AnswerSinks[] Sinks) Sinks(VisionLanguageModel model, EmbeddedPrompt prompt, TokenSpan image)
    {
        var (width, states) = (model.Configuration.Text.HiddenSize, new List<Tensor>());
        if (model.Configuration.Text.BeginTokenId is null)
        {
            return ([], SinkDimensions.Threshold(width), []);
        }

        var dimensions = SinkDimensionsOf(model);
        model.Language.ForwardEmbeddings(prompt.Embeddings, null, states, lastOnly: true);
        return (dimensions, SinkDimensions.Threshold(width), [.. states.SkipLast(1).Select((state, layer) =>
        {
            var mask = SinkMask.FromMassiveDimensions(state[0], dimensions);
            var found = mask.IsSink.data<bool>().ToArray();
            bool IsImage(int token) => token >= image.Start && token < image.End;
            var tokens = Enumerable.Range(0, found.Length).Where(token => found[token]).ToArray();
            return new AnswerSinks(
                layer, [.. tokens.Where(IsImage).Select(token => token - (int)image.Start)], [.. tokens.Where(token => !IsImage(token))],
                mask.Score.narrow(0, image.Start, image.Length).max().to(float64).item<double>());
        })]);
    }
}
