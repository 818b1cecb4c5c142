using Heed.Edits;
using Heed.Models.VisionLanguage;
using static TorchSharp.torch;

namespace Heed.Lab.Scenes;

/// <summary>How well captions fit their scenes.</summary>
/// <param name="ChairI">Share of the named things that are not there (arXiv 1809.02156); 0 where nothing is named.</param>
/// <param name="ChairS">Share of the captions that name a thing that is not there.</param>
/// <param name="Precision">Share of the named things that are there, each counted once a caption.</param>
/// <param name="Recall">Share of the things there that are named.</param>
/// <param name="Length">Mean number of words.</param>
/// <param name="Exact">Share of the captions that name exactly what is there.</param>
public sealed record CaptionScore(double ChairI, double ChairS, double Precision, double Recall, double Length, double Exact)
{
    /// <summary>Harmonic mean of precision and recall.</summary>
    public double F1 => Precision + Recall > 0 ? 2 * Precision * Recall / (Precision + Recall) : 0;

    /// <summary>Scores captions.</summary>
    /// <param name="scenes">The scenes.</param>
    /// <param name="captions">The tokens of a caption for each.</param>
    public static CaptionScore Of(IReadOnlyList<Scene> scenes, IReadOnlyList<int[]> captions)
    {
        ArgumentNullException.ThrowIfNull(scenes);
        ArgumentNullException.ThrowIfNull(captions);
        double named = 0, absent = 0, wrong = 0, distinct = 0, right = 0, there = 0, words = 0, exact = 0;
        foreach (var (scene, caption) in scenes.Zip(captions))
        {
            var things = scene.Objects.Select(item => item.Thing).ToHashSet();
            var said = SceneWords.Named(caption);
            var once = said.ToHashSet();
            var missing = said.Count(thing => !things.Contains(thing));
            named += said.Count;
            absent += missing;
            wrong += missing > 0 ? 1 : 0;
            distinct += once.Count;
            right += once.Count(things.Contains);
            there += things.Count;
            words += caption.Length;
            exact += once.SetEquals(things) ? 1 : 0;
        }

        var count = Math.Max(1, scenes.Count);
        return new(named > 0 ? absent / named : 0, wrong / count, distinct > 0 ? right / distinct : 0, there > 0 ? right / there : 0, words / count, exact / count);
    }
}

/// <summary>What a vision-language model says about scenes, many at once, always the likeliest word.</summary>
public static class SceneAnswers
{
    private const int AtOnce = 250;

    /// <summary>Captions.</summary>
    /// <param name="model">The model, in evaluation mode.</param>
    /// <param name="scenes">The scenes.</param>
    /// <param name="reading">Called when the encoder has read a batch and before the decoder does; null: nobody.</param>
    /// <param name="guidance">The strength of guidance by the pictures (<see cref="VisualGuidance"/>); null: none.</param>
    /// <param name="cancellation">Stops between batches.</param>
    /// <returns>The tokens of each, without the end; at most <see cref="SceneTask.AnswerTokens"/>.</returns>
    public static IReadOnlyList<int[]> Captions(VisionLanguageModel model, IReadOnlyList<Scene> scenes, Action? reading = null, double? guidance = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(scenes);
        using var quiet = no_grad();
        var captions = new List<int[]>();
        var prompt = tensor((long[])[SceneWords.Begin, SceneWords.Image, .. SceneWords.Ids(SceneWords.CaptionPrompt)], dtype: int64).unsqueeze(0);
        foreach (var chunk in scenes.Chunk(AtOnce))
        {
            cancellation.ThrowIfCancellationRequested();
            using var scope = NewDisposeScope();
            var patches = model.EncodeImages(SceneTask.Images(chunk));
            reading?.Invoke();
            var (embeddings, layout) = model.Embed(prompt.expand(chunk.Length, -1), patches);
            model.Hooks.Layout = layout;
            using var cache = model.Language.CreateCache();
            using var cacheWithout = guidance is null ? null : model.Language.CreateCache();
            var logits = Guided(model.Language.ForwardEmbeddings(embeddings, cache, lastOnly: true), cat([prompt.narrow(1, 0, 1), prompt.narrow(1, 2, prompt.shape[1] - 2)], 1).expand(chunk.Length, -1));
            var said = chunk.Select(_ => new List<int>()).ToArray();
            var over = new bool[chunk.Length];
            for (var step = 0; step < SceneTask.AnswerTokens && over.Contains(false); step++)
            {
                var next = logits.select(1, 0).argmax(1);
                var tokens = next.data<long>().ToArray();
                for (var row = 0; row < tokens.Length; row++)
                {
                    over[row] |= tokens[row] == SceneWords.End;
                    if (!over[row])
                    {
                        said[row].Add((int)tokens[row]);
                    }
                }

                var column = next.unsqueeze(1);
                logits = Guided(model.Language.forward(column, cache, lastOnly: true), column);
            }

            Tensor Guided(Tensor with, Tensor tokens)
            {
                if (guidance is not { } gamma)
                {
                    return with;
                }

                using var unedited = model.Hooks.Suspend();
                return VisualGuidance.Combine(with, model.Language.forward(tokens, cacheWithout, lastOnly: true), gamma);
            }

            captions.AddRange(said.Select(tokens => tokens.ToArray()));
        }

        prompt.Dispose();
        return captions;
    }

