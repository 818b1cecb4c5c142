using Heed.Layers;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>How queries and keys come from tokens: which matrices make the similarity <c>x_i W x_j</c>.</summary>
public enum QueryKeyMode
{
    /// <summary>W = Wq Wk^T: a matrix for queries and one for keys.</summary>
    Separate,

    /// <summary>Keys are the queries: W = Wq Wq^T, symmetric and positive semidefinite. "Symmetric" in arXiv 2410.13732.</summary>
    Shared,

    /// <summary>W is one free matrix; keys are the tokens themselves. One head.</summary>
    Collapsed,

    /// <summary>W is a lower triangle mirrored: symmetric, not necessarily semidefinite; keys are the tokens themselves. One head.</summary>
    SymmetricMirror,

    /// <summary>W = T T^T with T lower triangular: symmetric and positive semidefinite; keys are the queries. One head.</summary>
    SymmetricCholesky,
}

/// <summary>How outputs come from tokens.</summary>
public enum ValueOutputMode
{
    /// <summary>A matrix for values, and one that merges the heads.</summary>
    Separate,

    /// <summary>Values are the tokens themselves, one matrix maps what was gathered. One head.</summary>
    Collapsed,

    /// <summary>Values are the tokens themselves and nothing is mapped: every output is a convex combination of inputs. One head.</summary>
    None,
}

/// <summary>What normalises queries and keys, head by head.</summary>
public enum HeadNorm
{
    /// <summary>Nothing.</summary>
    None,

    /// <summary>Root-mean-square normalisation, a weight for all heads.</summary>
    RmsNorm,

    /// <summary>Layer normalisation, a weight and a bias for all heads.</summary>
    LayerNorm,
}

/// <summary>Under which names a <see cref="MultiHeadAttention"/> keeps its parameters.</summary>
public sealed record AttentionNames
{
    /// <summary>One matrix <c>qkv</c> for queries, keys and values (in this order), and <c>proj</c>: timm's vision transformers.</summary>
    public static AttentionNames Fused { get; } = new() { QueryKeyValue = "qkv" };

    /// <summary><c>q_proj</c>, <c>k_proj</c>, <c>v_proj</c>, <c>o_proj</c>: decoders.</summary>
    public static AttentionNames Decoder { get; } = new() { Query = "q_proj", Key = "k_proj", Value = "v_proj", Output = "o_proj" };

    /// <summary>Bare matrices that rows are multiplied by, <c>[in, out]</c>: <c>w_q</c>, <c>w_k</c>, <c>w_v</c>, <c>w_o</c>, <c>w_qk</c>, <c>w_vo</c>.</summary>
    public static AttentionNames Matrices { get; } = new() { Query = "w_q", Key = "w_k", Value = "w_v", Output = "w_o", QueryKey = "w_qk", ValueOutput = "w_vo", AreMatrices = true };

    /// <summary>The fused projection; null: the projections are separate.</summary>
    public string? QueryKeyValue { get; init; }

    /// <summary>The query projection.</summary>
    public string Query { get; init; } = "q";

    /// <summary>The key projection.</summary>
    public string Key { get; init; } = "k";

    /// <summary>The value projection.</summary>
    public string Value { get; init; } = "v";

    /// <summary>The output projection.</summary>
    public string Output { get; init; } = "proj";

    /// <summary>The matrix of <see cref="QueryKeyMode.Collapsed"/>.</summary>
    public string QueryKey { get; init; } = "qk";

    /// <summary>The matrix of <see cref="ValueOutputMode.Collapsed"/>.</summary>
    public string ValueOutput { get; init; } = "vo";

    /// <summary>Whether names are those of bare matrices <c>[in, out]</c>, drawn from Glorot's uniform distribution, instead of linear layers with <c>weight</c> <c>[out, in]</c> and <c>bias</c>.</summary>
    public bool AreMatrices { get; init; }
}

/// <summary>The shape of a <see cref="MultiHeadAttention"/>.</summary>
public sealed record MultiHeadAttentionOptions
{
    /// <summary>Width C of input and output.</summary>
    public required int Width { get; init; }

