using System.CommandLine;
using Heed.Lab.Training;
using Spectre.Console;

namespace Heed.Cli.Commands;

/// <summary><c>heed train RECIPE</c>: trains a model that Heed ships, or one like it on a text of your own.</summary>
internal static class TrainCommand
{
    private static readonly TimeSpan LineEvery = TimeSpan.FromSeconds(15);

    public static Command Create()
    {
        var name = new Argument<string?>("recipe") { Description = "What to train; without it, the recipes are listed.", Arity = ArgumentArity.ZeroOrOne };
        var output = new Option<string?>("--out") { Description = "Folder for the model; the default is models/RECIPE.", HelpName = "FOLDER" };
        var steps = new Option<long>("--steps") { Description = "Number of steps; the default is the recipe's.", HelpName = "N" }.AtLeast(1L);
        var minutes = new Option<double>("--minutes") { Description = "Train about this long, instead of --steps.", HelpName = "M" }.AtLeast(0.1);
        var seed = new Option<int>("--seed") { Description = "Seed of the weights and of the order of the data.", HelpName = "N", DefaultValueFactory = _ => 1 }.AtLeast(0);
        var threads = CommandExtensions.ThreadsOption();
        var resume = new Option<bool>("--resume") { Description = "Go on with a run that was stopped." };
        var text = new Option<string?>("--text") { Description = "Train on this UTF-8 text instead of the recipe's own.", HelpName = "FILE" };
        var attention = new Option<string?>("--attention") { Description = "Train with this attention in place of the recipe's own.", HelpName = "NAME[:option=value,...]" };
        var model = new Option<string?>("--model") { Description = "The model to train, where the recipe lets one choose; without a recipe they are listed.", HelpName = "NAME[:option=value,...]" };
        var data = new Option<string?>("--data") { Description = "Folder of the recipe's data; the default is where its Debian package puts them.", HelpName = "FOLDER" };
        var json = CommandExtensions.JsonOption();
        var command = new Command("train", "Train a model by one of Heed's recipes, with a progress bar and checkpoints.") { name, output, steps, minutes, seed, threads, resume, text, attention, model, data, json };
        command.Validators.Add(result =>
        {
            if (result.GetResult(steps) is not null && result.GetResult(minutes) is not null)
            {
                result.AddError("--steps and --minutes both say how long to train: give one of them.");
            }
        });
        return command.Runs((result, terminal, cancellation) =>
        {
            if (result.GetValue(name) is not { } wanted)
            {
                List(terminal, result.GetValue(json));
                return ExitCode.Success;
            }

            var recipe = TrainingRecipe.Find(wanted);
            var options = new RecipeOptions
            {
                Output = result.GetValue(output) ?? recipe.DefaultOutput, Steps = result.GetResult(steps) is null ? null : result.GetValue(steps),
                Minutes = result.GetResult(minutes) is null ? null : result.GetValue(minutes), Seed = result.GetValue(seed),
                Threads = result.GetValue(threads), Resume = result.GetValue(resume), Attention = result.GetValue(attention), TextFile = result.GetValue(text), Model = result.GetValue(model), DataFolder = result.GetValue(data),
            };
            RecipeResult trained;
            try
            {
                trained = terminal.Notices.Profile.Capabilities.Interactive
                    ? RunWithBar(recipe, options, terminal, cancellation)
                    : RunWithLines(recipe, options, terminal, cancellation);
            }
            catch (OperationCanceledException) when (cancellation.IsCancellationRequested)
            {
                terminal.Notice("Stopped; nothing is lost: run the same command with --resume to go on.");
                throw;
            }

            if (result.GetValue(json))
            {
                terminal.WriteJson(new { trained.Files, Measures = trained.Measures.ToDictionary(measure => measure.Name, measure => measure.Value) });
            }
            else
            {
                trained.Measures.ToList().ForEach(measure => terminal.Out.WriteLine($"{measure.Name}: {measure.Value}"));
                trained.Files.ToList().ForEach(file => terminal.Out.WriteLine($"wrote {file}"));
            }

            return ExitCode.Success;
        });
    }

    private static void List(Terminal terminal, bool json)
    {
        if (json)
        {
            terminal.WriteJson(TrainingRecipe.All.Select(recipe => new { recipe.Name, recipe.Summary, Models = recipe.Models.Select(model => new { model.Name, model.Usage, model.Summary, Paper = model.Slug }) }));
            return;
        }

        foreach (var recipe in TrainingRecipe.All)
        {
            terminal.Out.WriteLine($"{recipe.Name}  {recipe.Summary}");
            foreach (var model in recipe.Models)
            {
                terminal.Out.WriteLine($"    --model {model.Usage}");
                terminal.Out.WriteLine($"        {model.Summary}{(model.Slug is null ? "" : $" ({model.Slug})")}");
            }
        }
    }

    private static RecipeResult RunWithBar(TrainingRecipe recipe, RecipeOptions options, Terminal terminal, CancellationToken cancellation)
    {
        RecipeResult? trained = null;
        terminal.Notices.Progress()
            .Columns(new TaskDescriptionColumn { Alignment = Justify.Left }, new ProgressBarColumn(), new PercentageColumn())
            .Start(context =>
            {
                ProgressTask? task = null;
                trained = recipe.Run(options, sentence => terminal.Notices.MarkupLine($"[grey]{Markup.Escape(sentence)}[/]"), progress =>
                {
                    task ??= context.AddTask(recipe.Name, maxValue: progress.Steps);
                    task.Value = progress.Step;
                    task.Description = Markup.Escape(Describe(recipe, progress));
                }, cancellation);
            });
        return trained!;
    }

    // Where nobody watches a bar, a line now and then tells a log the same.
    private static RecipeResult RunWithLines(TrainingRecipe recipe, RecipeOptions options, Terminal terminal, CancellationToken cancellation)
    {
        var sinceLine = System.Diagnostics.Stopwatch.StartNew();
        return recipe.Run(options, terminal.Notice, progress =>
        {
            if (sinceLine.Elapsed >= LineEvery || progress.Step == progress.Steps)
            {
                sinceLine.Restart();
                terminal.Notice($"step {progress.Step:N0} of {progress.Steps:N0}: {Describe(recipe, progress)}");
            }
        }, cancellation);
    }

    private static string Describe(TrainingRecipe recipe, TrainingProgress progress) =>
        $"loss {progress.Loss:F3}{(progress.Validation is { } validation ? $", held out {validation:F3} {recipe.ValidationUnit}" : "")}, {progress.ItemsPerSecond:N0} {recipe.ItemName}/s, " +
        $"{progress.Remaining:h\\:mm\\:ss} left";
}