    /// <summary>Whether questions for colours are answered right.</summary>
    /// <param name="model">The model, in evaluation mode.</param>
    /// <param name="questions">Scenes, each with the thing whose colour is asked for by its shape.</param>
    /// <param name="change">Changes the picture's tokens <c>[B, image tokens, C]</c> of the scenes from an index on before the decoder reads them; null: nothing.</param>
    /// <param name="cancellation">Stops between batches.</param>
    /// <returns>A flag for each question: whether the likeliest word is the colour.</returns>
    public static bool[] Colours(
        VisionLanguageModel model, IReadOnlyList<(Scene Scene, SceneThing Asked)> questions, Func<Tensor, int, Tensor>? change = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(questions);
        using var quiet = no_grad();
        var right = new bool[questions.Count];
        for (var first = 0; first < questions.Count; first += AtOnce)
        {
            cancellation.ThrowIfCancellationRequested();
            using var scope = NewDisposeScope();
            var chunk = questions.Skip(first).Take(AtOnce).ToArray();
            var images = SceneTask.Images([.. chunk.Select(question => question.Scene)]);
            var ids = Prompts(chunk);
            var patches = model.EncodeImages(images);
            var (embeddings, layout) = model.Embed(ids, change?.Invoke(patches, first) ?? patches);
            model.Hooks.Layout = layout;
            var said = model.Language.ForwardEmbeddings(embeddings, lastOnly: true).select(1, 0).argmax(1).data<long>().ToArray();
            for (var index = 0; index < chunk.Length; index++)
            {
                right[first + index] = said[index] == SceneWords.IdOf(chunk[index].Asked.Colour);
            }
        }

        return right;
    }

    /// <summary>Scenes with questions for the colour of one of their things; the same seed gives the same.</summary>
    /// <param name="count">How many.</param>
    /// <param name="seed">Decides all.</param>
    /// <param name="options">How scenes are drawn.</param>
    public static IReadOnlyList<(Scene Scene, SceneThing Asked)> Questions(int count, int seed, SceneOptions options)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ =>
        {
            var scene = Scene.Draw(random, options);
            return (scene, scene.Objects[random.Next(scene.Objects.Count)].Thing);
        })];
    }

    /// <summary>Scenes; the same seed gives the same.</summary>
    /// <param name="count">How many.</param>
    /// <param name="seed">Decides all.</param>
    /// <param name="options">How they are drawn.</param>
    public static IReadOnlyList<Scene> Scenes(int count, int seed, SceneOptions options)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => Scene.Draw(random, options))];
    }

    /// <summary>The prompts of questions, int64 <c>[B, N]</c>.</summary>
    internal static Tensor Prompts(IReadOnlyList<(Scene Scene, SceneThing Asked)> questions) =>
        stack([.. questions.Select(question => tensor((long[])[SceneWords.Begin, SceneWords.Image, .. SceneWords.Ids(SceneWords.ColourPrompt(question.Asked.Shape))], dtype: int64))]);
}
