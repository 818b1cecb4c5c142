using Heed.Biases;
using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>The window attention of Swin (arXiv 2103.14030, section 3.2) over a whole grid: windows, perhaps shifted cyclically, each with a learned bias for every offset. Parameters <c>qkv</c>, <c>proj</c>,
/// <c>relative_position_bias_table</c> <c>[(2w - 1)^2, H]</c>. <see cref="ShiftedWindowAttention"/> is that of Swin V2.</summary>
public sealed class WindowAttention : nn.Module<Tensor, Tensor>
{
    // What the authors add to scores between tokens that only the shift made neighbours.
    private const double Apart = -100;

    private readonly Linear qkv;
    private readonly Linear proj;
    private readonly Parameter relative_position_bias_table;
    private readonly int _width;
    private readonly int _heads;
    private readonly (int Height, int Width) _grid;
    private readonly (int Height, int Width) _window;
    private readonly int _shift;
    private readonly Tensor _offsets;
    private readonly Tensor? _mask;

    /// <summary>Makes a layer.</summary>
    /// <param name="width">Width C of a token, a multiple of the heads.</param>
    /// <param name="heads">Heads H.</param>
    /// <param name="grid">Rows and columns of the grid of tokens, multiples of the window.</param>
    /// <param name="window">Tokens on a side of a window.</param>
    /// <param name="shift">By how many tokens windows are shifted, from 0 to below the window.</param>
    /// <param name="hasBias">Whether the projection to queries, keys and values has a bias.</param>
    /// <exception cref="ArgumentException">Sizes do not fit together.</exception>
    public WindowAttention(int width, int heads, (int Height, int Width) grid, int window, int shift = 0, bool hasBias = true)
        : base(nameof(WindowAttention))
    {
        BiasedProjections.HeadWidth(width, heads, 0);
        if (window < 1 || grid.Height < 1 || grid.Width < 1 || grid.Height % window != 0 || grid.Width % window != 0 || shift < 0 || shift >= window)
        {
            throw new ArgumentException($"Windows divide the grid and are shifted by less than a window; {window}, {grid.Height} x {grid.Width} and {shift} were given.", nameof(window));
        }

        (_width, _heads, _grid, _window, _shift) = (width, heads, grid, (window, window), shift);
        qkv = nn.Linear(width, 3 * width, hasBias);
        proj = nn.Linear(width, width);
        var side = (2 * window) - 1;
        relative_position_bias_table = Parameters.Make([side * side, heads], tensor => Parameters.DrawNormal(tensor));
        _offsets = Offsets(window).DetachFromDisposeScope();
        _mask = shift == 0 ? null : Mask().DetachFromDisposeScope();
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>Where the layer stands in its model.</summary>
    public AttentionSite Site { get; init; }

    /// <summary>The model's hooks; null: none.</summary>
    public AttentionHooks? Hooks { get; init; }

    /// <summary>The layer's output.</summary>
    /// <param name="input"><c>[B, H W, C]</c>, row by row.</param>
    /// <returns><c>[B, H W, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        BiasedProjections.Check(input, _width);
        var (height, width) = _grid;
        if (input.shape[1] != height * width)
        {
            throw new ArgumentException($"The grid has {height} x {width} tokens; {input.shape[1]} were given.", nameof(input));
        }

        using var scope = NewDisposeScope();
        var batch = input.shape[0];
        var moved = _shift == 0 ? input : input.view(batch, height, width, _width).roll([-_shift, -_shift], [1, 2]).view(batch, -1, _width);
        var windows = Stripes.Cut(moved, _grid, _window);
        var parts = qkv.forward(windows).chunk(3, -1);
        var tokens = windows.shape[1];
        var bias = relative_position_bias_table.index_select(0, _offsets).view(1, tokens, tokens, _heads).permute(0, 3, 1, 2);
        if (_mask is not null)
        {
            bias = (bias + _mask.to(bias.dtype).unsqueeze(1)).repeat(batch, 1, 1, 1);
        }

        var mixed = Attention.Compute(
            BiasedProjections.Split(parts[0], _heads), BiasedProjections.Split(parts[1], _heads), BiasedProjections.Split(parts[2], _heads), new() { Biases = [new DenseBias(bias)] }, Site, Hooks);
        var output = Stripes.Join(proj.forward(mixed.transpose(1, 2).reshape(windows.shape)), _grid, _window);
        return (_shift == 0 ? output : output.view(batch, height, width, _width).roll([_shift, _shift], [1, 2]).view(batch, -1, _width)).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            _offsets.Dispose();
            _mask?.Dispose();
        }

        base.Dispose(disposing);
    }

    /// <summary>The row of the table of every pair of a window.</summary>
    private static Tensor Offsets(int window)
    {
        var (tokens, side) = (window * window, (2 * window) - 1);
        var rows = new long[tokens * tokens];
        for (var pair = 0; pair < rows.Length; pair++)
        {
            var (query, key) = (pair / tokens, pair % tokens);
            rows[pair] = (((query / window) - (key / window) + window - 1) * side) + (query % window) - (key % window) + window - 1;
        }

        return tensor(rows);
    }

    /// <summary>Keeps apart what the cyclic shift brings together: <c>[windows, N, N]</c>.</summary>
    private Tensor Mask()
    {
        using var scope = NewDisposeScope();
        using Scalar apart = Apart;
        var (height, width) = _grid;
        int Band(int place, int length) => place < length - _window.Height ? 0 : place < length - _shift ? 1 : 2;
        var regions = new float[height * width];
        for (var place = 0; place < regions.Length; place++)
        {
            regions[place] = (3 * Band(place / width, height)) + Band(place % width, width);
        }

        var windows = Stripes.Cut(tensor(regions).view(1, -1, 1), _grid, _window).squeeze(-1);
        return windows.unsqueeze(1).ne(windows.unsqueeze(2)).to(float32).mul(apart).MoveToOuterDisposeScope();
    }
}