    /// <summary>Number H of query heads.</summary>
    public required int Heads { get; init; }

    /// <summary>Number of key/value heads, a divisor of <see cref="Heads"/>; 0: as many.</summary>
    public int KeyValueHeads { get; init; }

    /// <summary>Width D of a head; 0: <see cref="Width"/> / <see cref="Heads"/>. The heads together need not be as wide as the input.</summary>
    public int HeadWidth { get; init; }

    /// <summary>How queries and keys come from tokens.</summary>
    public QueryKeyMode QueryKey { get; init; }

    /// <summary>How outputs come from tokens.</summary>
    public ValueOutputMode ValueOutput { get; init; }

    /// <summary>Whether the query projection has a bias. Of a fused projection all of query, key and value or none.</summary>
    public bool QueryBias { get; init; } = true;

    /// <summary>Whether the key projection has a bias.</summary>
    public bool KeyBias { get; init; } = true;

    /// <summary>Whether the value projection has a bias.</summary>
    public bool ValueBias { get; init; } = true;

    /// <summary>Whether the output projection has a bias.</summary>
    public bool OutputBias { get; init; } = true;

    /// <summary>What normalises queries and keys, under the names <c>q_norm</c> and <c>k_norm</c>.</summary>
    public HeadNorm QueryKeyNorm { get; init; }

    /// <summary>Epsilon of those norms.</summary>
    public double NormEpsilon { get; init; } = 1e-6;

    /// <summary>Names of the parameters.</summary>
    public AttentionNames Names { get; init; } = AttentionNames.Fused;

    /// <summary>Makes the projections of query, key, value and output where they are layers, <c>[B, N, in]</c> to <c>[B, N, out]</c>: for projections that are more than a matrix. Null: <see cref="Projection"/>.</summary>
    public Func<ProjectionRole, int, int, bool, nn.Module<Tensor, Tensor>>? MakeProjection { get; init; }

    /// <summary>What the attention call does: scale, causality, window, normaliser and so on.</summary>
    public AttentionOptions Attention { get; init; } = AttentionOptions.Default;
}

/// <summary>What a projection of a <see cref="MultiHeadAttention"/> makes.</summary>
public enum ProjectionRole
{
    /// <summary>Queries.</summary>
    Query,

    /// <summary>Keys.</summary>
    Key,

    /// <summary>Values.</summary>
    Value,

    /// <summary>Queries, keys and values, one after the other.</summary>
    QueryKeyValue,

    /// <summary>The output, from the merged heads.</summary>
    Output,
}

/// <summary>Multi-head attention (arXiv 1706.03762, section 3.2) with exchangeable parts: how queries, keys, values and outputs come from tokens (arXiv 2410.13732), how positions enter, what is done to the outputs of
/// heads, and everything that <see cref="AttentionOptions"/> know. The attention itself goes through <see cref="Attention"/>.</summary>
/// <remarks>Left out: dropout of attention weights, which no fused kernel here has.</remarks>
public class MultiHeadAttention : nn.Module<Tensor, Tensor>
{
    private readonly int _keyValueHeads;
    private readonly int _headWidth;
    private readonly double _scale;
    // Functions, not modules: what a field holds as a module is registered a second time, under the field's name, when the module becomes part of another.
    private readonly Func<Tensor, Tensor>? _fused;
    private readonly Func<Tensor, Tensor>? _query;
    private readonly Func<Tensor, Tensor>? _key;
    private readonly Func<Tensor, Tensor>? _value;
    private readonly Func<Tensor, Tensor> _output;
    private readonly Func<Tensor, Tensor>? _queryNorm;
    private readonly Func<Tensor, Tensor>? _keyNorm;
    private readonly long[] _triangle = [];
    private readonly PositionCode? _positions;
    private readonly HeadOutputTransform? _headOutput;

