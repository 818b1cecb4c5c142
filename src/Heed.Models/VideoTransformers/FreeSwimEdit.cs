using Heed.Heads;
using Heed.Kernels;
using Heed.Masks;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models.VideoTransformers;

/// <summary>How FreeSwim is applied.</summary>
public sealed record FreeSwimOptions
{
    /// <summary>Rows of tokens that a query of the window branch sees on either side; half of the training grid's.</summary>
    public required long HalfHeight { get; init; }

    /// <summary>Columns of tokens seen on either side.</summary>
    public required long HalfWidth { get; init; }

    /// <summary>Steps from one run of the full branch to the next; null: no cache, the full branch runs at every step, beside the unconditional pass, too.</summary>
    /// <remarks>1 is not the same as null: with a cache the unconditional pass is the window branch alone.</remarks>
    public int? CacheInterval { get; init; }

    /// <summary><c>log(N_eff) / log(N_train)</c> in the scale of self-attention, <c>sqrt(ratio / D)</c>; 1: the scale of training. The published code has <c>log(2 * 1560) / log(1560)</c> at every resolution.</summary>
    public double LogRatio { get; init; } = Math.Log(2 * 30 * 52) / Math.Log(30 * 52);

    /// <summary>Whether the cross-attention output of the full branch replaces that of the window branch. Off, the branches do not meet: for comparison.</summary>
    public bool Overrides { get; init; } = true;

    /// <summary>Whether windows are cut at borders instead of moved inwards: for comparison.</summary>
    public bool CutsWindows { get; init; }
}

/// <summary>What one step predicts.</summary>
/// <param name="Guided">The window branch's prediction with guidance, <c>[1, C, F, H, W]</c>.</param>
/// <param name="Conditional">The prediction with the prompt: rows window and full, <c>[2, C, F, H, W]</c>, or one row where the step has no full branch.</param>
/// <param name="Unconditional">The prediction with the negative prompt, likewise.</param>
public sealed record FreeSwimPrediction(Tensor Guided, Tensor Conditional, Tensor Unconditional);

/// <summary>Lets a trained video transformer draw frames larger than it was trained on, without training (FreeSwim, arXiv 2511.14712): self-attention within an inward window of the training size, while a second branch with full
/// attention runs beside it and its cross-attention output replaces that of the window branch in every block.</summary>
public static class FreeSwimEdit
{
    /// <summary>Installs the edit.</summary>
    /// <param name="model">The trained model.</param>
    /// <param name="options">How to apply it.</param>
    /// <returns>The session that samples with it. Disposing it gives the model its plain attention back.</returns>
    /// <exception cref="ArgumentException">An option is out of range, or the model is edited already.</exception>
    public static FreeSwimSession Apply(WanTransformer model, FreeSwimOptions options) => new(model, options);
}

/// <summary>Samples one video with FreeSwim: keeps the full branch's cross-attention output of every block from one refresh to the next.</summary>
public sealed class FreeSwimSession : IDisposable
{
    private readonly WanTransformer _model;
    private readonly FreeSwimOptions _options;
    private readonly FreeSwimLayers[] _layers;
    private long _step;

    internal FreeSwimSession(WanTransformer model, FreeSwimOptions options)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(options);
        if (options.HalfHeight < 0 || options.HalfWidth < 0 || options.CacheInterval < 1 || !(options.LogRatio > 0))
        {
            throw new ArgumentException(
                $"Half windows are from 0, a cache interval from 1 and a log ratio above 0; {options.HalfHeight}, {options.HalfWidth}, {options.CacheInterval} and {options.LogRatio} were given.", nameof(options));
        }

        if (model.Blocks.Any(block => block.SelfAttention.Path is not null || block.CrossAttention.Path is not null))
        {
            throw new ArgumentException("The model's attention is edited already: dispose the earlier session first.", nameof(model));
        }

