using Heed.Heads;
using Heed.Mixers;

namespace Heed.Models.Images;

/// <summary>Agent-DeiT (arXiv 2312.08874): a <see cref="VisionTransformer"/> whose leading blocks attend through agents. Parameter names are the authors' (timm's and <c>attn.an_bias</c>, <c>attn.dwc</c> ...).</summary>
public static class AgentDeiT
{
    /// <summary>The tiny model: 6.0 million parameters at 224 pixels and 1000 classes.</summary>
    /// <param name="imageSize">Side of the pictures, a multiple of 16.</param>
    /// <param name="classes">Number of classes.</param>
    /// <param name="dropPath">Probability of dropping the last block's branches in training.</param>
    public static VisionTransformer Tiny(int imageSize = 224, int classes = 1000, double dropPath = 0) => Make(Published(imageSize, classes, 192, dropPath), 3, [49, 49, 49, 49]);

    /// <summary>The small model: 22.6 million parameters at 224 pixels, 23.1 at 448.</summary>
    /// <param name="imageSize">Side of the pictures, a multiple of 16.</param>
    /// <param name="classes">Number of classes.</param>
    /// <param name="dropPath">Probability of dropping the last block's branches in training.</param>
    public static VisionTransformer Small(int imageSize = 224, int classes = 1000, double dropPath = 0.1) => Make(Published(imageSize, classes, 384, dropPath), 6, [49, 49, 49, 49]);

    /// <summary>The base model: 87.2 million parameters; its first four blocks have 81 agents, the others plain attention.</summary>
    /// <param name="imageSize">Side of the pictures, a multiple of 16.</param>
    /// <param name="classes">Number of classes.</param>
    /// <param name="dropPath">Probability of dropping the last block's branches in training.</param>
    public static VisionTransformer Base(int imageSize = 224, int classes = 1000, double dropPath = 0.3) => Make(Published(imageSize, classes, 768, dropPath), 12, [81, 81, 81, 81], 4);

    /// <summary>A model of any shape.</summary>
    /// <param name="options">The shape; it has a class token.</param>
    /// <param name="heads">Heads of every block.</param>
    /// <param name="agents">Agents of four stages, square numbers: blocks 0 and 1 take the first, 2 and 3 the second, 4 to 9 the third, 10 and 11 (and all after) the last.</param>
    /// <param name="agentLayers">How many leading blocks attend through agents; 0: all.</param>
    /// <param name="projectionBias">Whether the projections to queries, keys and values have biases.</param>
    /// <param name="biasGrid">Side of the grids of the agents' position biases; 0: none.</param>
    /// <exception cref="ArgumentException">There are not four numbers of agents, or a size does not fit.</exception>
    public static VisionTransformer Make(
        VisionTransformerOptions options, int heads, IReadOnlyList<int> agents, int agentLayers = 0, bool projectionBias = true, int biasGrid = 7)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(agents);
        if (agents.Count != 4)
        {
            throw new ArgumentException($"There are agents for four stages, not {agents.Count}.", nameof(agents));
        }

        var leading = agentLayers > 0 ? agentLayers : options.Depth;
        return new(options, place => place.Layer < leading
            ? new AgentAttention2d(new()
            {
                Width = place.Width, Heads = heads, Grid = (place.Grid, place.Grid), Agents = agents[StageOf(place.Layer)], ClassToken = place.ClassToken, ProjectionBias = projectionBias, BiasGrid = biasGrid,
            }) { Site = place.Site, Hooks = place.Hooks }
            : new MultiHeadAttention(new() { Width = place.Width, Heads = heads, QueryBias = projectionBias, KeyBias = projectionBias, ValueBias = projectionBias }, place.Site) { Hooks = place.Hooks });
    }

    private static int StageOf(int layer) => (layer / 2) switch { 0 => 0, 1 => 1, <= 4 => 2, _ => 3 };

    private static VisionTransformerOptions Published(int imageSize, int classes, int width, double dropPath) =>
        new() { ImageSize = imageSize, PatchSize = 16, Classes = classes, Width = width, Depth = 12, ClassToken = true, DropPath = dropPath };
}
