using Heed.Layers;
using Heed.Models.VisionLanguage;
using static TorchSharp.torch;

namespace Heed.Lab.Scenes;

/// <summary>The shape of the small vision-language model that learns to talk about scenes.</summary>
public sealed record SceneModelOptions
{
    /// <summary>Width of the encoder.</summary>
    public int VisionWidth { get; init; } = 64;

    /// <summary>Layers of the encoder.</summary>
    public int VisionLayers { get; init; } = 3;

    /// <summary>Side of a patch in pixels.</summary>
    public int Patch { get; init; } = 8;

    /// <summary>Width of the decoder.</summary>
    public int Width { get; init; } = 96;

    /// <summary>Layers of the decoder.</summary>
    public int Layers { get; init; } = 4;

    /// <summary>Heads of both.</summary>
    public int Heads { get; init; } = 4;
}

/// <summary>Pictures with texts about them, of one batch.</summary>
/// <param name="Scenes">The scenes.</param>
/// <param name="Images"><c>[B, 3, 48, 48]</c>.</param>
/// <param name="Ids">Begin, image token, prompt, answer, end and whatever fills up, int64 <c>[B, N]</c>.</param>
/// <param name="Targets">For each token after the image: itself where it is of the answer or its end, -100 elsewhere; int64 <c>[B, N - 2]</c>.</param>
/// <param name="Words">Which colours and shapes the picture shows, float32 <c>[B, colours + shapes]</c>.</param>
public sealed record SceneBatch(IReadOnlyList<Scene> Scenes, Tensor Images, Tensor Ids, Tensor Targets, Tensor Words);

/// <summary>What the vision-language model learns: to list the things of a scene, and to say which colour a shape has.</summary>
public static class SceneTask
{
    // What the loss of cross-entropy passes over.
    private const long Ignored = -100;

    // The class token learns to name what there is, as CLIP's learns to match captions. Small beside the words themselves.
    private const double NamingShare = 0.2;

    private const double EmbeddingDeviation = 0.3;

    // A caption's two words for each of at most four things, commas, stop and end.
    private const int LongestAnswer = 13;

    /// <summary>How scenes' pixels become the model's input.</summary>
    public static PixelNormalization Normalization { get; } = new([0.35, 0.35, 0.35], [0.25, 0.25, 0.25]);

    /// <summary>Words that an answer may have, its end included.</summary>
    public static int AnswerTokens => LongestAnswer;

    /// <summary>A new model, drawn from libtorch's generator and the seed.</summary>
    /// <param name="options">Its shape.</param>
    /// <param name="seed">Seed of the decoder's weights.</param>
    public static VisionLanguageModel Create(SceneModelOptions options, int seed)
    {
        ArgumentNullException.ThrowIfNull(options);
        manual_seed(seed);
        var model = new VisionLanguageModel(
            new()
            {
                Vision = new()
                {
                    HiddenSize = options.VisionWidth, IntermediateSize = 2 * options.VisionWidth, Layers = options.VisionLayers, Heads = options.Heads, ImageSize = Scene.Side, PatchSize = options.Patch,
                },
                Text = new()
                {
                    VocabularySize = SceneWords.Count, HiddenSize = options.Width, IntermediateSize = 2 * options.Width, Layers = options.Layers, Heads = options.Heads, ContextLength = 128,
                    BeginTokenId = SceneWords.Begin, EndTokenIds = [SceneWords.End],
                },
                ImageTokenId = SceneWords.Image,

                // With three layers all of them are needed.
                FeatureLayer = -1,
            },
            seed);
        Parameters.InitializeByFan(model);
        using var quiet = no_grad();
        foreach (var (name, parameter) in model.named_parameters().Where(entry => entry.name.EndsWith("embed_tokens.weight", StringComparison.Ordinal)))
        {
            // As large as what the first layers add to it: a word must not drown.
            Parameters.DrawNormal(parameter, EmbeddingDeviation);
        }

        return model;
    }

