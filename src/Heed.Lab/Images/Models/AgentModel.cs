using Heed.Mixers;
using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>Agent attention (arXiv 2312.08874) in an isotropic vision model, with its parts on and off, and linear attention in its place.</summary>
internal static class AgentModel
{
    public static ImageModel Entry { get; } = new(
        "agent", "agent[:patch=4,width=64,depth=3,heads=4,ratio=2,agents=9,conv=on|off,bias=on|off]",
        "Agent attention: a few agents read all tokens, all tokens read the agents; position biases and a convolution of the values beside.", "agent-attention",
        (specification, task) =>
        {
            var (heads, agents) = (specification.Integer("heads", 4, 1), specification.Integer("agents", 9, 1));
            var (convolution, bias) = (IsOn(specification, "conv"), IsOn(specification, "bias"));
            return new VisionTransformer(BaselineModels.Shape(specification, task), place => new AgentAttention2d(new()
            {
                Width = place.Width, Heads = heads, Grid = (place.Grid, place.Grid), Agents = agents, Convolution = convolution, BiasGrid = bias ? Math.Min(7, place.Grid) : 0,
            }) { Site = place.Site, Hooks = place.Hooks });
        });

    public static ImageModel Linear { get; } = new(
        "linear", "linear[:patch=4,width=64,depth=3,heads=4,ratio=2]", "Linear attention with elu + 1 (arXiv 2006.16236).", null,
        (specification, task) =>
        {
            var heads = specification.Integer("heads", 4, 1);
            return new VisionTransformer(BaselineModels.Shape(specification, task), place => new LinearAttention(place.Width, heads));
        });

    private static bool IsOn(Specification specification, string option) => specification.Text(option) switch
    {
        null or "on" => true,
        "off" => false,
        var other => throw new ArgumentException($"{option} of '{specification.Name}' is on or off, not '{other}'."),
    };
}
