using Heed.Biases;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>Agent attention (arXiv 2312.08874, equations 3 to 5): a few agents read all keys, then every query reads the agents. <c>softmax(s Q A^T + B2) softmax(s A K^T + B1) V</c>: O(N n D) for n agents, and never
/// N x M of anything.</summary>
/// <remarks>Both steps are calls of the door, at the sites <c>NAME.aggregate</c> (agents over keys) and <c>NAME.broadcast</c> (queries over agents), so probes and edits see two maps.</remarks>
public static class AgentAttention
{
    /// <summary>Attention through agents.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>.</param>
    /// <param name="agents"><c>[B, H, n, D]</c>.</param>
    /// <param name="key"><c>[B, H, M, D]</c>.</param>
    /// <param name="value"><c>[B, H, M, Dv]</c>.</param>
    /// <param name="biasAgentKey">B1, broadcastable to <c>[B, H, n, M]</c>; null: none.</param>
    /// <param name="biasQueryAgent">B2, broadcastable to <c>[B, H, N, n]</c>; null: none.</param>
    /// <param name="scale">Factor s of both products; null: 1 / sqrt(D).</param>
    /// <param name="broadcastScale">Factor of the second product where it differs; null: the same.</param>
    /// <param name="site">Where the call stands in its model.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <returns><c>[B, H, N, Dv]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes, types or devices do not fit together; the message says which.</exception>
    public static Tensor Compute(
        Tensor query, Tensor agents, Tensor key, Tensor value, Tensor? biasAgentKey = null, Tensor? biasQueryAgent = null, double? scale = null, double? broadcastScale = null,
        AttentionSite site = default, AttentionHooks? hooks = null)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(agents);
        if (agents.dim() != 4 || query.dim() != 4 || agents.shape[2] < 1 || agents.shape[0] != query.shape[0] || agents.shape[1] != query.shape[1] || agents.shape[3] != query.shape[3])
        {
            throw new ArgumentException($"Agents are [batch, heads, agents, width] with at least one agent, otherwise as the queries {AttentionShape.Text(query)}; {AttentionShape.Text(agents)} was given.", nameof(agents));
        }

        using var scope = NewDisposeScope();
        var summaries = Attention.Compute(agents, key, value, Options(biasAgentKey, scale), Aggregate(site, hooks), hooks);
        return Attention.Compute(query, agents, summaries, Options(biasQueryAgent, broadcastScale ?? scale), Broadcast(site, hooks), hooks).MoveToOuterDisposeScope();
    }

    /// <summary>Agents as the means of the cells of a grid: <c>side x side</c> cells, of which cell i covers rows <c>floor(i H / side)</c> to <c>ceil((i + 1) H / side) - 1</c>, so that cells overlap where the side does not
    /// divide the grid.</summary>
    /// <param name="tokens">Tokens row by row, <c>[B, H W, C]</c> (queries before they are split into heads).</param>
    /// <param name="height">Rows H.</param>
    /// <param name="width">Columns W.</param>
    /// <param name="side">Cells along a side.</param>
    /// <returns><c>[B, side^2, C]</c>.</returns>
    /// <exception cref="ArgumentException">The tokens are not a grid of that size, or a number is below 1.</exception>
    public static Tensor Pool(Tensor tokens, long height, long width, long side)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 3 || height < 1 || width < 1 || side < 1 || tokens.shape[1] != height * width)
        {
            throw new ArgumentException($"Agents are pooled from a grid [batch, {height} x {width}, channels] into {side} x {side} cells; {AttentionShape.Text(tokens)} was given.", nameof(tokens));
        }

        using var scope = NewDisposeScope();
        var (batch, channels) = (tokens.shape[0], tokens.shape[2]);
        if (height % side == 0 && width % side == 0)
        {
            return tokens.reshape(batch, side, height / side, side, width / side, channels).mean([2L, 4L]).view(batch, side * side, channels).MoveToOuterDisposeScope();
        }

        var grid = tokens.transpose(1, 2).reshape(batch, channels, height, width);
        return nn.functional.adaptive_avg_pool2d(grid, [side, side]).flatten(2).transpose(1, 2).MoveToOuterDisposeScope();
    }

    /// <summary>The site of the agents' call over the keys.</summary>
    /// <param name="site">The module's site.</param>
    public static AttentionSite AggregateSite(AttentionSite site) => new(site.Layer, AttentionKind.Cross, $"{site.Name}.aggregate");

    /// <summary>The site of the queries' call over the agents.</summary>
    /// <param name="site">The module's site.</param>
    public static AttentionSite BroadcastSite(AttentionSite site) => new(site.Layer, AttentionKind.Cross, $"{site.Name}.broadcast");

    /// <summary>The two maps, in libtorch operations: <c>[B, H, n, M]</c> (where each agent looks) and <c>[B, H, N, n]</c> (which agents each query reads).</summary>
    internal static (Tensor AgentKey, Tensor QueryAgent) Maps(Tensor query, Tensor agents, Tensor key, Tensor? biasAgentKey, Tensor? biasQueryAgent, double? scale) =>
        (PlainAttention.Weights(agents, key, Options(biasAgentKey, scale)), PlainAttention.Weights(query, agents, Options(biasQueryAgent, scale)));

    private static AttentionSite Aggregate(AttentionSite site, AttentionHooks? hooks) => hooks is { Installed.Count: > 0 } ? AggregateSite(site) : default;

    private static AttentionSite Broadcast(AttentionSite site, AttentionHooks? hooks) => hooks is { Installed.Count: > 0 } ? BroadcastSite(site) : default;

    private static AttentionOptions Options(Tensor? bias, double? scale) =>
        bias is null && scale is null ? AttentionOptions.Default : new() { Scale = scale, Biases = bias is null ? [] : [new DenseBias(bias)] };
}