    /// <summary>Makes the module. Projections start as decoders' do (<see cref="Projection"/>), bare matrices and triangles from Glorot's uniform distribution.</summary>
    /// <param name="options">Its shape.</param>
    /// <param name="site">Where its attention calls stand in a model.</param>
    /// <param name="positions">How positions enter; null: they do not. It belongs to this module from now on.</param>
    /// <param name="headOutput">What is done to the outputs of heads; null: nothing. It belongs to this module from now on.</param>
    /// <exception cref="ArgumentException">Sizes or modes do not fit together; the message says which.</exception>
    public MultiHeadAttention(MultiHeadAttentionOptions options, AttentionSite site = default, PositionCode? positions = null, HeadOutputTransform? headOutput = null)
        : base(nameof(MultiHeadAttention))
    {
        ArgumentNullException.ThrowIfNull(options);
        Options = options;
        Site = site;
        _keyValueHeads = options.KeyValueHeads == 0 ? options.Heads : options.KeyValueHeads;
        _headWidth = Check(options, _keyValueHeads);
        _scale = options.Attention.Scale ?? (1 / Math.Sqrt(_headWidth));
        ValueWidth = options.ValueOutput == ValueOutputMode.Separate ? _headWidth : options.Width;
        var (width, names) = (options.Width, options.Names);
        var (queries, keys) = (options.Heads * _headWidth, _keyValueHeads * _headWidth);
        if (names.QueryKeyValue is { } fused)
        {
            _fused = Layer(fused, ProjectionRole.QueryKeyValue, width, queries + (2 * keys), options.QueryBias).forward;
        }
        else
        {
            switch (options.QueryKey)
            {
                case QueryKeyMode.Separate:
                    _query = Map(names.Query, ProjectionRole.Query, width, queries, options.QueryBias);
                    _key = Map(names.Key, ProjectionRole.Key, width, keys, options.KeyBias);
                    break;
                case QueryKeyMode.Shared:
                    _key = _query = Map(names.Query, ProjectionRole.Query, width, queries, options.QueryBias);
                    break;
                case QueryKeyMode.Collapsed:
                    _query = Map(names.QueryKey, ProjectionRole.Query, width, width, false);
                    break;
                case QueryKeyMode.SymmetricMirror:
                    _triangle = TriangleIndex(width);
                    Bare(MirrorName, [_triangle.Length - (width * (width - 1) / 2)], width);
                    _query = tokens => tokens.matmul(Square(get_parameter(MirrorName)!));
                    break;
                default:
                    _triangle = TriangleIndex(width);
                    Bare(CholeskyName, [_triangle.Length - (width * (width - 1) / 2)], width);
                    _key = _query = tokens => tokens.matmul(Square(get_parameter(CholeskyName)!).tril());
                    break;
            }

            _value = options.ValueOutput == ValueOutputMode.Separate ? Map(names.Value, ProjectionRole.Value, width, keys, options.ValueBias) : null;
        }

        _output = options.ValueOutput switch
        {
            ValueOutputMode.Separate => Map(names.Output, ProjectionRole.Output, queries, width, options.OutputBias),
            ValueOutputMode.Collapsed => Map(names.ValueOutput, ProjectionRole.Output, width, width, options.OutputBias),
            _ => merged => merged,
        };
        _queryNorm = Norm("q_norm");
        _keyNorm = Norm("k_norm");
        (_positions, _headOutput) = (positions, headOutput);
        positions?.Attach(this);
        headOutput?.Attach(this);
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public MultiHeadAttentionOptions Options { get; }

    /// <summary>Where the module's attention calls stand in a model.</summary>
    public AttentionSite Site { get; }

    /// <summary>The hooks that the module's attention calls pass on; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    /// <summary>Width D of queries and keys.</summary>
    public int HeadWidth => _headWidth;

    /// <summary>Width of the values and outputs of a head.</summary>
    public int ValueWidth { get; }

    private static string MirrorName => "w_packed";

    private static string CholeskyName => "t_packed";

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>The module's output.</summary>
    /// <param name="input">Tokens that ask, <c>[B, N, C]</c>.</param>
    /// <param name="context">Tokens that are asked, <c>[B, M, C]</c>; null: the input. Where the input is the end of the context (a memory before it), causality and positions count from there.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input or the context has another shape, or the projection is fused and there is a context.</exception>
    public Tensor forward(Tensor input, Tensor? context)
    {
        CheckTokens(input, nameof(input));
        if (context is not null)
        {
            CheckTokens(context, nameof(context));
            if (_fused is not null)
            {
                throw new ArgumentException("A fused projection makes queries, keys and values of the same tokens: for a context give AttentionNames with separate projections.", nameof(context));
            }
        }

        using var scope = NewDisposeScope();
        var (query, key, value) = Project(input, context);
        query = _queryNorm?.Invoke(query) ?? query;
        key = _keyNorm?.Invoke(key) ?? key;
        return Attend(input, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)).MoveToOuterDisposeScope();
    }

