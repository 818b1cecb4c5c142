using Heed.Lab.Training;
using Heed.Lab.Videos;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Videos;

public sealed class VideoTests
{
    [Fact]
    public void Clips_follow_their_seed_and_move()
    {
        using var scope = NewDisposeScope();
        var clips = MovingDiscs.Draw(6, 3);
        Assert.Equal([6, MovingDiscs.Frames, MovingDiscs.Channels, MovingDiscs.Side, MovingDiscs.Side], clips.shape);
        Assert.InRange(clips.min().item<float>(), -1, -1);
        Assert.True(clips.max().item<float>() <= 1);
        Assert.True(MovingDiscs.Draw(6, 3).equal(clips).all().item<bool>());
        Assert.True((MovingDiscs.Draw(6, 4) - clips).abs().max().item<float>() > 0.5);
        Assert.True((clips.select(1, 0) - clips.select(1, 7)).abs().amax(1, 2, 3).gt(0.1).all().item<bool>());
    }

    [Fact]
    public void Features_of_neighbours_are_alike()
    {
        using var scope = NewDisposeScope();
        var (query, key, value) = BlobFeatures.Make(4, 8, 8, 2, 16, seed: 1, noise: 0.1);
        Assert.Equal([1, 2, 256, 16], key.shape);
        Assert.Equal(key.shape, query.shape);
        Assert.Equal(key.shape, value.shape);
        double Distance(int apart) => (key.narrow(2, 0, 128) - key.narrow(2, apart, 128)).square().mean().item<float>();
        Assert.True(Distance(1) < 0.5 * Distance(100));
    }

    [Theory]
    [InlineData("full")]
    [InlineData("moba:block=64,k=2")]
    [InlineData("vmoba:threshold=0.2,scope=query,cycle=32")]
    [InlineData("vmoba:k=3")]
    [InlineData("psa:block=32,full=0.3,half=0.5,quarter=0.7,eighth=0.9")]
    public void Every_attention_trains(string attention)
    {
        using var scope = NewDisposeScope();
        var kept = new List<double>();
        using var model = new VideoDenoiser(VideoAttentions.Of(attention, kept.Add), 1);
        var loss = model.Loss(MovingDiscs.Draw(1, 1), 1);
        loss.backward();
        Assert.All(model.parameters(), parameter => Assert.True(parameter.grad!.isfinite().all().item<bool>()));
        Assert.All(kept, share => Assert.InRange(share, 0.01, 1));
        Assert.Equal(attention == "full" ? 0 : VideoDenoiser.Layers, kept.Count);
    }

    [Fact]
    public void A_threshold_of_one_is_full_attention()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var full = new VideoDenoiser(VideoAttentions.Of("full"), 2);
        using var all = new VideoDenoiser(VideoAttentions.Of("vmoba:threshold=1"), 2);
        var clips = MovingDiscs.Draw(1, 5);
        Assert.Equal(full.Loss(clips, 1).item<float>(), all.Loss(clips, 1).item<float>(), 1e-4);
    }

    [Theory]
    [InlineData("spiral", "There is no video attention 'spiral'")]
    [InlineData("vmoba:scope=all", "not 'all'")]
    [InlineData("vmoba:threshold=2", "at most 1")]
    [InlineData("moba:size=3", "has no option 'size'")]
    public void What_does_not_exist_is_told(string attention, string sentence) =>
        Assert.Contains(sentence, Assert.Throws<ArgumentException>(() => VideoAttentions.Of(attention)).Message, StringComparison.Ordinal);

    [Fact]
    public void The_recipe_leaves_weights_a_record_and_a_figure()
    {
        var folder = Directory.CreateTempSubdirectory("heed-video-").FullName;
        try
        {
            var result = TrainingRecipe.Find("video").Run(new() { Output = folder, Steps = 2, Attention = "moba" }, _ => { }, _ => { }, CancellationToken.None);
            Assert.Equal(["model.safetensors", "training.json", "held-out.png", "loss.png"], result.Files.Select(Path.GetFileName));
            Assert.All(result.Files, file => Assert.True(File.Exists(file)));
            Assert.Contains(result.Measures, measure => measure.Name == "kept share");
            Assert.Contains("leave --text out", Assert.Throws<ArgumentException>(() =>
                TrainingRecipe.Find("video").Run(new() { Output = folder, TextFile = "x" }, _ => { }, _ => { }, CancellationToken.None)).Message, StringComparison.Ordinal);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }
}
