using Heed.Mixers;
using static TorchSharp.torch;

namespace Heed.Models.Diffusion;

/// <summary>How much <see cref="AgentEdit"/> merges from a denoising step on.</summary>
public sealed record AgentEditOptions
{
    /// <summary>Share of the tokens that is merged away before attention, from 0 to below 1; 0: nothing is edited.</summary>
    public double Ratio { get; init; } = 0.4;

    /// <summary>Share of the tokens that is merged away for agents, from 0 to 1. Agents are used where they are fewer than half of the merged tokens.</summary>
    public double AgentRatio { get; init; } = 0.95;

    /// <summary>Columns of a cell with one destination.</summary>
    public int StrideX { get; init; } = 4;

    /// <summary>Rows of a cell with one destination.</summary>
    public int StrideY { get; init; } = 4;

    /// <summary>Blocks whose grid is smaller than the latent picture by more than this factor are left as they are: 1, 2, 4 or 8.</summary>
    public int MaxDownsample { get; init; } = 1;

    /// <summary>Whether destinations are drawn at random in every cell; never for an odd batch, where prompted and unprompted pictures would get different ones. Otherwise the top left.</summary>
    public bool RandomDestinations { get; init; } = true;

    /// <summary>Whether self-attention is merged.</summary>
    public bool MergeSelfAttention { get; init; } = true;

    /// <summary>Whether cross-attention is merged (not recommended). Agents over a context of another length need a value shortcut of 0.</summary>
    public bool MergeCrossAttention { get; init; }

    /// <summary>Whether perceptrons are merged (not recommended).</summary>
    public bool MergeFeedForward { get; init; }

    /// <summary>How agents are read.</summary>
    public AgentReading Reading { get; init; } = new();

    /// <summary>The published schedule: agents at steps 0 to 19, from step 20 on token merging alone.</summary>
    public static IReadOnlyList<(int FromStep, AgentEditOptions Options)> Recommended { get; } =
        [(0, new()), (20, new() { AgentRatio = 0.5, StrideX = 2, StrideY = 2 })];
}

/// <summary>AgentSD (arXiv 2312.08874): lets the transformer blocks of a trained latent-diffusion model attend over merged tokens, through agents, without training. Disposing it takes the edit back.</summary>
/// <remarks>Similarity is measured on each block's input. Attention here runs in float32 or the model's own type, so the authors' option of float32 scores for Stable Diffusion 2.1 is not needed.</remarks>
public sealed class AgentEdit : IDisposable
{
    private readonly List<BasicTransformerBlock> _blocks = [];
    private readonly (int FromStep, AgentEditOptions Options)[] _schedule;
    private readonly Generator _generator;

    private AgentEdit(IReadOnlyList<(int FromStep, AgentEditOptions Options)> schedule, (int Height, int Width) size, long seed)
    {
        _schedule = [.. schedule];
        Size = size;
        _generator = new Generator((ulong)seed);
    }

    /// <summary>Rows and columns of the latent picture (64 x 64 for pictures of 512 x 512). Set it when the size changes.</summary>
    public (int Height, int Width) Size { get; set; }

    /// <summary>The denoising step, from 0; it picks the options of the schedule.</summary>
    public int Step { get; set; }

    /// <summary>The options in force.</summary>
    public AgentEditOptions Options => _schedule.Last(entry => entry.FromStep <= Step).Options;

    /// <summary>Edits every <see cref="BasicTransformerBlock"/> of a model.</summary>
    /// <param name="model">The model.</param>
    /// <param name="size">Rows and columns of the latent picture.</param>
    /// <param name="schedule">From which step on which options hold, ascending, the first from step 0; null: <see cref="AgentEditOptions.Recommended"/>.</param>
    /// <param name="seed">Of the random destinations.</param>
    /// <returns>The edit: set its <see cref="Step"/> before each denoising step, dispose it to take the edit back.</returns>
    /// <exception cref="ArgumentException">The model has no such block, the schedule does not start at 0 or does not ascend, or an option is out of range.</exception>
    /// <exception cref="InvalidOperationException">The model is edited already.</exception>
    public static AgentEdit Apply(nn.Module model, (int Height, int Width) size, IReadOnlyList<(int FromStep, AgentEditOptions Options)>? schedule = null, long seed = 0)
    {
        ArgumentNullException.ThrowIfNull(model);
        schedule ??= AgentEditOptions.Recommended;
        Check(schedule, size);
        var blocks = model.modules().Prepend(model).OfType<BasicTransformerBlock>().Distinct().ToList();
        if (blocks.Count == 0)
        {
            throw new ArgumentException($"The model has no {nameof(BasicTransformerBlock)} to edit: give a latent-diffusion model.", nameof(model));
        }

        if (blocks.Any(block => block.Edit is not null))
        {
            throw new InvalidOperationException("The model is edited already: dispose that edit first.");
        }

        var edit = new AgentEdit(schedule, size, seed);
        foreach (var block in blocks)
        {
            block.Edit = edit;
            edit._blocks.Add(block);
        }

        return edit;
    }

