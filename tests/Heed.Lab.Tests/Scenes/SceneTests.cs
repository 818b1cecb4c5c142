#pragma warning disable xUnit1051 // The calls take milliseconds: there is nothing to cancel.
using Heed.Edits;
using Heed.Lab.Inspection;
using Heed.Lab.Mechanisms;
using Heed.Lab.Scenes;
using Heed.Models.Generation;
using Heed.Models.VisionLanguage;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Scenes;

public class SceneTests
{
    private static readonly SceneModelOptions Small = new() { VisionWidth = 16, VisionLayers = 2, Patch = 16, Width = 32, Layers = 3, Heads = 2 };

    [Fact]
    public void CompanionsAreCompanionsOfEachOther()
    {
        foreach (var colour in Enum.GetValues<SceneColour>())
        {
            foreach (var shape in Enum.GetValues<SceneShape>())
            {
                var thing = new SceneThing(colour, shape);
                Assert.NotEqual(shape, thing.Companion.Shape);
                Assert.Equal(thing, thing.Companion.Companion);
            }
        }
    }

    [Fact]
    public void TheSameSeedDrawsTheSameScenes()
    {
        var (first, second) = (SceneAnswers.Scenes(4, 3, new()), SceneAnswers.Scenes(4, 3, new()));

        Assert.All(first.Zip(second), pair => Assert.Equal(pair.First.Pixels, pair.Second.Pixels));
        Assert.NotEqual(first[0].Pixels, SceneAnswers.Scenes(1, 4, new())[0].Pixels);
        using var scope = NewDisposeScope();
        var (batch, again) = (SceneTask.Batch(6, 5, new()), SceneTask.Batch(6, 5, new()));
        Assert.True(batch.Ids.eq(again.Ids).all().item<bool>() && batch.Images.eq(again.Images).all().item<bool>());
    }

    [Fact]
    public void ScenesHoldToTheirPrior()
    {
        var scenes = SceneAnswers.Scenes(400, 9, new());
        Assert.All(scenes, scene => Assert.InRange(scene.Objects.Count, 2, 4));
        Assert.All(scenes, scene => Assert.Equal(scene.Objects.Count, scene.Objects.Select(item => item.Thing.Shape).Distinct().Count()));
        var things = scenes.SelectMany(scene => scene.Objects.Select(item => scene.Objects.Any(other => other.Thing == item.Thing.Companion))).ToArray();
        Assert.InRange(things.Count(found => found) / (double)things.Length, 0.88, 0.99);
        Assert.All(SceneAnswers.Scenes(50, 9, new() { CompanionShare = 0 }), scene => Assert.DoesNotContain(scene.Objects, item => scene.Objects.Any(other => other.Thing == item.Thing.Companion)));
    }

    [Fact]
    public void PatchesThatAreNotOccupiedShowGroundAlone()
    {
        // Red and blue are brighter than any ground.
        var scene = Scene.Paint([new(SceneColour.Red, SceneShape.Square), new(SceneColour.Blue, SceneShape.Ring)], new Random(4), new());
        var occupied = scene.Occupied(8);
        Assert.Equal(36, occupied.Length);
        Assert.InRange(occupied.Count(flag => flag), 2, 8);
        var (bright, side) = (new bool[36], Scene.Side);
        for (var place = 0; place < side * side; place++)
        {
            bright[(place / side / 8 * 6) + (place % side / 8)] |= Math.Max(scene.Pixels[place], scene.Pixels[(2 * side * side) + place]) > 190;
        }

        Assert.DoesNotContain(true, bright.Zip(occupied, (lit, taken) => lit && !taken));
    }

