using Heed.Lab.Inspection;
using Heed.Lab.Mechanisms;
using Heed.Lab.Speech;
using Heed.Models.Speech;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Speech;

public sealed class SpeechTests
{
    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    [Fact]
    public void The_grammar_has_forty_words_and_sentences_of_three_to_eight()
    {
        Assert.Equal(40, CommandGrammar.Words.Distinct().Count());
        var random = new Random(1);
        var sentences = Enumerable.Range(0, 500).Select(_ => CommandGrammar.Sentence(random)).ToArray();
        Assert.Equal([3, 4, 5, 6, 7, 8], sentences.Select(sentence => sentence.Count).Distinct().Order());
        Assert.Empty(sentences.SelectMany(sentence => sentence).Except(CommandGrammar.Words));
        Assert.Equal(40, sentences.SelectMany(sentence => sentence).Distinct().Count());
        Assert.All(Enumerable.Range(0, 100).Select(_ => CommandGrammar.Sentence(random, 4)), sentence => Assert.InRange(sentence.Count, 3, 4));
    }

    [Fact]
    public void Words_are_spoken_in_order_at_times_within_the_sound()
    {
        SkipWithoutSynthesizer();
        var spoken = EspeakSynthesizer.Speak(["open", "three", "yellow", "windows", "quickly"], new("en-us", 160, 60));
        Assert.Equal(["open", "three", "yellow", "windows", "quickly"], spoken.Words.Select(word => word.Text));
        Assert.Equal(0, spoken.Words[0].Start, 0.05);
        Assert.All(spoken.Words.Zip(spoken.Words.Skip(1)), pair => Assert.InRange(pair.Second.Start - pair.First.Start, 0.05, 1));
        Assert.True(spoken.Words[^1].Start < spoken.Sound.Seconds);
        Assert.InRange(spoken.Sound.Samples.Max(), 0.05, 1);

        // Faster speech is shorter.
        Assert.True(EspeakSynthesizer.Speak(["open", "three", "windows"], new("en-us", 300)).Sound.Seconds < EspeakSynthesizer.Speak(["open", "three", "windows"], new("en-us", 120)).Sound.Seconds);
        Assert.Contains("no voice 'nobody'", Assert.Throws<ArgumentException>(() => EspeakSynthesizer.Speak(["open"], new("nobody"))).Message, StringComparison.Ordinal);
        Assert.Contains("letters a to z", Assert.Throws<ArgumentException>(() => EspeakSynthesizer.Speak(["open 3"], new("en-us"))).Message, StringComparison.Ordinal);
        Assert.Contains("80 to 450", Assert.Throws<ArgumentException>(() => EspeakSynthesizer.Speak(["open"], new("en-us", 10))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_same_seed_speaks_the_same_sentences_in_the_same_voices_and_every_voice_is_there()
    {
        SkipWithoutSynthesizer();
        using var scope = NewDisposeScope();
        using var corpus = SpokenCorpus.Speak(30, 5, cancellation: Stop);
        using var again = SpokenCorpus.Speak(30, 5, cancellation: Stop);
        Assert.All(corpus.Utterances.Zip(again.Utterances), pair =>
        {
            Assert.Equal(pair.First.Tokens, pair.Second.Tokens);
            Assert.Equal(pair.First.Style, pair.Second.Style);

            // What the synthesiser spoke before shapes the pauses and lengths of what it speaks next.
            Assert.InRange(pair.First.Features.shape[0] / (double)pair.Second.Features.shape[0], 0.95, 1.05);
        });
        Assert.Equal(6, corpus.Utterances.Select(utterance => utterance.Style.Name).Distinct().Count());
        Assert.All(corpus.Utterances, utterance => Assert.True(utterance.Features.isfinite().all().item<bool>() && utterance.Features.shape[1] == 40));

        var batch = corpus.Batch([3, 4, 5]);
        Assert.Equal(corpus.Utterances[4].Features.shape[0], batch.Lengths[1].item<long>());
        Assert.Equal(SpokenCorpus.StartToken, batch.Inputs[0, 0].item<long>());
        Assert.Equal(corpus.Utterances[3].Tokens[0], batch.Inputs[0, 1].item<long>());
        Assert.Equal(corpus.Utterances[3].Tokens, batch.Targets[0].data<long>().ToArray().TakeWhile(token => token != SpokenCorpus.PadToken));
    }

    [Fact]
    public void Training_lowers_the_loss_and_its_steps_do_not_depend_on_each_other()
    {
        SkipWithoutSynthesizer();
        using var scope = NewDisposeScope();
        using var corpus = SpokenCorpus.Speak(24, 5, mostWords: 4, cancellation: Stop);
        manual_seed(1);
        using var model = new SpeechTransformer(SpeechTraining.Configuration(32, 1, 1, 2));
        using var loop = SpeechTraining.Loop(model, corpus, corpus, new() { Steps = 30, Batch = 8, ValidateEvery = 30, Watched = 4 });
        loop.Run(cancellation: TestContext.Current.CancellationToken);
        Assert.True(loop.History.Points.TakeLast(5).Average(point => point.Loss) < 0.8 * loop.History.Points[0].Loss);
        Assert.InRange(loop.History.Validations[^1].Value, 0, 5);
    }

    [Theory]
    [InlineData("1 2 3", "1 2 3", 0)]
    [InlineData("1 2 3", "", 3)]
    [InlineData("1 2 3", "1 3", 1)]
    [InlineData("1 2 3", "4 1 2 5", 2)]
    public void Edit_distances_count_insertions_deletions_and_replacements(string first, string second, int distance)
    {
        static long[] Numbers(string text) => [.. text.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(long.Parse)];
        Assert.Equal(distance, SpeechTraining.EditDistance(Numbers(first), Numbers(second)));
        Assert.Equal(distance, SpeechTraining.EditDistance(Numbers(second), Numbers(first)));
    }

    [Fact]
    public void An_inspection_has_maps_times_and_correlations_of_one_shape()
    {
        using var scope = NewDisposeScope();
        using var pretrained = Untrained();
        var sound = Noise();
        var inspection = SpeechInspector.Run(pretrained, "model", sound, "noise", new() { Masks = 12, EncoderMasks = 15 }, cancellation: TestContext.Current.CancellationToken);
        var (tokens, states) = (inspection.Tokens.Count, inspection.States);
        Assert.Equal((100, 40, 25), (inspection.Frames, inspection.Bins, states));
        Assert.Equal(4, inspection.Heads.Count);
        Assert.All(inspection.Heads, head => Assert.All(head.Weights.Chunk(states), row => Assert.Equal(1, row.Sum(), 1e-4)));
        Assert.Equal(tokens * states, inspection.Mean.Length);
        Assert.Equal(tokens * 100 * 40, inspection.Saliency!.Length);
        Assert.Equal(100 * 40, inspection.Sentence!.Length);
        Assert.Equal(tokens * states, inspection.EncoderSaliency!.Length);
        Assert.Equal(tokens - 1, inspection.Words.Count);
        Assert.All(inspection.Words, word => Assert.InRange(word.Start, 0, 1));
        Assert.Equal(inspection.Words.Select(word => word.Start).Order(), inspection.Words.Select(word => word.Start));
        Assert.Empty(pretrained.Model.Hooks.Installed);
        using var page = new MemoryStream();
        SpeechInspectionReport.Write(inspection, page);
        Assert.Contains("\"state_seconds\":0.04", System.Text.Encoding.UTF8.GetString(page.ToArray()), StringComparison.Ordinal);

        var bare = SpeechInspector.Run(pretrained, "model", sound, "noise", new() { Masks = 0, EncoderMasks = 0 }, cancellation: TestContext.Current.CancellationToken);
        Assert.Null(bare.Saliency);
        Assert.Null(bare.MeanWithInput);
        Assert.Equal(inspection.Text, bare.Text);
    }

    [Fact]
    public void An_edit_is_shown_beside_the_model_as_it_was_trained()
    {
        using var scope = NewDisposeScope();
        using var pretrained = Untrained();
        var sound = Noise();
        var options = new SpeechInspectionOptions { Masks = 0, EncoderMasks = 0 };
        SpeechInspection With(params string[] edits) => SpeechInspector.Run(
            pretrained, "model", sound, "noise", options, (edits, () => ModelEdit.Apply([.. edits.Select(ModelEdit.Parse)], EditTarget.Of(pretrained.Model) with { Materialize = true })), Stop);
        var plain = SpeechInspector.Run(pretrained, "model", sound, "noise", options, cancellation: Stop);
        Assert.Null(plain.Edited);

        var unchanged = With("heads:scale=0.0,by=1");
        Assert.Equal(plain.Text, unchanged.Edited!.Text);
        Assert.Equal(plain.Tokens, unchanged.Edited.Tokens);
        Assert.All(plain.Probabilities.Zip(unchanged.Edited.Probabilities), pair => Assert.Equal(pair.First, pair.Second, 1e-5));
        Assert.All(unchanged.Edited.Heads, head => Assert.Equal(0, head.Moved, 1e-5));
        Assert.All(plain.Mean.Zip(unchanged.Edited.Mean), pair => Assert.Equal(pair.First, pair.Second, 1e-5));

        // The second layer's first head looks at frame 5 alone, and the map shows it.
        var moved = With("move:heads=1.0,kind=cross,sink=5", "heads:scale=1.1,by=3,kind=cross");
        Assert.Equal(plain.Mean, moved.Mean);
        Assert.Equal(plain.Text, moved.Text);
        var edited = moved.Edited!;
        Assert.Equal(["move:heads=1.0,kind=cross,sink=5", "heads:scale=1.1,by=3,kind=cross"], edited.Edits);
        Assert.Equal((edited.Tokens.Count, edited.Words.Count), (edited.Probabilities.Count, edited.Tokens.Count - 1));
        var head = edited.Heads[2];
        Assert.Equal((1, 0), (head.Layer, head.Head));
        Assert.All(head.Weights!.Chunk(moved.States), row => Assert.Equal(5, Assert.Single(row.Index(), weight => weight.Item != 0).Index));
        var rows = Math.Min(moved.Tokens.Count, edited.Tokens.Count);
        Assert.Equal(moved.Heads[2].Weights.Chunk(moved.States).Take(rows).Average(row => 1 - row[5]), head.Moved, 1e-5);
        Assert.Empty(pretrained.Model.Hooks.Installed);

        using var page = new MemoryStream();
        SpeechInspectionReport.Write(moved, page);
        Assert.Contains("\"edited\":{\"name\":\"move:heads=1.0,kind=cross,sink=5 heads:scale=1.1,by=3,kind=cross\"", System.Text.Encoding.UTF8.GetString(page.ToArray()), StringComparison.Ordinal);
        Assert.Contains("not finite", Assert.Throws<ArgumentException>(() => With("heads:scale=*.*,by=1e38")).Message);
        Assert.Contains("keys 0 to 24", Assert.Throws<ArgumentException>(() => With("move:kind=cross,sink=25")).Message);
        Assert.Empty(pretrained.Model.Hooks.Installed);
    }

    [Theory]
    [InlineData("stream:at=attention,scale=3,positions=-1")]
    [InlineData("act:layers=0-1,threshold=0.02,beta=0,first=edit")]
    [InlineData("norm:layer=0,to=5,cosine=-1")]
    public void Probabilities_with_an_edit_are_those_of_the_calls_that_wrote(string edit)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var pretrained = Untrained();
        using var features = pretrained.Features.Compute(Noise()).unsqueeze(0);
        double Difference(bool edited, int beams)
        {
            using var applied = ModelEdit.Apply([ModelEdit.Parse(edit)], EditTarget.Of(pretrained.Model));
            using var reading = SpeechReading.Run(pretrained, pretrained.Model.Encode(features), new() { Beams = beams }, edited, Stop);
            var written = reading.Transcript;
            return Math.Abs(reading.Probabilities.Take(written.Tokens.Count + (written.IsComplete ? 1 : 0)).Sum(Math.Log) - written.LogProbability);
        }

        Assert.Equal(0, Difference(edited: true, 1), 1e-3);
        if (edit.StartsWith("stream", StringComparison.Ordinal))
        {
            // Read at once, only the last token would be edited.
            Assert.True(Difference(edited: false, 1) > 0.01);
        }
    }

    private static PretrainedSpeech Untrained()
    {
        manual_seed(3);
        var pretrained = new PretrainedSpeech(new SpeechTransformer(SpeechTraining.Configuration(32, 1, 2, 2)), SpokenCorpus.Features, SpokenCorpus.Vocabulary);
        pretrained.Model.eval();
        return pretrained;
    }

    private static Waveform Noise()
    {
        var random = new Random(2);
        return new([.. Enumerable.Range(0, 16_000).Select(_ => (float)random.NextDouble() - 0.5f)], 16_000);
    }

    private static void SkipWithoutSynthesizer() => Assert.SkipUnless(EspeakSynthesizer.IsInstalled(), $"eSpeak NG is not installed: {EspeakSynthesizer.HowToInstall}.");
}
