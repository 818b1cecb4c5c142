using Heed.Lab.Mechanisms;
using Xunit;

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

    [Theory]
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
}
