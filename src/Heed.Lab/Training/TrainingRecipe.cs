using Heed.Lab.Brains;
using Heed.Lab.Backcopy;
using Heed.Lab.Images;
using Heed.Lab.Needle;
using Heed.Lab.Recall;
using Heed.Lab.Regression;
using Heed.Lab.Speech;
using Heed.Lab.Texts;
using Heed.Lab.Videos;

namespace Heed.Lab.Training;

/// <summary>What a user may decide about a recipe's run.</summary>
public sealed record RecipeOptions
{
    /// <summary>Folder that receives the result; a checkpoint lies in it while the run lasts.</summary>
    public required string Output { get; init; }

    /// <summary>Number of steps; null: the recipe's own, or what <see cref="Minutes"/> allow.</summary>
    public long? Steps { get; init; }

    /// <summary>Time to spend; the number of steps follows from the speed measured at the start. Null: not limited.</summary>
    public double? Minutes { get; init; }

    /// <summary>Seed of weights and order of data.</summary>
    public int Seed { get; init; } = 1;

    /// <summary>Number of threads; 0: every processor.</summary>
    public int Threads { get; init; }

    /// <summary>Whether to go on from the checkpoint of a stopped run.</summary>
    public bool Resume { get; init; }

    /// <summary>The attention to train with, as <c>NAME:option=value,...</c>; null: the recipe's own.</summary>
    public string? Attention { get; init; }

    /// <summary>The model to train, as <c>NAME:option=value,...</c>, where the recipe lets one choose; null: the recipe's own.</summary>
    public string? Model { get; init; }

    /// <summary>Folder of the recipe's data, where it reads data from a folder; null: where its package puts them.</summary>
    public string? DataFolder { get; init; }

    /// <summary>Text to train on instead of the recipe's own data; null: the recipe's own.</summary>
    public string? TextFile { get; init; }
}

/// <summary>What a run left behind.</summary>
/// <param name="Files">The files written, in order of importance.</param>
/// <param name="Measures">What was measured at the end, by name.</param>
public sealed record RecipeResult(IReadOnlyList<string> Files, IReadOnlyList<(string Name, string Value)> Measures);

/// <summary>A model that a recipe can train.</summary>
/// <param name="Name">Name on the command line.</param>
/// <param name="Usage">How to write it, with every option and its default.</param>
/// <param name="Summary">What it is, in one line.</param>
/// <param name="Slug">Its paper; null where it is a baseline.</param>
public sealed record RecipeModel(string Name, string Usage, string Summary, string? Slug);

/// <summary>Something that <c>heed train</c> can train: data, model, plan and what is shipped at the end.</summary>
public abstract class TrainingRecipe
{
    /// <summary>All recipes.</summary>
    public static IReadOnlyList<TrainingRecipe> All { get; } =
    [
        new ReaderRecipe(),
        new GridRecipe(),
        new RecallRecipe(),
        new NeedleRecipe(),
        new VideoRecipe(),
        new FashionRecipe(),
        new TextRecipe(),
        new RegressionRecipe(),
        new BrainRecipe(),
        new BackcopyRecipe(),
        new Scenes.CaptionRecipe(),
        new SpeechRecipe(),
    ];

    /// <summary>Name on the command line.</summary>
    public abstract string Name { get; }

    /// <summary>What it trains, in one line.</summary>
    public abstract string Summary { get; }

    /// <summary>What a run's speed counts.</summary>
    public virtual string ItemName => "tokens";

    /// <summary>What is measured on held-out data between steps, as it is said after the number.</summary>
    public virtual string ValidationUnit => "bits per byte";

    /// <summary>Where the result goes if nobody says otherwise.</summary>
    public virtual string DefaultOutput => Path.Combine("models", Name);

    /// <summary>The models among which <see cref="RecipeOptions.Model"/> chooses; empty: the recipe has a model of its own.</summary>
    public virtual IReadOnlyList<RecipeModel> Models => [];

    /// <summary>The recipe of a name.</summary>
    /// <exception cref="ArgumentException">There is none; the message lists them.</exception>
    public static TrainingRecipe Find(string name) => All.FirstOrDefault(recipe => recipe.Name == name)
        ?? throw new ArgumentException($"There is no recipe '{name}'; there are: {string.Join(", ", All.Select(recipe => recipe.Name))}.", nameof(name));

    /// <summary>Trains to the end and writes the result.</summary>
    /// <param name="options">What the user decided.</param>
    /// <param name="notice">Told what happens, a sentence each.</param>
    /// <param name="progress">Told after every step.</param>
    /// <param name="cancellation">Stops the run after the current step; it can be resumed.</param>
    public abstract RecipeResult Run(RecipeOptions options, Action<string> notice, Action<TrainingProgress> progress, CancellationToken cancellation);

    /// <summary>Refuses a model where the recipe has one of its own.</summary>
    /// <exception cref="ArgumentException">One is asked for; the message lists the recipes that take one.</exception>
    protected void RefuseModel(RecipeOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.Model is not null)
        {
            throw new ArgumentException($"The recipe {Name} has a model of its own: leave --model out, or choose a recipe that takes one ({string.Join(", ", All.Where(recipe => recipe.Models.Count > 0).Select(recipe => recipe.Name))}).");
        }
    }
}