        (_model, _options) = (model, options);
        _layers = [.. model.Blocks.Select(block => new FreeSwimLayers(options, Math.Sqrt(options.LogRatio / block.SelfAttention.HeadWidth)))];
        foreach (var (block, layers) in model.Blocks.Zip(_layers))
        {
            (block.SelfAttention.Path, block.CrossAttention.Path) = (layers.Self, layers.Cross);
        }
    }

    /// <summary>Steps taken.</summary>
    public long Steps => _step;

    /// <summary>The remembered cross-attention output of each block before its output projection, <c>[1, N, heads, D]</c>; empty before the first refresh and without a cache.</summary>
    public IReadOnlyList<Tensor> Cache => [.. _layers.Select(layer => layer.Cached).OfType<Tensor>()];

    /// <summary>The prediction of the next step.</summary>
    /// <param name="latents">The latents, <c>[1, C, F, H, W]</c>. Both branches start from them: what the full branch would make of its own is thrown away at every step.</param>
    /// <param name="timestep">The time step, <c>[1]</c>.</param>
    /// <param name="prompt">The prompt's embeddings, <c>[1, T, text width]</c>.</param>
    /// <param name="negativePrompt">The negative prompt's, likewise; null: no guidance, no unconditional pass.</param>
    /// <param name="guidance">Guidance g: <c>u + g (c - u)</c>.</param>
    /// <param name="refresh">Whether to run the full branch; null: as the cache interval says.</param>
    /// <exception cref="ArgumentException">There is more than one video or prompt, or the latents have another size than when the cache was filled.</exception>
    /// <exception cref="InvalidOperationException">Nothing is remembered yet that could be used again.</exception>
    public FreeSwimPrediction Step(Tensor latents, Tensor timestep, Tensor prompt, Tensor? negativePrompt = null, double guidance = 5, bool? refresh = null)
    {
        ArgumentNullException.ThrowIfNull(latents);
        ArgumentNullException.ThrowIfNull(prompt);
        if (latents.shape[0] != 1 || prompt.shape[0] != 1 || (negativePrompt is not null && negativePrompt.shape[0] != 1))
        {
            throw new ArgumentException(
                $"A session samples one video from one prompt; {latents.shape[0]} latents, {prompt.shape[0]} prompts and {negativePrompt?.shape[0] ?? 1} negative prompts were given.", nameof(latents));
        }

        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var isCached = _options.CacheInterval is not null;
        var isFull = refresh ?? (!isCached || _step % _options.CacheInterval!.Value == 0);
        var conditional = Run(latents, timestep, prompt, isFull ? (isCached ? FreeSwimMode.Refresh : FreeSwimMode.Dual) : FreeSwimMode.Reuse);
        var unconditional = negativePrompt is null ? conditional : Run(latents, timestep, negativePrompt, isCached ? FreeSwimMode.WindowOnly : FreeSwimMode.Dual);
        var (with, without) = (conditional.narrow(0, 0, 1), unconditional.narrow(0, 0, 1));
        using Scalar factor = guidance;
        var guided = negativePrompt is null ? with.clone() : without + (with - without).mul(factor);
        _step++;
        return new(guided.MoveToOuterDisposeScope(), conditional.MoveToOuterDisposeScope(), negativePrompt is null ? conditional : unconditional.MoveToOuterDisposeScope());
    }

    /// <summary>Gives the model its plain attention back and forgets what was remembered.</summary>
    public void Dispose()
    {
        foreach (var (block, layers) in _model.Blocks.Zip(_layers))
        {
            layers.Forget();
            (block.SelfAttention.Path, block.CrossAttention.Path) = (null, null);
        }
    }

    private Tensor Run(Tensor latents, Tensor timestep, Tensor prompt, FreeSwimMode mode)
    {
        foreach (var layer in _layers)
        {
            layer.Mode = mode;
        }

        // Where both rows would be the same, one is enough.
        return _model.forward(mode is FreeSwimMode.Dual or FreeSwimMode.Refresh ? latents.expand(2, -1, -1, -1, -1) : latents, timestep, prompt);
    }
}

/// <summary>What the attention layers of a block do at a step.</summary>
public enum FreeSwimMode
{
    /// <summary>Row 0 of the batch attends within windows, row 1 to everything; the cross-attention of row 1 serves both.</summary>
    Dual,

    /// <summary>As <see cref="Dual"/>, and the cross-attention output is remembered.</summary>
    Refresh,

    /// <summary>Windows alone; cross-attention is not computed, what is remembered serves all rows.</summary>
    Reuse,

    /// <summary>Windows alone, with their own cross-attention. All rows are as row 0.</summary>
    WindowOnly,
}

/// <summary>FreeSwim's two attention layers of one block, with what they remember.</summary>
public sealed class FreeSwimLayers
{
    /// <summary>Makes the layers.</summary>
    /// <param name="options">How FreeSwim is applied.</param>
    /// <param name="selfScale">Factor of the query-key product in self-attention, both branches.</param>
    /// <param name="crossScale">That of cross-attention; null: 1 / sqrt(D).</param>
    public FreeSwimLayers(FreeSwimOptions options, double? selfScale, double? crossScale = null)
    {
        Self = new SelfPath(this, options, selfScale);
        Cross = new CrossPath(this, options, crossScale);
    }

