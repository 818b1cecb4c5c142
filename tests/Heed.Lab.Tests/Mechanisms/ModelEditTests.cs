using Heed.Lab.Mechanisms;
using Heed.Lab.Speech;
using Heed.Models.Speech;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Mechanisms;

public sealed class ModelEditTests
{
    [Fact]
    public void Heads_are_named_with_stars_for_all()
    {
        var hooks = new AttentionHooks();
        using (ModelEdit.Parse("heads:scale=0.1/2.*,by=0.5")(new(hooks, 3, 4)))
        {
            Assert.Single(hooks.Installed);
            Assert.Equal([true, false, true], Enumerable.Range(0, 3).Select(layer => hooks.StagesAt(new(layer, AttentionKind.Self, "")) != AttentionStages.None));
        }

        Assert.Empty(hooks.Installed);
    }

    [Fact]
    public void Calibration_leaves_the_outer_layers_alone_and_takes_heads_that_a_search_wrote()
    {
        bool[] Layers(string text)
        {
            var hooks = new AttentionHooks();
            using var applied = ModelEdit.Parse(text)(new(hooks, 6, 4));
            return [.. Enumerable.Range(0, 6).Select(layer => hooks.StagesAt(new(layer, AttentionKind.Self, "")) != AttentionStages.None)];
        }

        Assert.Equal([false, false, true, true, true, false], Layers("act"));
        Assert.Equal([true, false, false, true, false, false], Layers("act:heads=0.1/3.*,beta=0.2,threshold=0.3,first=edit"));
        Assert.Equal([false, false, false, true, false, false], Layers("act:layers=3"));
        Assert.Equal([true, true, false, false, false, false], Layers("act:layers=0-1"));
        var file = Path.Combine(Path.GetTempPath(), $"{Guid.NewGuid()}.json");
        try
        {
            File.WriteAllText(file, "{\"heads\": [[5, 0], [1, 3]], \"model\": \"reader\"}");
            Assert.Equal([false, true, false, false, false, true], Layers($"act:heads={file}"));
            Assert.Contains("of another model", Assert.Throws<ArgumentException>(() => ModelEdit.Parse($"act:heads={file}")(new(new(), 3, 4))).Message);
            File.WriteAllText(file, "[1, 2]");
            Assert.Contains("no list of heads", Assert.Throws<ArgumentException>(() => ModelEdit.Parse($"act:heads={file}")).Message);
        }
        finally
        {
            File.Delete(file);
        }
    }

    [Fact]
    public void Several_edits_go_in_together_or_not_at_all()
    {
        var hooks = new AttentionHooks();
        var target = new EditTarget(hooks, 4, 2);
        using (ModelEdit.Apply([ModelEdit.Parse("act:layers=2"), ModelEdit.Parse("ablate:attention=1,mlp=0/3"), ModelEdit.Parse("stream:at=attention,scale=0.5,positions=-1/0")], target))
        {
            Assert.True(Assert.IsType<Heed.Edits.CalibrationEdit>(Assert.Single(hooks.Installed)).Materialize);
            Assert.Equal(2, hooks.Watchers.Count);
            Assert.True(hooks.Watchers[0].ActsAt(new(3, StreamPoint.FeedForwardOutput, "")));
            Assert.False(hooks.Watchers[0].ActsAt(new(3, StreamPoint.AttentionOutput, "")));
        }

        Assert.Throws<ArgumentException>(() => ModelEdit.Apply([ModelEdit.Parse("act:layers=2"), ModelEdit.Parse("ablate:mlp=9")], target));
        Assert.Empty(hooks.Installed);
        Assert.Empty(hooks.Watchers);
    }

    [Theory]
    [InlineData("heads:scale=0.1,by=-2,kind=cross", AttentionKind.Cross)]
    [InlineData("move:heads=0.1,sink=3,kind=cross", AttentionKind.Cross)]
    [InlineData("heads:scale=0.1,kind=self", AttentionKind.Self)]
    [InlineData("move:heads=0.1,kind=self", AttentionKind.Self)]
    [InlineData("heads:scale=0.1", null)]
    public void Heads_of_one_kind_of_attention_are_edited_and_no_others(string text, AttentionKind? kind)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        manual_seed(4);
        using var model = new SpeechTransformer(SpeechTraining.Configuration(16, 1, 1, 2));
        model.eval();
        var (features, tokens) = (randn(1, 40, 40), tensor(new long[] { 1, 5, 6, 7 }).unsqueeze(0));
        Dictionary<string, (Tensor Before, Tensor After)> Outputs(string? edit)
        {
            var (first, last) = (new OutputProbe(), new OutputProbe());
            using var before = model.Hooks.Install(first);
            using var applied = edit is null ? null : ModelEdit.Apply([ModelEdit.Parse(edit)], EditTarget.Of(model));
            using var after = model.Hooks.Install(last);
            model.forward(features, tokens);
            return first.Outputs.ToDictionary(site => site.Key.Name, site => (site.Value, last.Outputs[site.Key]));
        }

