using Heed.Edits;
using Heed.Models.Decoders;
using Heed.Models.Tests.VisionLanguage;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Decoders;

/// <summary>Edits of weights in whole models whose prompt is read in several calls with a cache.</summary>
public class EditedPromptTests
{
    [Theory]
    [InlineData(23)]
    [InlineData(4, 19)]
    [InlineData(9, 5, 9)]
    [InlineData(1, 1, 20, 1)]
    public void RedistributionOfAPromptWithAPictureIsThatOfOneCall(params int[] lengths)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = TinyVisionLanguage.Make();
        using var prompt = model.Prompt(TinyVisionLanguage.Images(1), [1, 7, TinyVisionLanguage.ImageToken, .. Enumerable.Range(3, 12).Select(id => (long)id)]);
        Assert.Equal(23, prompt.Length);
        model.Hooks.Layout = prompt.Layout;
        var unedited = Read(model.Language, prompt.Embeddings, [23]);
        var edit = new RedistributionEdit([0, 5], threshold: 1.5, rho: 1, minimumImageAttention: 0, sinkScale: 0, layers: 0..);
        using var installed = edit.InstallOn(model.Hooks);
        var whole = Read(model.Language, prompt.Embeddings, [23]);
        var sinks = edit.SinksOf(1)!.Select(row => row.ToArray()).ToArray();
        Assert.NotEmpty(sinks[0]);
        Assert.True((whole - unedited).abs().max().item<float>() > 0.01);
        for (var text = 0; text < 2; text++)
        {
            Close(whole, Read(model.Language, prompt.Embeddings, lengths));
            Assert.Equal(sinks[0], edit.SinksOf(1)![0]);
        }
    }

    [Theory]
    [InlineData("llama", 0.05)]
    [InlineData("mistral", 0.25)]
    public void CalibrationOfTheLastLayerEndsAsOneCallDoes(string name, double threshold)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = Make(SmallModels.All[name]);
        var embeddings = model.Embed(arange(3, 23, dtype: int64).unsqueeze(0));
        var unedited = Read(model, embeddings, [20]);
        using var installed = model.Hooks.Install(new CalibrationEdit([(1, 0), (1, 2)], threshold, beta: 0, keepFirst: false));
        var whole = Read(model, embeddings, [20]);
        Assert.True((whole - unedited).abs().max().item<float>() > 0.01);
        // A window shorter than the text forgets what it dropped, and so the keys that could be spared: all sinks are edited here.
        Close(whole.narrow(1, 14, 6), Read(model, embeddings, [3, 11, 6]).narrow(1, 14, 6));
        Close(whole.narrow(1, 19, 1), Read(model, embeddings, [.. Enumerable.Repeat(1, 20)]).narrow(1, 19, 1));
    }

    [Theory]
    [InlineData("llama", 12, 9)]
    [InlineData("mistral", 4, 2)]
    [InlineData("mistral", 12, 11)]
    public void CalibrationIsRefusedAfterACacheWasCut(string name, int read, int cut)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = Make(SmallModels.All[name]);
        using var installed = model.Hooks.Install(new CalibrationEdit([(0, 1)], sinkThreshold: 0.05));
        using var cache = model.CreateCache();
        for (var token = 0; token < read; token++)
        {
            model.forward(Ids(token + 3), cache);
        }

        cache.Truncate(cut);
        foreach (var next in new[] { Ids(7), Ids(7, 8) })
        {
            Assert.Contains($"has seen {read} tokens of this text and the call continues {cut}: a cache that was cut cannot be gone on with", Assert.Throws<InvalidOperationException>(() => model.forward(next, cache)).Message, StringComparison.Ordinal);
            cache.Truncate(cut);
        }

        // From the start it goes on.
        cache.Reset();
        model.forward(Ids(3, 4, 5), cache);
        model.forward(Ids(6), cache);
    }

    private static Tensor Ids(params int[] ids) => tensor(ids.Select(id => (long)id).ToArray()).unsqueeze(0);

    private static Tensor Read(Decoder model, Tensor embeddings, int[] lengths)
    {
        using var cache = model.CreateCache();
        var at = 0;
        return cat([.. lengths.Select(length => model.ForwardEmbeddings(embeddings.narrow(1, (at += length) - length, length), cache))], 1);
    }

    private static Decoder Make(DecoderConfiguration configuration)
    {
        var model = new Decoder(configuration, seed: 3);
        using var generator = new Generator(3);
        foreach (var parameter in model.parameters())
        {
            parameter.normal_(0.05, 0.3, generator);
        }

        return model;
    }

    // Float32 through two layers of sums of some dozen numbers, in another order.
    private static void Close(Tensor expected, Tensor actual) =>
        Assert.True((expected - actual).abs().max().item<float>() <= 1e-5 * Math.Max(1, expected.abs().max().item<float>()), $"off by {(expected - actual).abs().max().item<float>()} of {expected.abs().max().item<float>()}");
}
