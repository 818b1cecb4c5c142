using Heed.Layers;
using Heed.Biases;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>The window attention of Swin V2 (arXiv 2111.09883): cosine similarity with a learned temperature, and a position bias of a small network over log-spaced offsets. Its bias can
/// be cut to a rank once (arXiv 2505.12044, section 4.2), which then stands in place of the dense one. Parameter names are those of the published checkpoints.</summary>
/// <remarks>For windows of one square size. The cut bias has no gradient: it is for inference. Layers whose heads need a high rank stay dense.</remarks>
public sealed class ShiftedWindowAttention : nn.Module<Tensor, Tensor?, Tensor>
{
    // Where the network's output stands before the sigmoid, 16 is what it can reach.
    private const double LargestBias = 16;
    private readonly Linear qkv;
    private readonly Parameter q_bias;
    private readonly Parameter v_bias;
    private readonly Parameter logit_scale;
    private readonly Sequential cpb_mlp;
    private readonly Linear proj;
    private readonly int _width;
    private readonly int _heads;
    private readonly int _window;
    private readonly Tensor _coordinates;
    private readonly Tensor _index;
    private LowRankBias? _factors;

    /// <summary>Makes the module.</summary>
    /// <param name="width">Width of input and output, a multiple of the heads.</param>
    /// <param name="heads">Number of heads H.</param>
    /// <param name="window">Tokens on a side of the window.</param>
    /// <param name="pretrainedWindow">The window of the checkpoint, on whose scale offsets are measured; 0: the same.</param>
    /// <exception cref="ArgumentException">A size is out of range.</exception>
    public ShiftedWindowAttention(int width, int heads, int window, int pretrainedWindow = 0)
        : base(nameof(ShiftedWindowAttention))
    {
        BiasedProjections.HeadWidth(width, heads, 0);
        if (window < 2 || pretrainedWindow is < 0 or 1)
        {
            throw new ArgumentException($"A window has at least 2 tokens on a side, not {window} ({pretrainedWindow} before).", nameof(window));
        }

        (_width, _heads, _window) = (width, heads, window);
        using var scope = NewDisposeScope();
        qkv = nn.Linear(width, 3 * width, hasBias: false);
        (q_bias, v_bias) = (Parameters.Make([width], tensor => tensor.zero_()), Parameters.Make([width], tensor => tensor.zero_()));
        logit_scale = Parameters.Make([heads, 1, 1], tensor => tensor.fill_(Math.Log(10)));
        cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, hasBias: false));
        proj = nn.Linear(width, width);
        (_coordinates, _index) = Offsets(window, pretrainedWindow == 0 ? window : pretrainedWindow);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The factors in use; null: the dense bias.</summary>
    public LowRankBias? Factors => _factors;

    /// <summary>The hooks of the module's attention calls; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    /// <summary>Where the module's attention calls stand in a model.</summary>
    public AttentionSite Site { get; init; }

    /// <summary>The output.</summary>
    /// <param name="input">Windows <c>[windows * B, N, C]</c> with N = window^2, the windows of an image one after another.</param>
    /// <param name="mask">The mask of shifted windows, added to the scores, <c>[windows, N, N]</c>; null: none.</param>
    /// <returns><c>[windows * B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input or the mask has another shape.</exception>
    public override Tensor forward(Tensor input, Tensor? mask = null)
    {
        BiasedProjections.Check(input, _width);
        if (input.shape[1] != _window * _window)
        {
            throw new ArgumentException($"A window of {_window} x {_window} has {_window * _window} tokens; {input.shape[1]} were given.", nameof(input));
        }

        if (mask is not null && (mask.dim() != 3 || mask.shape[1] != input.shape[1] || mask.shape[2] != input.shape[1] || mask.shape[0] < 1 || input.shape[0] % mask.shape[0] != 0))
        {
            throw new ArgumentException(
                $"The mask of shifted windows is [windows, {input.shape[1]}, {input.shape[1]}], the windows dividing {input.shape[0]}; {AttentionShape.Text(mask)} was given.", nameof(mask));
        }

        using var scope = NewDisposeScope();
        using Scalar most = Math.Log(100);
        var bias = cat([q_bias, zeros_like(v_bias), v_bias]);
        var parts = nn.functional.linear(input, qkv.weight!, bias).view(input.shape[0], input.shape[1], 3, _heads, -1).permute(2, 0, 3, 1, 4);
        var query = nn.functional.normalize(parts[0], dim: -1) * logit_scale.clamp(max: most).exp();
        List<AttentionBias> biases = [];
        var shifted = mask?.unsqueeze(1).repeat(input.shape[0] / mask.shape[0], 1, 1, 1);
        if (_factors is { } factors)
        {
            biases.Add(factors);
            if (shifted is not null)
            {
                biases.Add(new DenseBias(shifted));
            }
        }
        else
        {
            var dense = PositionBias().unsqueeze(0);
            biases.Add(new DenseBias(shifted is null ? dense : dense + shifted));
        }

        var options = new AttentionOptions { Scale = 1, Biases = biases };
        var mixed = Attention.Compute(query, nn.functional.normalize(parts[1], dim: -1), parts[2], options, Site, Hooks);
        return proj.forward(mixed.transpose(1, 2).reshape(input.shape)).MoveToOuterDisposeScope();
    }

    /// <summary>The dense bias of the positions, <c>[H, N, N]</c>, from 0 to 16.</summary>
    public Tensor PositionBias()
    {
        using var scope = NewDisposeScope();
        using Scalar most = LargestBias;
        var tokens = _window * _window;
        var table = cpb_mlp.forward(_coordinates.to(logit_scale.dtype)).view(-1, _heads);
        return table.index_select(0, _index).view(tokens, tokens, _heads).permute(2, 0, 1).sigmoid().mul(most).contiguous().MoveToOuterDisposeScope();
    }

    /// <summary>Cuts the bias to a rank and uses that from now on, until the weights change; call again then.</summary>
    /// <param name="rank">Rank of every head; 0: back to the dense bias.</param>
    /// <param name="removeRowMeans">Whether the means of the rows, which no softmax sees, are left out.</param>
    /// <returns>The least share of its energy that a head keeps; 1 for the dense bias.</returns>
    /// <exception cref="ArgumentException">The rank is out of range.</exception>
    public double UseRank(int rank, bool removeRowMeans = true)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        double least = 1;
        LowRankBias? factors = null;
        if (rank != 0)
        {
            using var decomposition = SvdBias.Decompose(PositionBias(), removeRowMeans);
            factors = decomposition.Truncate(rank, type: logit_scale.dtype);
            least = Enumerable.Range(0, _heads).Min(head => decomposition.Energy(head, rank));
            factors.QueryFactors.DetachFromDisposeScope();
            factors.KeyFactors.DetachFromDisposeScope();
        }

        Forget();
        _factors = factors;
        return least;
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            Forget();
            _coordinates.Dispose();
            _index.Dispose();
        }

        base.Dispose(disposing);
    }

    private static (Tensor Coordinates, Tensor Index) Offsets(int window, int scale)
    {
        var side = (2 * window) - 1;
        var coordinates = new float[side * side * 2];
        float Spaced(int offset)
        {
            var eight = 8.0 * offset / (scale - 1);
            return (float)(Math.Sign(eight) * Math.Log2(Math.Abs(eight) + 1) / Math.Log2(8));
        }

        for (var i = 0; i < side * side; i++)
        {
            (coordinates[2 * i], coordinates[(2 * i) + 1]) = (Spaced((i / side) - window + 1), Spaced((i % side) - window + 1));
        }

        var tokens = window * window;
        var index = new long[tokens * tokens];
        for (var i = 0; i < tokens; i++)
        {
            for (var j = 0; j < tokens; j++)
            {
                index[(i * tokens) + j] = (((i / window) - (j / window) + window - 1) * side) + (i % window) - (j % window) + window - 1;
            }
        }

        return (tensor(coordinates).view(side * side, 2).DetachFromDisposeScope(), tensor(index).DetachFromDisposeScope());
    }

    private void Forget()
    {
        _factors?.QueryFactors.Dispose();
        _factors?.KeyFactors.Dispose();
        _factors = null;
    }
}
