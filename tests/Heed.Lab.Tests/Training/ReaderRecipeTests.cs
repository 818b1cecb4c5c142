using System.Text;
using System.Text.Json;
using Heed.Lab.Corpora;
using Heed.Lab.Training;
using Heed.Models;
using Heed.Models.Decoders;
using Heed.Models.Tokenizers;
using Xunit;
using static TorchSharp.torch;
using Decoder = Heed.Models.Decoders.Decoder;

namespace Heed.Lab.Tests.Training;

public sealed class ReaderRecipeTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-reader-").FullName;

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void A_stopped_run_is_taken_up_and_leaves_a_model_that_loads()
    {
        var options = new RecipeOptions { Output = Path.Combine(_folder, "model"), Steps = 3, TextFile = WriteText() };
        var checkpoint = Path.Combine(options.Output, "checkpoint.bin");
        var recipe = TrainingRecipe.Find("reader");
        using (var cancellation = new CancellationTokenSource())
        {
            Assert.Throws<OperationCanceledException>(() => recipe.Run(options, _ => { }, _ => cancellation.Cancel(), cancellation.Token));
        }

        Assert.Equal([checkpoint], Directory.GetFiles(options.Output));
        Assert.Contains("--resume", Assert.Throws<ArgumentException>(() => recipe.Run(options, _ => { }, _ => { }, Token)).Message, StringComparison.Ordinal);
        Assert.Contains("steps=3 there, steps=4 now", Assert.Throws<ArgumentException>(
            () => recipe.Run(options with { Resume = true, Steps = 4 }, _ => { }, _ => { }, Token)).Message, StringComparison.Ordinal);
        var seen = new List<long>();
        var result = recipe.Run(options with { Resume = true, Steps = null }, _ => { }, progress => seen.Add(progress.Step), Token);

        Assert.Equal([2, 3], seen);
        Assert.False(File.Exists(checkpoint));
        Assert.Equal(result.Files.Order(), Directory.GetFiles(options.Output).Order());
        using var model = PretrainedModel.Load(options.Output);
        Assert.Equal(model.Tokenizer!.VocabularySize, model.Configuration.VocabularySize);
        Assert.Equal(0, model.Tokenizer.BeginTokenId);
        var page = File.ReadAllText(Path.Combine(options.Output, "page.txt"));
        Assert.Equal(page, model.Tokenizer.Decode(model.Tokenizer.EncodeIds(page).Select(id => (int)id)));
        using var run = JsonDocument.Parse(File.ReadAllText(Path.Combine(options.Output, "training.json")));
        Assert.Equal(3, run.RootElement.GetProperty("steps").GetInt32());

        // The shipped figure is that of the shipped weights.
        var corpus = TextCorpus.FromFile(options.TextFile);
        var measured = new BitsPerByte(corpus.HeldOut, model.Tokenizer, model.Configuration.ContextLength).Measure(model.Model, Token);
        Assert.Equal(run.RootElement.GetProperty("held_out_bits_per_byte").GetDouble(), measured, 3);
        Assert.Contains(measured.ToString("F3", System.Globalization.CultureInfo.InvariantCulture), File.ReadAllText(Path.Combine(options.Output, "README.md")), StringComparison.Ordinal);
    }

    [Fact]
    public void A_run_with_another_attention_is_measured_with_it_and_says_so()
    {
        var options = new RecipeOptions { Output = Path.Combine(_folder, "windowed"), Steps = 2, TextFile = WriteText(), Attention = "window:w=3" };
        Assert.Throws<ArgumentException>(() => TrainingRecipe.Find("reader").Run(options with { Attention = "spiral" }, _ => { }, _ => { }, Token));
        Assert.False(Directory.Exists(options.Output));

        TrainingRecipe.Find("reader").Run(options, _ => { }, _ => { }, Token);

        using var model = PretrainedModel.Load(options.Output);
        using var run = JsonDocument.Parse(File.ReadAllText(Path.Combine(options.Output, "training.json")));
        Assert.Equal("window:w=3", run.RootElement.GetProperty("attention").GetString());
        Assert.Contains("--attention window:w=3", File.ReadAllText(Path.Combine(options.Output, "README.md")), StringComparison.Ordinal);
        var measure = new BitsPerByte(TextCorpus.FromFile(options.TextFile).HeldOut, model.Tokenizer!, model.Configuration.ContextLength);
        var shipped = run.RootElement.GetProperty("held_out_bits_per_byte").GetDouble();
        Assert.NotEqual(shipped, measure.Measure(model.Model, Token), 4);
        using var swapped = model.Model.Hooks.Install(Heed.Lab.Mechanisms.AttentionMechanism.Edit(options.Attention));
        Assert.Equal(shipped, measure.Measure(model.Model, Token), 3);
    }

    [Fact]
    public void Bits_per_byte_of_a_uniform_model_are_the_bits_of_its_tokens()
    {
        using var model = new Decoder(new DecoderConfiguration { VocabularySize = 300, HiddenSize = 8, IntermediateSize = 8, Layers = 1, Heads = 1, BeginTokenId = 0 });
        using (no_grad())
        {
            foreach (var parameter in model.parameters())
            {
                parameter.zero_();
            }
        }

        var tokenizer = TokenizerJson.Read(Encoding.UTF8.GetBytes(BytePairTrainer.Train("some text", 257).ToJsonString()));
        TextDocument[] documents = [new("a", "Twenty bytes of text"), new("b", "é is two bytes")];

        var measure = new BitsPerByte(documents, tokenizer, context: 7);

        Assert.Equal(35, measure.Bytes);
        Assert.Equal(Math.Log2(300), measure.Measure(model, Token), 5);
    }

    [Fact]
    public void The_vocabulary_written_is_the_vocabulary_read()
    {
        const string text = "In the beginning was the Word, and the Word was with God, and the Word was God.\n\nThe same was in the beginning with God's word.\n";
        var tokenizer = TokenizerJson.Read(Encoding.UTF8.GetBytes(BytePairTrainer.Train(text, 280).ToJsonString()));

        Assert.Equal(280, tokenizer.VocabularySize);
        Assert.Equal(text, tokenizer.Decode(tokenizer.EncodeIds(text).Select(id => (int)id)));
        Assert.Contains(tokenizer.EncodeIds(text), id => tokenizer.TokenText((int)id).Trim() == "Word");
        const string other = "Ünseen 漢字 \u0000 bytes \t too";
        Assert.Equal(other, tokenizer.Decode(tokenizer.EncodeIds(other).Select(id => (int)id)));
    }

    private string WriteText()
    {
        var path = Path.Combine(_folder, "text.txt");
        var random = new Random(1);
        string[] words = ["the", "reader", "reads", "every", "line", "of", "this", "text", "again", "and", "learns", "little", "from", "it"];
        File.WriteAllLines(path, Enumerable.Range(0, 4_000).Select(_ => string.Join(' ', Enumerable.Range(0, 8).Select(_ => words[random.Next(words.Length)]))));
        return path;
    }
}