    // Queries, keys and values as [B, N, H, D].
    private protected (Tensor Query, Tensor Key, Tensor Value) Project(Tensor input, Tensor? context)
    {
        var heads = Options.Heads;
        if (_fused is not null)
        {
            var all = _fused(input);
            var (queries, keys) = ((long)heads * _headWidth, (long)_keyValueHeads * _headWidth);
            return (Split(all.narrow(2, 0, queries), heads), Split(all.narrow(2, queries, keys), _keyValueHeads), Split(all.narrow(2, queries + keys, keys), _keyValueHeads));
        }

        var source = context ?? input;
        var query = _query!(input);
        var key = _key is null ? source : ReferenceEquals(_key, _query) && context is null ? query : _key(source);
        return (Split(query, heads), Split(key, _keyValueHeads), Split(_value is null ? source : _value(source), _keyValueHeads));
    }

    private Tensor Attend(Tensor input, Tensor query, Tensor key, Tensor value)
    {
        var attention = Options.Attention;
        if (_positions is not null)
        {
            var placed = _positions.Apply(query, key, _scale);
            (query, key) = (placed.Query, placed.Key);
            attention = attention with { Scale = _scale, Biases = placed.Bias is { } bias ? [.. attention.Biases, bias] : attention.Biases };
        }

        if (_headOutput?.Gates(input) is { } gates)
        {
            attention = attention with { Gate = gates.transpose(1, 2) };
        }

        var heads = Attention.Compute(query, key, value, attention, Site, Hooks).transpose(1, 2);
        heads = _headOutput?.Apply(input, heads) ?? heads;
        return _output(heads.reshape(input.shape[0], input.shape[1], -1));
    }

    private static Tensor Split(Tensor tokens, long heads) => tokens.view(tokens.shape[0], tokens.shape[1], heads, tokens.shape[2] / heads);

    private void CheckTokens(Tensor tokens, string name)
    {
        ArgumentNullException.ThrowIfNull(tokens, name);
        if (tokens.dim() != 3 || tokens.shape[2] != Options.Width)
        {
            throw new ArgumentException($"The {name} must be [batch, tokens, {Options.Width}], not {AttentionShape.Text(tokens)}.", name);
        }
    }