    /// <summary>Draws scenes with texts: captions and questions by turns. The same seed gives the same batch.</summary>
    /// <param name="count">How many.</param>
    /// <param name="seed">Decides all.</param>
    /// <param name="options">How scenes are drawn.</param>
    public static SceneBatch Batch(int count, int seed, SceneOptions options)
    {
        var random = new Random(seed);
        var texts = new List<(Scene Scene, string Prompt, string Answer)>();
        for (var index = 0; index < count; index++)
        {
            var scene = Scene.Draw(random, options);
            if (index % 2 == 0)
            {
                texts.Add((scene, SceneWords.CaptionPrompt, SceneWords.Caption(scene.Objects.Select(item => item.Thing))));
            }
            else
            {
                var thing = scene.Objects[random.Next(scene.Objects.Count)].Thing;
                texts.Add((scene, SceneWords.ColourPrompt(thing.Shape), $"{thing.Colour} .".ToLowerInvariant()));
            }
        }

        return Batch(texts);
    }

    /// <summary>The loss: cross-entropy of the answers, and a little of naming what there is from the class token.</summary>
    /// <param name="model">The model.</param>
    /// <param name="batch">What it reads.</param>
    /// <param name="change">Changes the pictures' tokens <c>[B, image tokens, C]</c> before the decoder reads them; null: nothing.</param>
    public static Tensor Loss(VisionLanguageModel model, SceneBatch batch, Func<Tensor, Tensor>? change = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(batch);
        using var scope = NewDisposeScope();
        using TorchSharp.Scalar share = NamingShare;
        var tokens = model.Vision.forward(batch.Images);
        var patches = model.Project(tokens.narrow(1, 1, tokens.shape[1] - 1));
        var (embeddings, layout) = model.Embed(batch.Ids, change?.Invoke(patches) ?? patches);
        model.Hooks.Layout = layout;
        var logits = model.Language.ForwardEmbeddings(embeddings).narrow(1, patches.shape[1], batch.Targets.shape[1]);
        var words = arange(SceneWords.IdOf(SceneColour.Red), SceneWords.IdOf(SceneColour.Red) + batch.Words.shape[1], dtype: int64).unsqueeze(0);
        var named = model.Project(model.Vision.Pool(tokens)).matmul(model.Language.Embed(words)[0].t());
        var loss = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[2]), batch.Targets.reshape(-1), ignore_index: Ignored);
        return (loss + (nn.functional.binary_cross_entropy_with_logits(named, batch.Words) * share)).MoveToOuterDisposeScope();
    }

    /// <summary>Pictures as the model reads them.</summary>
    /// <param name="scenes">The scenes.</param>
    /// <returns><c>[B, 3, 48, 48]</c>.</returns>
    public static Tensor Images(IReadOnlyList<Scene> scenes)
    {
        ArgumentNullException.ThrowIfNull(scenes);
        using var scope = NewDisposeScope();
        var pixels = tensor(scenes.SelectMany(scene => scene.Pixels).ToArray()).view(scenes.Count, 3, Scene.Side, Scene.Side);
        return Normalization.Apply(pixels).MoveToOuterDisposeScope();
    }

    private static SceneBatch Batch(List<(Scene Scene, string Prompt, string Answer)> texts)
    {
        var rows = texts.Select(text => (Prompt: SceneWords.Ids(text.Prompt), Answer: (long[])[.. SceneWords.Ids(text.Answer), SceneWords.End])).ToArray();
        var length = 2 + rows.Max(row => row.Prompt.Length + row.Answer.Length);
        var (ids, targets) = (new long[rows.Length * length], new long[rows.Length * (length - 2)]);
        Array.Fill(ids, SceneWords.End);
        Array.Fill(targets, Ignored);
        var (colours, words) = (Enum.GetValues<SceneColour>().Length, Enum.GetValues<SceneColour>().Length + Enum.GetValues<SceneShape>().Length);
        var shown = new float[rows.Length * words];
        for (var row = 0; row < rows.Length; row++)
        {
            var (prompt, answer) = rows[row];
            long[] all = [SceneWords.Begin, SceneWords.Image, .. prompt, .. answer];
            all.CopyTo(ids, row * length);
            answer.CopyTo(targets, (row * (length - 2)) + prompt.Length);
            foreach (var item in texts[row].Scene.Objects)
            {
                shown[(row * words) + (int)item.Thing.Colour] = 1;
                shown[(row * words) + colours + (int)item.Thing.Shape] = 1;
            }
        }

        Scene[] scenes = [.. texts.Select(text => text.Scene)];
        return new(
            scenes, Images(scenes), tensor(ids, dtype: int64).view(rows.Length, length), tensor(targets, dtype: int64).view(rows.Length, length - 2), tensor(shown).view(rows.Length, words));
    }
}
