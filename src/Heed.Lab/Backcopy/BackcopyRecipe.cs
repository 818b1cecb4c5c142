using Heed.Lab.Corpora;
using Heed.Lab.Figures;
using Heed.Lab.Training;
using Heed.Models.Texts;

namespace Heed.Lab.Backcopy;

/// <summary>Trains transformers of one to three layers on the bigram-backcopy language and watches how sinks, drained values and residual peaks grow (arXiv 2410.13835).</summary>
public sealed class BackcopyRecipe : TaskRecipe<BigramBackcopyTransformer>
{
    private BigramTable _table = BigramTable.Shakespeare;

    /// <inheritdoc/>
    public override string Name => "backcopy";

    /// <inheritdoc/>
    public override string Summary => "A transformer of a few layers that copies after triggers and parks its attention elsewhere: how sinks grow, with softmax or ReLU, AdamW or SGD; --text counts the bigrams of your own text.";

    /// <inheritdoc/>
    public override string ValidationUnit => "nats above the truth";

    /// <inheritdoc/>
    public override IReadOnlyList<RecipeModel> Models { get; } =
    [
        new("softmax", $"softmax:{BackcopySettings.Usage}", "the paper's transformer with softmax attention, which grows a sink", "active-dormant-heads"),
        new("relu", $"relu:{BackcopySettings.Usage}", "the same with ReLU attention, whose rows need not sum to 1", "active-dormant-heads"),
    ];

    /// <inheritdoc/>
    protected override string DefaultChoice => "softmax";

    /// <inheritdoc/>
    protected override long DefaultSteps => 800;

    /// <inheritdoc/>
    protected override string Measure => "divergence from the truth, nats";

    /// <inheritdoc/>
    protected override int DefaultThreads => 1;

    /// <inheritdoc/>
    protected override bool TakesText => true;

    /// <inheritdoc/>
    protected override void Prepare(RecipeOptions options, Action<string> notice)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(notice);
        _table = BigramTable.Shakespeare;
        if (options.TextFile is { } file)
        {
            var corpus = TextCorpus.FromFile(file);
            _table = BigramTable.Of(corpus.Name, corpus.TrainingText);
        }

        notice($"Bigrams of {_table.Name}: {_table.Vocabulary} tokens.");
    }

    /// <inheritdoc/>
    protected override BigramBackcopyTransformer Create(string choice, int seed) => BackcopySettings.Parse(choice, _table).Create(seed);

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(BigramBackcopyTransformer model, string choice, int seed, long steps, string? checkpoint) =>
        BackcopySettings.Parse(choice, _table).Loop(model, seed, steps, Math.Max(1, steps / 40), $"recipe={Name}\nmodel={choice}\ntext={_table.Name}", checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(BigramBackcopyTransformer model, TrainingHistory history)
    {
        ArgumentNullException.ThrowIfNull(history);
        var last = history.Validations[^1];
        return [("divergence from the truth, nats", last.Value), .. last.Observed!.Select(observed => (observed.Key, observed.Value))];
    }

    /// <inheritdoc/>
    protected override IReadOnlyList<(string File, LineFigure Figure)> Figures(TrainingHistory history)
    {
        ArgumentNullException.ThrowIfNull(history);
        var points = history.Validations.Where(point => point.Observed is not null).ToArray();
        LineFigure Figure(string title, string axis, params string[] names) => new(
            title, "step", axis,
            [
                .. names.SelectMany(name => points[^1].Observed!.Keys.Where(key => key.StartsWith(name + ", ", StringComparison.Ordinal)))
                    .Select(key => new FigureLine(key, [.. points.Select(point => (double)point.Step)], [.. points.Select(point => point.Observed![key])])),
            ]);
        return
        [
            ("sink-attention.png", Figure("Attention on the begin token", "share", "sink attention", "sink attention at triggers")),
            ("value-norm.png", Figure("Values, after the output matrix", "norm", "sink value norm", "other value norm")),
            ("residual-norm.png", Figure("Residual stream behind the layers", "norm", "sink residual norm", "other residual norm")),
        ];
    }
}