    [Fact]
    public void SentencesGoThroughTheTokenizerAsWords()
    {
        var tokenizer = SceneWords.Tokenizer();
        var caption = SceneWords.Caption([new(SceneColour.Red, SceneShape.Square), new(SceneColour.Green, SceneShape.Disc)]);

        Assert.Equal("red square , green disc .", caption);
        Assert.Equal([SceneWords.Begin, SceneWords.Image, .. SceneWords.Ids(SceneWords.CaptionPrompt)], tokenizer.EncodeIds($"<image> {SceneWords.CaptionPrompt}"));
        Assert.Equal(SceneWords.Ids(caption), tokenizer.EncodeIds(caption, addBegin: false));
        Assert.Equal(caption, tokenizer.Decode(SceneWords.Ids(caption).Select(id => (int)id)));
        Assert.Equal(SceneWords.Count, tokenizer.VocabularySize);
        Assert.Equal([new(SceneColour.Red, SceneShape.Square), new SceneThing(SceneColour.Green, SceneShape.Disc)], SceneWords.Named([.. SceneWords.Ids(caption).Select(id => (int)id)]));
        Assert.Contains("'purple' is no word", Assert.Throws<ArgumentException>(() => SceneWords.IdOf("purple")).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void CaptionsAreScoredByWhatIsThere()
    {
        var scene = Scene.Paint([new(SceneColour.Red, SceneShape.Square), new(SceneColour.Blue, SceneShape.Ring)], new Random(1), new());
        int[] Words(string text) => [.. SceneWords.Ids(text).Select(id => (int)id)];

        var right = CaptionScore.Of([scene], [Words("red square , blue ring .")]);
        var half = CaptionScore.Of([scene, scene], [Words("red square , green disc ."), Words(".")]);

        Assert.Equal((0, 0, 1, 1), (right.ChairI, right.ChairS, right.F1, right.Exact));
        Assert.Equal((0.5, 0.5, 0.5, 0.25, 0), (half.ChairI, half.ChairS, half.Precision, half.Recall, half.Exact));
        Assert.Equal(3.5, half.Length);
    }

    [Fact]
    public void TheLossFallsAndAnswersAreThoseOfTheGenerator()
    {
        using var scope = NewDisposeScope();
        using var model = SceneTask.Create(Small, 3);
        using var loop = CaptionRecipe.Loop(model, 1, 12, validates: false);
        loop.Run();
        Assert.True(loop.History.Points[^1].Loss < loop.History.Points[0].Loss);

        var scenes = SceneAnswers.Scenes(3, 8, new());
        var captions = SceneAnswers.Captions(model, scenes);
        using var pretrained = new PretrainedVisionLanguageModel(model, SceneWords.Tokenizer(), SceneTask.Normalization);
        using var prompt = pretrained.Prompt(scenes[1].Pixels, SceneWords.CaptionPrompt);
        var one = new TextGenerator(model.Language).Generate(prompt, new() { Temperature = 0, MaximumTokens = SceneTask.AnswerTokens });
        Assert.Equal(one.Ids, captions[1]);
        using var guided = new GuidedLogits(model.Language, [.. pretrained.Encode(SceneWords.CaptionPrompt).Where(id => id != SceneWords.Image)], 1.5);
        var with = new TextGenerator(model.Language).Generate(prompt, new() { Temperature = 0, MaximumTokens = SceneTask.AnswerTokens, Combiner = guided });
        Assert.Equal(with.Ids, SceneAnswers.Captions(model, [scenes[1]], guidance: 1.5)[0]);
    }

    [Fact]
    public void InformedTokensAreChosenForEachPictureAsTheEncoderReadsIt()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = SceneTask.Create(Small, 3);
        var edit = new InformedTokenEdit([new([], [])], 0.5, 0.3);
        var images = SceneTask.Images(SceneAnswers.Scenes(3, 8, new()));
        using (InformedTokenSelection.Install(model, edit))
        {
            model.EncodeImages(images);
        }

        using var probe = new Heed.Probes.AttentionMapProbe();
        using (model.Vision.Hooks.Install(probe))
        {
            model.Vision.forward(images);
        }

        // Two layers: the last but one is the first.
        var map = probe[probe.Sites.Single(site => site.Layer == 0)];
        Assert.Equal(3, edit.Tokens.Count);
        for (var row = 0; row < 3; row++)
        {
            var expected = InformedTokens.Select(map[row], map[row]);
            Assert.Equal(expected.Local, edit.Tokens[row].Local);
            Assert.Equal(expected.Summary, edit.Tokens[row].Summary);
        }

        var before = edit.Tokens;
        model.EncodeImages(images);
        Assert.Same(before, edit.Tokens);
        Assert.Equal(9, InformedTokenSelection.AllOf(model).Local.Count);
    }

    [Fact]
    public void InspectionShowsEveryWordWithItsMapsBeforeAndAfterAnEdit()
    {
        using var model = SceneTask.Create(Small, 3);
        using var pretrained = new PretrainedVisionLanguageModel(model, SceneWords.Tokenizer(), SceneTask.Normalization);
        model.eval();
        var scene = SceneAnswers.Scenes(1, 8, new())[0];
        var parsed = ModelEdit.Parse("informed:alpha=0.9,from=0,tokens=all");
        var options = new GenerationOptions { Temperature = 0, MaximumTokens = 4, StopTokenIds = [] };

        var inspection = AnswerInspector.Run(
            pretrained, "small", new("a scene", scene.Pixels), SceneWords.CaptionPrompt, options, ("informed", () => parsed(new(model.Hooks, 3, 2) { Pictures = model, Materialize = true })));

        Assert.Equal(2, inspection.Runs.Count);
        Assert.All(inspection.Runs, run => Assert.Equal(4, run.Words.Count));
        Assert.All(inspection.Runs.SelectMany(run => run.Words), word =>
        {
            Assert.Equal((3 * 2, 3 * 2 * 9), (word.ImageMass.Length, word.Weights.Length));
            Assert.All(Enumerable.Range(0, 6), head => Assert.Equal(word.ImageMass[head], word.Weights.AsSpan(9 * head, 9).ToArray().Sum(), 4));
        });
        Assert.NotEqual(inspection.Runs[0].Words[0].Weights, inspection.Runs[1].Words[0].Weights);
        Assert.Equal((3, 2), (inspection.Sinks.Count, inspection.ClassAttention.Count));
        Assert.Empty(model.Hooks.Installed);
        using var stream = new MemoryStream();
        AnswerInspectionReport.Write(inspection, stream);
        Assert.True(stream.Length > 10_000);
    }

    [Fact]
    public void EditsOfPicturesRefuseTextModelsAndWhatDoesNotExist()
    {
        using var model = SceneTask.Create(Small, 3);
        var target = new EditTarget(model.Hooks, 3, 2);
        string Error(Action action) => Assert.Throws<ArgumentException>(action).Message;

        Assert.Contains("reads no such thing", Error(() => ModelEdit.Parse("var")(target)), StringComparison.Ordinal);
        Assert.Contains("reads no such thing", Error(() => ModelEdit.Parse("informed")(target)), StringComparison.Ordinal);
        Assert.Contains("names dimension 99", Error(() => ModelEdit.Parse("var:dims=99")(target with { Pictures = model })), StringComparison.Ordinal);
        Assert.Contains("not 'x'", Error(() => ModelEdit.Parse("var:dims=x")), StringComparison.Ordinal);
        Assert.Contains("from 3 to 2", Error(() => ModelEdit.Parse("var:from=3,to=2")), StringComparison.Ordinal);
        using (ModelEdit.Parse("var:from=0")(target with { Pictures = model }))
        {
            Assert.NotEmpty(model.Hooks.Installed);
        }

        Assert.Empty(model.Hooks.Installed);
        Assert.Empty(model.Hooks.Watchers);
    }
}
