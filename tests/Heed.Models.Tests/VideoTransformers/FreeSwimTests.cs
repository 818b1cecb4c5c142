using Heed.Models.VideoTransformers;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.VideoTransformers;

public sealed class FreeSwimTests
{
    private static readonly FreeSwimOptions s_narrow = new() { HalfHeight = 1, HalfWidth = 1 };

    [Fact]
    public void With_a_window_over_everything_both_branches_are_the_trained_model()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new WanTransformer(WanTransformerTests.Small, seed: 2);
        var (latents, time, prompt) = WanTransformerTests.Inputs();
        var plain = model.forward(latents, time, prompt);
        using (var session = FreeSwimEdit.Apply(model, new() { HalfHeight = 10, HalfWidth = 10, LogRatio = 1 }))
        {
            var prediction = session.Step(latents, time, prompt);
            Close(plain.expand(2, -1, -1, -1, -1), prediction.Conditional);
            Close(plain, prediction.Guided);
        }

        Assert.True(plain.equal(model.forward(latents, time, prompt)).all().item<bool>());
    }

    [Fact]
    public void The_override_acts_and_leaves_the_full_branch_alone()
    {
        using var scope = NewDisposeScope();
        using var model = new WanTransformer(WanTransformerTests.Small, seed: 2);
        // Initial weights are so small that attention is all but uniform.
        using (no_grad())
        {
            model.parameters().Where(parameter => parameter.dim() == 2).ToList().ForEach(parameter => parameter.mul_(10));
        }

        var (latents, time, prompt) = WanTransformerTests.Inputs();
        Tensor Predict(FreeSwimOptions options)
        {
            using var session = FreeSwimEdit.Apply(model, options);
            return session.Step(latents, time, prompt).Conditional;
        }

        var (with, without) = (Predict(s_narrow), Predict(s_narrow with { Overrides = false }));
        Close(without[1], with[1]);
        Assert.False(with[0].allclose(without[0], 1e-6, 1e-6));
        Assert.False(with[0].allclose(with[1], 1e-6, 1e-6));
    }

    [Fact]
    public void A_cache_refreshes_at_its_interval_and_serves_in_between()
    {
        using var scope = NewDisposeScope();
        using var model = new WanTransformer(WanTransformerTests.Small, seed: 2);
        var (latents, time, prompt) = WanTransformerTests.Inputs();
        using var session = FreeSwimEdit.Apply(model, s_narrow with { CacheInterval = 3 });
        Assert.Empty(session.Cache);
        var rows = new List<long>();
        var caches = new List<Tensor>();
        for (var step = 0; step < 6; step++)
        {
            var prediction = session.Step(latents * (step + 1), time, prompt, -prompt);
            rows.Add(prediction.Conditional.shape[0]);
            Assert.Equal(1, prediction.Unconditional.shape[0]);
            caches.Add(session.Cache[1].clone());
        }

        Assert.Equal([2, 1, 1, 2, 1, 1], rows);
        Assert.Equal(6, session.Steps);
        Assert.True(caches[0].equal(caches[2]).all().item<bool>());
        Assert.False(caches[2].equal(caches[3]).all().item<bool>());
        // Guidance as stated, and an unconditional pass that no cache reaches.
        var last = session.Step(latents, time, prompt, -prompt, guidance: 3);
        Close(last.Unconditional.narrow(0, 0, 1) + (3 * (last.Conditional.narrow(0, 0, 1) - last.Unconditional.narrow(0, 0, 1))), last.Guided);
    }

    [Fact]
    public void What_a_session_cannot_do_is_told_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        using var model = new WanTransformer(WanTransformerTests.Small);
        var (latents, time, prompt) = WanTransformerTests.Inputs();
        void Says<T>(string sentence, Action call)
            where T : Exception => Assert.Contains(sentence, Assert.Throws<T>(call).Message, StringComparison.Ordinal);
        using (var session = FreeSwimEdit.Apply(model, s_narrow with { CacheInterval = 2 }))
        {
            Says<InvalidOperationException>("nothing is remembered", () => session.Step(latents, time, prompt, refresh: false));
            Says<ArgumentException>("one video from one prompt", () => session.Step(latents, time, prompt.expand(2, -1, -1)));
            Says<ArgumentException>("edited already", () => FreeSwimEdit.Apply(model, s_narrow));
            session.Step(latents, time, prompt);
            Says<ArgumentException>("a session samples one resolution", () => session.Step(latents.narrow(4, 0, 8), time, prompt, refresh: false));
            Says<ArgumentException>("a batch of two", () =>
            {
                model.Blocks.ToList().ForEach(block => Assert.NotNull(block.SelfAttention.Path));
                var layers = new FreeSwimLayers(s_narrow, null) { Mode = FreeSwimMode.Dual };
                layers.Self.Compute(model.Blocks[0].SelfAttention, zeros(1, 48, 24), null, null, new(2, 4, 6));
            });
        }

        Says<ArgumentException>("a cache interval from 1", () => FreeSwimEdit.Apply(model, s_narrow with { CacheInterval = 0 }));
    }

    private static void Close(Tensor expected, Tensor actual) => Assert.True((expected - actual).abs().max().item<float>() <= 1e-4f * (1 + expected.abs().max().item<float>()));
}