    private static int Check(MultiHeadAttentionOptions options, int keyValueHeads)
    {
        var (width, heads) = (options.Width, options.Heads);
        if (width < 1 || heads < 1 || keyValueHeads < 1 || options.HeadWidth < 0)
        {
            throw new ArgumentException($"Width, heads, key/value heads and head width must be positive, not {width}, {heads}, {keyValueHeads} and {options.HeadWidth}.", nameof(options));
        }

        if (heads % keyValueHeads != 0)
        {
            throw new ArgumentException($"{keyValueHeads} key/value heads do not divide {heads} query heads.", nameof(options));
        }

        if (options.HeadWidth == 0 && width % heads != 0)
        {
            throw new ArgumentException($"A width of {width} does not divide into {heads} heads; give HeadWidth.", nameof(options));
        }

        var headWidth = options.HeadWidth == 0 ? width / heads : options.HeadWidth;
        var single = options.QueryKey is QueryKeyMode.Collapsed or QueryKeyMode.SymmetricMirror or QueryKeyMode.SymmetricCholesky ? $"QueryKey {options.QueryKey}"
            : options.ValueOutput != ValueOutputMode.Separate ? $"ValueOutput {options.ValueOutput}" : null;
        if (single is not null && heads > 1)
        {
            throw new ArgumentException($"{single} is defined for one head, not for {heads}: give 1 head, or the mode Separate{(single[0] == 'Q' ? " or Shared" : "")}.", nameof(options));
        }

        if (single is not null && single[0] == 'Q' && headWidth != width)
        {
            throw new ArgumentException($"{single} compares the tokens themselves, so its head is as wide as they are, {width}, not {headWidth}: leave HeadWidth out.", nameof(options));
        }

        if (options.QueryKey == QueryKeyMode.Shared && keyValueHeads != heads)
        {
            throw new ArgumentException($"QueryKey Shared makes the keys of the queries, so there are as many key/value heads as heads, {heads}, not {keyValueHeads}.", nameof(options));
        }

        if (options.Names.QueryKeyValue is { } fused
            && (options.QueryKey != QueryKeyMode.Separate || options.ValueOutput != ValueOutputMode.Separate || options.QueryBias != options.KeyBias || options.KeyBias != options.ValueBias))
        {
            throw new ArgumentException(
                $"The fused projection '{fused}' holds separate queries, keys and values with a bias for all or none: give AttentionNames without QueryKeyValue for anything else.", nameof(options));
        }

        if (options.Names.AreMatrices && (options.QueryBias || options.KeyBias || options.ValueBias || options.OutputBias || options.MakeProjection is not null))
        {
            throw new ArgumentException("Bare matrices have no biases and are made by nobody else: switch QueryBias, KeyBias, ValueBias, OutputBias and MakeProjection off.", nameof(options));
        }

        return headWidth;
    }

    private nn.Module<Tensor, Tensor> Layer(string name, ProjectionRole role, int inputs, int outputs, bool bias)
    {
        var layer = Options.MakeProjection?.Invoke(role, inputs, outputs, bias) ?? new Projection(inputs, outputs, bias);
        register_module(name, layer);
        return layer;
    }

    private Func<Tensor, Tensor> Map(string name, ProjectionRole role, int inputs, int outputs, bool bias)
    {
        if (!Options.Names.AreMatrices)
        {
            return Layer(name, role, inputs, outputs, bias).forward;
        }

        Bare(name, [inputs, outputs], (inputs + outputs) / 2.0);

        // Read by name: moving the module to another type replaces the parameter.
        return tokens => tokens.matmul(get_parameter(name)!);
    }

    private void Bare(string name, long[] shape, double meanWidth)
    {
        var limit = Math.Sqrt(3 / meanWidth);
        register_parameter(name, Parameters.Make(shape, tensor => tensor.uniform_(-limit, limit)));
    }

    private Func<Tensor, Tensor>? Norm(string name)
    {
        nn.Module<Tensor, Tensor>? norm = Options.QueryKeyNorm switch
        {
            HeadNorm.RmsNorm => new RmsNorm(_headWidth, Options.NormEpsilon),
            HeadNorm.LayerNorm => nn.LayerNorm(_headWidth, Options.NormEpsilon),
            _ => null,
        };
        if (norm is not null)
        {
            register_module(name, norm);
        }

        return norm is null ? null : norm.forward;
    }

    // Where the elements of a square lie in its lower triangle, row by row; those above the diagonal where their mirror images do.
    private static long[] TriangleIndex(int width)
    {
        var index = new long[width * width];
        for (var row = 0; row < width; row++)
        {
            for (var column = 0; column < width; column++)
            {
                var (larger, smaller) = (Math.Max(row, column), Math.Min(row, column));
                index[(row * width) + column] = (larger * (larger + 1L) / 2) + smaller;
            }
        }

        return index;
    }

    private Tensor Square(Tensor packed) => packed.index_select(0, tensor(_triangle, device: packed.device)).view(Options.Width, Options.Width);
}