        var (plain, edited) = (Outputs(null), Outputs(text));
        Assert.Equal(3, edited.Count);
        var reached = false;
        foreach (var name in new[] { "model.encoder.layers.0.self_attn", "model.decoder.layers.0.self_attn", "model.decoder.layers.0.encoder_attn" })
        {
            var isEdited = kind is null || kind == AttentionKind.Cross == name.EndsWith("encoder_attn", StringComparison.Ordinal);
            var (before, after) = edited[name];
            Assert.True(before[0, 0].Equals(after[0, 0]), name);
            Assert.Equal(!isEdited, before[0, 1].Equals(after[0, 1]));
            reached |= isEdited;
            if (!reached)
            {
                // Nothing that comes before the edit differs in a bit.
                Assert.True(plain[name].After.Equals(after), name);
            }
        }
    }

    [Fact]
    public void Heads_of_encoder_decoder_models_are_counted_in_each_stack()
    {
        string Error(string text, EditTarget target) => Assert.Throws<ArgumentException>(() => ModelEdit.Parse(text)(target)).Message;
        var target = new EditTarget(new(), 3, 4) { Stacks = new(3, 2, 2, 4) };
        Assert.Contains("layers of cross-attention are 0 to 1", Error("heads:scale=2.0,kind=cross", target));
        Assert.Contains("layer 3, and the model's layers are 0 to 2", Error("heads:scale=3.0", target));
        Assert.Contains("have 2 and 4 heads: name heads that both have, 0 to 1", Error("heads:scale=0.2", target));
        Assert.Contains("have 2 and 4 heads", Error("act:layers=0-2", target));
        Assert.Contains("heads are 0 to 1", Error("heads:scale=2.2", target));
        Assert.Contains("token by token", Error("dormant", target));
        Assert.Contains("reads no such thing", Error("var", target));
        Assert.Contains("reads no such thing", Error("informed", target));
        Assert.Contains("this model is no encoder-decoder", Error("heads:scale=0.0,kind=cross", new(new(), 3, 4)));
        Assert.Contains("this model is no encoder-decoder", Error("move:kind=cross", new(new(), 3, 4)));
        Assert.Contains("self or cross", Error("heads:scale=0.0,kind=joint", target));
        Assert.Empty(target.Hooks.Installed);
        foreach (var text in new[] { "heads:scale=*.*,kind=cross", "heads:scale=1.3,kind=cross", "heads:scale=0.1/2.*", "move:heads=0.0,kind=self" })
        {
            ModelEdit.Parse(text)(target).Dispose();
        }
    }

    [Theory]
    [InlineData("act:beta=2", "from 0 to 1")]
    [InlineData("act:first=perhaps", "keep or edit")]
    [InlineData("act:layers=7", "from 0 to 2")]
    [InlineData("act", "no head to calibrate")]
    [InlineData("ablate", "names the layers")]
    [InlineData("ablate:mlp=x", "whole number")]
    [InlineData("ablate:attention=3", "layers are 0 to 2")]
    [InlineData("stream:at=nowhere", "input, attention, mlp or output")]
    [InlineData("stream:positions=a", "whole number")]
    [InlineData("nothing", "There is no edit")]
    [InlineData("heads:scale=3", "layer.head")]
    [InlineData("heads:sclae=0.1", "sclae")]
    [InlineData("heads:scale=3.0", "layers are 0 to 2")]
    [InlineData("heads:scale=0.4", "heads are 0 to 3")]
    [InlineData("move:heads=0.9", "heads are 0 to 3")]
    [InlineData("move:sink=-1", "sink")]
    [InlineData("dormant:do=wake", "wake")]
    [InlineData("norm:to=4", "needs the layer")]
    [InlineData("norm:layer=3", "layers are 0 to 2")]
    public void Wrong_edits_are_refused_in_a_sentence(string text, string expected) =>
        Assert.Contains(expected, Assert.Throws<ArgumentException>(() => ModelEdit.Parse(text)(new(new(), 3, 4))).Message);

    [Theory]
    [InlineData("move:heads=1.2,sink=1", 1, 0)]
    [InlineData("dormant:do=zero,row=0.4", 1, 0)]
    [InlineData("norm:layer=1,to=4", 0, 1)]
    public void Edits_of_sinks_are_installed_until_they_are_disposed(string text, int calls, int streams)
    {
        var hooks = new AttentionHooks();
        using (ModelEdit.Parse(text)(new(hooks, 3, 4)))
        {
            Assert.Equal((calls, streams), (hooks.Installed.Count, hooks.Watchers.Count));
        }

        Assert.Equal((0, 0), (hooks.Installed.Count, hooks.Watchers.Count));
    }

    private sealed class OutputProbe : AttentionHook
    {
        public Dictionary<AttentionSite, Tensor> Outputs { get; } = [];

        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Output;

        public override Tensor OnOutput(AttentionCall call, Tensor output)
        {
            Outputs[call.Site] = output.clone().DetachFromDisposeScope();
            return output;
        }
    }
}