    /// <summary>Takes whatever edit a model has back.</summary>
    /// <param name="model">The model.</param>
    public static void Remove(nn.Module model)
    {
        ArgumentNullException.ThrowIfNull(model);
        foreach (var edit in model.modules().Prepend(model).OfType<BasicTransformerBlock>().Select(block => block.Edit).OfType<AgentEdit>().Distinct().ToList())
        {
            edit.Dispose();
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var block in _blocks)
        {
            block.Edit = null;
        }

        _blocks.Clear();
        _generator.Dispose();
    }

    /// <summary>What a block does in this step; null where its level is not edited.</summary>
    internal BlockStep? Plan(Tensor input)
    {
        var (options, tokens) = (Options, input.shape[1]);
        var downsample = (int)Math.Ceiling(Math.Sqrt((double)((long)Size.Height * Size.Width / tokens)));
        if (downsample > options.MaxDownsample || options.Ratio == 0)
        {
            return null;
        }

        var (height, width) = ((Size.Height + downsample - 1) / downsample, (Size.Width + downsample - 1) / downsample);
        if ((long)height * width != tokens)
        {
            throw new ArgumentException($"A block has {tokens} tokens, but a latent picture of {Size.Height} x {Size.Width} gives {height} x {width}: set {nameof(AgentEdit)}.{nameof(Size)}.", nameof(input));
        }

        var (strideX, strideY) = (Math.Min(options.StrideX, width), Math.Min(options.StrideY, height));
        using var choices = options.RandomDestinations && input.shape[0] % 2 == 0 ? TokenMerge.DrawChoices(height, width, strideX, strideY, _generator) : null;
        return new(TokenMerge.Plan(input, height, width, strideX, strideY, (long)(tokens * options.Ratio), (long)(tokens * options.AgentRatio), choices), options);
    }

    private static void Check(IReadOnlyList<(int FromStep, AgentEditOptions Options)> schedule, (int Height, int Width) size)
    {
        if (schedule.Count == 0 || schedule[0].FromStep != 0 || schedule.Zip(schedule.Skip(1)).Any(pair => pair.First.FromStep >= pair.Second.FromStep))
        {
            throw new ArgumentException($"A schedule starts at step 0 and ascends; its steps are {string.Join(", ", schedule.Select(entry => entry.FromStep))}.", nameof(schedule));
        }

        if (size.Height < 1 || size.Width < 1)
        {
            throw new ArgumentException($"The latent picture has rows and columns, not {size.Height} x {size.Width}.", nameof(size));
        }

        foreach (var (_, options) in schedule)
        {
            if (!(options.Ratio is >= 0 and < 1) || !(options.AgentRatio is >= 0 and <= 1) || options.StrideX < 1 || options.StrideY < 1 || options.MaxDownsample < 1)
            {
                throw new ArgumentException(
                    $"A ratio is from 0 to below 1, an agent ratio from 0 to 1, strides and the largest downsampling from 1; {options.Ratio}, {options.AgentRatio}, {options.StrideX} x {options.StrideY} and {options.MaxDownsample} were given.",
                    nameof(schedule));
            }
        }
    }

    /// <summary>What one block does in one step.</summary>
    internal sealed class BlockStep(TokenMerge merge, AgentEditOptions options) : IDisposable
    {
        public TokenMerge Merge => merge;

        public AgentReading Reading => options.Reading;

        public bool MergesSelf => options.MergeSelfAttention;

        public bool MergesContext => options.MergeCrossAttention;

        public bool MergesFeedForward => options.MergeFeedForward;

        public void Dispose() => merge.Dispose();
    }
}
