using static TorchSharp.torch;

namespace Heed.Lab.Training;

/// <summary>A small transformer on a grid that takes noise off striped textures, with full attention or with neighborhood attention (arXiv 2504.16922) of any window, stride and dilation.</summary>
internal sealed class GridRecipe : TaskRecipe<GridDenoiser>
{
    /// <inheritdoc/>
    public override string Name => "grid";

    /// <inheritdoc/>
    public override string Summary => "A small transformer on a 16 x 16 grid that takes noise off textures; --attention full or gna:w=4,stride=2,dilation=1.";

    /// <inheritdoc/>
    public override string ValidationUnit => "dB";

    /// <inheritdoc/>
    public override string ItemName => "pictures";

    /// <inheritdoc/>
    protected override string DefaultChoice => "full";

    /// <inheritdoc/>
    protected override long DefaultSteps => 600;

    /// <inheritdoc/>
    protected override string Measure => "held-out PSNR, dB";

    /// <inheritdoc/>
    protected override GridDenoiser Create(string choice, int seed)
    {
        manual_seed(seed);
        return new(choice);
    }

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(GridDenoiser model, string choice, int seed, long steps, string? checkpoint) => GridTraining.Loop(model, choice, steps, seed, checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(GridDenoiser model, TrainingHistory history)
    {
        ArgumentNullException.ThrowIfNull(history);
        return [("held-out PSNR, dB", history.Validations[^1].Value)];
    }
}
