using Heed.Layers;
using Heed.Heads;
using Heed.Lab.Mechanisms;
using Heed.Masks;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Needle;

/// <summary>What a <see cref="NeedleModel"/> attends with.</summary>
public enum NeedleAttention
{
    /// <summary>Superlinear attention.</summary>
    Superlinear,

    /// <summary>Superlinear attention whose search queries are noise: a control.</summary>
    RandomRouting,

    /// <summary>Superlinear attention over keys that know nothing of their neighbourhood: a control.</summary>
    WithoutAccumulation,

    /// <summary>The most recent keys alone.</summary>
    Window,

    /// <summary>All keys.</summary>
    Dense,
}

/// <summary>
/// A small model with one attention, asked once at the end of a text: embedding, a causal convolution over three tokens, an accumulator with learned decay (the step before the search, which the authors leave to Mamba layers), and
/// superlinear attention (arXiv 2601.18401), or what it is compared with.
/// </summary>
public sealed class NeedleModel : nn.Module<Tensor, Tensor>
{
    /// <summary>Spans, window and factors of the experiment.</summary>
    public static readonly SuperlinearOptions DefaultSearch = new() { SwIndex = 2, NumSpans = 2, BackwardFactor = 2, ForwardFactor = 1 };

    private const int Width = 32;
    private const int DecayGroups = 4;
    private const int Taps = 3;

    // As many keys as window and spans have together at the length that is trained on.
    private const int DefaultWindow = 66;

    private readonly NeedleAttention _attention;
    private readonly SuperlinearOptions _search;
    private readonly long _window;
    private readonly Generator _noise;
    private readonly Parameter embedding;
    private readonly Parameter taps;
    private readonly Parameter decay;
    private readonly LayerNorm norm;
    private readonly LayerNorm joint_norm;
    private readonly Projection input_proj;
    private readonly Projection gate_proj;
    private readonly Projection q_search_proj;
    private readonly Projection q_proj;
    private readonly Projection k_proj;
    private readonly Projection v_proj;
    private readonly Projection head;