    /// <summary>What to do at the next call.</summary>
    public FreeSwimMode Mode { get; set; }

    /// <summary>The full branch's cross-attention output of the last refresh, before the output projection, <c>[1, N, H, D]</c>; null: none.</summary>
    public Tensor? Cached { get; private set; }

    /// <summary>What self-attention does.</summary>
    public WanAttentionPath Self { get; }

    /// <summary>What cross-attention does.</summary>
    public WanAttentionPath Cross { get; }

    /// <summary>Forgets the remembered output.</summary>
    public void Forget()
    {
        Cached?.Dispose();
        Cached = null;
    }

    private static void RequireRows(Tensor hidden, FreeSwimMode mode)
    {
        if (mode is FreeSwimMode.Dual or FreeSwimMode.Refresh && hidden.shape[0] != 2)
        {
            throw new ArgumentException($"The dual path takes a batch of two, the window branch and the full branch, not {hidden.shape[0]}: a session samples one prompt.", nameof(hidden));
        }
    }

    private sealed class SelfPath(FreeSwimLayers layers, FreeSwimOptions options, double? scale) : WanAttentionPath
    {
        private (VideoGrid Grid, BlockMask Mask)? _cut;

        public override Tensor Compute(WanAttention attention, Tensor hidden, Tensor? encoder, PairRotaryTables? rotary, VideoGrid grid)
        {
            RequireRows(hidden, layers.Mode);
            if (layers.Mode is FreeSwimMode.Reuse or FreeSwimMode.WindowOnly)
            {
                var (q, k, v) = attention.Project(hidden.narrow(0, 0, 1), null, rotary);
                return Window(attention, q, k, v, grid).expand(hidden.shape[0], -1, -1, -1);
            }

            var (query, key, value) = attention.Project(hidden, null, rotary);
            var windows = Window(attention, query.narrow(0, 0, 1), key.narrow(0, 0, 1), value.narrow(0, 0, 1), grid);
            return cat([windows, attention.Attend(query.narrow(0, 1, 1), key.narrow(0, 1, 1), value.narrow(0, 1, 1), scale)], 0);
        }

        private Tensor Window(WanAttention attention, Tensor query, Tensor key, Tensor value, VideoGrid grid)
        {
            if (!options.CutsWindows)
            {
                return InwardWindowAttention.Compute(
                    query, key, value, grid.Frames, grid.Height, grid.Width, options.HalfHeight, options.HalfWidth, scale, site: attention.Site, hooks: attention.Hooks);
            }

            if (_cut is not { } last || last.Grid != grid)
            {
                _cut = last = (grid, InwardWindow.Cut(grid.Frames, grid.Height, grid.Width, options.HalfHeight, options.HalfWidth));
            }

            return attention.Attend(query, key, value, scale, last.Mask);
        }
    }

    private sealed class CrossPath(FreeSwimLayers layers, FreeSwimOptions options, double? scale) : WanAttentionPath
    {
        public override Tensor Compute(WanAttention attention, Tensor hidden, Tensor? encoder, PairRotaryTables? rotary, VideoGrid grid)
        {
            RequireRows(hidden, layers.Mode);
            var rows = hidden.shape[0];
            if (layers.Mode == FreeSwimMode.Reuse)
            {
                var cached = layers.Cached ?? throw new InvalidOperationException("The full branch has not run yet, so that nothing is remembered: the first step of a session must be a refresh.");
                return cached.shape[1] == hidden.shape[1]
                    ? cached.expand(rows, -1, -1, -1)
                    : throw new ArgumentException($"What is remembered is of {cached.shape[1]} tokens, the video has {hidden.shape[1]}: a session samples one resolution.", nameof(hidden));
            }

            if (layers.Mode == FreeSwimMode.WindowOnly)
            {
                return attention.Plain(hidden.narrow(0, 0, 1), encoder?.narrow(0, 0, 1), null, scale).expand(rows, -1, -1, -1);
            }

            if (!options.Overrides)
            {
                return attention.Plain(hidden, encoder, null, scale);
            }

            var full = attention.Plain(hidden.narrow(0, 1, 1), encoder?.narrow(0, encoder.shape[0] - 1, 1), null, scale);
            if (layers.Mode == FreeSwimMode.Refresh)
            {
                layers.Forget();
                layers.Cached = full.detach().clone().DetachFromDisposeScope();
            }

            return full.expand(2, -1, -1, -1);
        }
    }
}
