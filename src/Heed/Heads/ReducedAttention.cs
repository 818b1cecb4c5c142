using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Attention with as few matrices as one dares (arXiv 2410.13732, sections 3 to 5): query and key matrices separate, shared, collapsed into one, or a triangle; value and output matrices separate, collapsed or
/// left out. No biases. Parameters are bare matrices that rows are multiplied by, <c>w_q</c>, <c>w_k</c>, <c>w_v</c>, <c>w_o</c>, <c>w_qk</c>, <c>w_vo</c> <c>[C, C]</c>, and packed lower triangles
/// <c>w_packed</c>, <c>t_packed</c> <c>[C (C + 1) / 2]</c>, row by row.</summary>
/// <remarks>Scores are divided by the square root of the head's width in every mode: with one collapsed matrix, of C. A symmetric similarity does not make the weights symmetric.</remarks>
public sealed class ReducedAttention : MultiHeadAttention
{
    /// <summary>Makes the module.</summary>
    /// <param name="width">Width C of input and output.</param>
    /// <param name="heads">Number of heads; 1 where a mode has no other.</param>
    /// <param name="queryKey">How queries and keys come from tokens.</param>
    /// <param name="valueOutput">How outputs come from tokens.</param>
    /// <param name="causal">Whether a token sees itself and earlier ones only.</param>
    /// <param name="site">Where the module's attention calls stand in a model.</param>
    /// <exception cref="ArgumentException">The heads do not divide the width, or there are several and a mode has one only.</exception>
    public ReducedAttention(int width, int heads, QueryKeyMode queryKey, ValueOutputMode valueOutput, bool causal = false, AttentionSite site = default)
        : base(
            new()
            {
                Width = width, Heads = heads, QueryKey = queryKey, ValueOutput = valueOutput, QueryBias = false, KeyBias = false, ValueBias = false, OutputBias = false, Names = AttentionNames.Matrices,
                Attention = causal ? AttentionOptions.CausalSelf : AttentionOptions.Default,
            },
            site)
    {
    }

    /// <summary>Parameters of such a module: what the table of the paper's section 3 counts.</summary>
    /// <param name="width">Width C.</param>
    /// <param name="queryKey">How queries and keys come from tokens.</param>
    /// <param name="valueOutput">How outputs come from tokens.</param>
    public static long ParameterCount(long width, QueryKeyMode queryKey, ValueOutputMode valueOutput)
    {
        var matrix = width * width;
        var similarity = queryKey switch
        {
            QueryKeyMode.Separate => 2 * matrix,
            QueryKeyMode.Shared or QueryKeyMode.Collapsed => matrix,
            _ => width * (width + 1) / 2,
        };
        return similarity + (valueOutput switch { ValueOutputMode.Separate => 2 * matrix, ValueOutputMode.Collapsed => matrix, _ => 0 });
    }

    /// <summary>The matrix W of the similarity <c>x_i W x_j</c> of every head, before the division by the square root of its width.</summary>
    /// <returns><c>[H, C, C]</c>, in the graph of the parameters.</returns>
    public Tensor Similarity()
    {
        using var scope = NewDisposeScope();

        // The unit vectors' queries and keys are the rows of the two factors.
        var parameter = parameters().First();
        var units = eye(Options.Width, dtype: parameter.dtype, device: parameter.device).unsqueeze(0);
        var (query, key, _) = Project(units, null);
        return query.permute(0, 2, 1, 3).matmul(key.permute(0, 2, 3, 1)).squeeze(0).MoveToOuterDisposeScope();
    }

    /// <summary>The product of value and output matrix of every head, which maps what the head gathered.</summary>
    /// <returns><c>[H, C, C]</c>, in the graph of the parameters; the identity where there is none.</returns>
    public Tensor ValueOutput()
    {
        using var scope = NewDisposeScope();
        var (width, heads) = (Options.Width, Options.Heads);
        var parameter = parameters().First();
        return (Options.ValueOutput switch
        {
            ValueOutputMode.Separate => get_parameter(Options.Names.Value)!.view(width, heads, HeadWidth).transpose(0, 1).matmul(get_parameter(Options.Names.Output)!.view(heads, HeadWidth, width)),
            ValueOutputMode.Collapsed => get_parameter(Options.Names.ValueOutput)!.unsqueeze(0),
            _ => eye(width, dtype: parameter.dtype, device: parameter.device).unsqueeze(0),
        }).MoveToOuterDisposeScope();
    }
}