    /// <summary>Makes a model with random weights.</summary>
    /// <param name="attention">What it attends with.</param>
    /// <param name="seed">Seed of the weights.</param>
    /// <param name="search">Options of the search; null: <see cref="DefaultSearch"/>.</param>
    /// <param name="window">Keys of <see cref="NeedleAttention.Window"/>.</param>
    public NeedleModel(NeedleAttention attention, int seed, SuperlinearOptions? search = null, long window = DefaultWindow)
        : base(nameof(NeedleModel))
    {
        (_attention, _search, _window) = (attention, search ?? DefaultSearch, window);
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)seed);
        _noise = new Generator((ulong)seed + 1);
        Parameter Random(double deviation, params long[] shape)
        {
            var parameter = new Parameter(randn(shape, generator: generator) * deviation);
            parameter.DetachFromDisposeScope();
            return parameter;
        }

        Projection Linear(int inputs, int outputs)
        {
            var projection = new Projection(inputs, outputs, true, generator);
            using var still = no_grad();
            projection.Weight.normal_(0, 1 / Math.Sqrt(inputs), generator);
            return projection;
        }

        embedding = Random(1, NeedleTask.VocabularySize, Width);
        taps = Random(1 / Math.Sqrt(Taps), Width, Taps);
        decay = new Parameter(tensor(new[] { 0f, 1, 2, 3 }).DetachFromDisposeScope());
        norm = nn.LayerNorm(Width);
        joint_norm = nn.LayerNorm(2 * Width);
        (input_proj, gate_proj) = (Linear(Width, Width), Linear(Width, Width));
        (q_search_proj, q_proj, k_proj, v_proj) = (Linear(2 * Width, Width), Linear(2 * Width, Width), Linear(2 * Width, Width), Linear(2 * Width, Width));
        head = Linear(Width, NeedleTask.Values);
        RegisterComponents();
    }

    /// <summary>The attention of a name on the command line: <c>superlinear</c> with its options, <c>window:w=66</c> or <c>dense</c>.</summary>
    /// <exception cref="ArgumentException">It is another one, or an option is wrong.</exception>
    public static NeedleModel Create(string text, int seed)
    {
        var specification = Specification.Parse(text);
        var search = DefaultSearch;
        var window = DefaultWindow;
        var attention = specification.Name switch
        {
            "superlinear" => NeedleAttention.Superlinear,
            "window" => NeedleAttention.Window,
            "dense" => NeedleAttention.Dense,
            _ => throw new ArgumentException($"The recipe needle trains with superlinear, window or dense attention, not with '{specification.Name}'."),
        };
        if (attention == NeedleAttention.Superlinear)
        {
            search = SearchMechanisms.SuperlinearOf(specification, DefaultSearch);
        }
        else if (attention == NeedleAttention.Window)
        {
            window = specification.Integer("w", DefaultWindow, 1);
        }

        specification.RefuseUnread();
        return new(attention, seed, search, window);
    }

    /// <summary>Number of trainable numbers.</summary>
    public long ParameterCount => parameters().Sum(parameter => parameter.numel());

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => Answer(input).Logits;

    /// <summary>The answer to the question at the end of each text.</summary>
    /// <param name="texts">int64 <c>[B, L]</c>.</param>
    /// <returns>Logits of the values <c>[B, values]</c>, and which keys the question attended to, boolean <c>[B, L]</c>.</returns>
    public (Tensor Logits, Tensor Seen) Answer(Tensor texts)
    {
        using var scope = NewDisposeScope();
        var (batch, length) = (texts.size(0), texts.size(1));
        var embedded = embedding.index_select(0, texts.reshape(-1)).view(batch, length, Width).transpose(1, 2);
        var mixed = nn.functional.conv1d(nn.functional.pad(embedded, [Taps - 1, 0]), taps.unsqueeze(1), groups: Width).transpose(1, 2);
        var hidden = norm.forward(embedded.transpose(1, 2) + mixed);
        var accumulated = _attention == NeedleAttention.WithoutAccumulation ? zeros_like(hidden) : Accumulate(hidden);
        var state = joint_norm.forward(cat([hidden, accumulated], -1));
        var last = state.narrow(1, length - 1, 1);
        Tensor Head(Projection projection, Tensor of) => projection.forward(of).unsqueeze(1);
        var (query, key, value) = (Head(q_proj, last), Head(k_proj, state), Head(v_proj, state));
        Tensor output, seen;
        switch (_attention)
        {
            case NeedleAttention.Dense:
                output = Attention.Compute(query, key, value);
                seen = ones(batch, length, dtype: @bool);
                break;
            case NeedleAttention.Window:
                output = Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { WindowBefore = _window - 1 });
                seen = arange(length).ge(length - _window).expand(batch, length);
                break;
            default:
                var search = _attention == NeedleAttention.RandomRouting ? randn(query.shape, generator: _noise) : Head(q_search_proj, last);
                var (mixture, _, spans) = SuperlinearAttention.Compute(search, query, key, value, [length - 1], _search);
                output = mixture;
                var column = arange(length);
                var (start, end) = (spans.Start().view(batch, -1, 1), spans.End().view(batch, -1, 1));
                seen = column.ge(start).logical_and(column.le(end)).logical_and(start.ge(0)).any(1).logical_or(column.ge(length - _search.Window));
                break;
        }

        return (head.forward(output.reshape(batch, Width)).MoveToOuterDisposeScope(), seen.MoveToOuterDisposeScope());
    }

    /// <summary>The share of texts that are answered, and the share in which the question attends to the value's place.</summary>
    public (double Accuracy, double Hit) Measure(NeedleTask task, int texts, int seed)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (inputs, values, places) = task.Draw(texts, seed);
        var (logits, seen) = Answer(inputs);
        return (logits.argmax(-1).eq(values).to(float64).mean().item<double>(), seen.gather(1, places.unsqueeze(-1)).to(float64).mean().item<double>());
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            _noise.Dispose();
        }

        base.Dispose(disposing);
    }

    /// <summary>y_t = a y_(t-1) + u_t with u the gated input and a decay a of each group of channels, as a product with the powers of a.</summary>
    private Tensor Accumulate(Tensor hidden)
    {
        var (batch, length) = (hidden.size(0), hidden.size(1));
        var input = sigmoid(gate_proj.forward(hidden)) * input_proj.forward(hidden);
        var distance = arange(length).unsqueeze(-1) - arange(length);
        var powers = (nn.functional.logsigmoid(decay).view(-1, 1, 1) * distance.clamp_min(0)).exp() * distance.ge(0);
        return matmul(powers, input.view(batch, length, DecayGroups, Width / DecayGroups).transpose(1, 2)).transpose(1, 2).reshape(batch, length, Width);
    }
}
