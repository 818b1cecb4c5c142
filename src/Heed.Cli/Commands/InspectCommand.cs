using System.CommandLine;
using System.Globalization;
using Heed.Lab.Images;
using Heed.Lab.Inspection;
using Heed.Lab.Onnx;
using Heed.Models;
using Heed.Models.VisionLanguage;
using Heed.Probes;
using Spectre.Console;
using TorchSharp;

namespace Heed.Cli.Commands;

/// <summary><c>heed inspect</c>: run a model on a text and write a report of what it attended to.</summary>
internal static class InspectCommand
{
    private const long MegaByte = 1 << 20;

    // No tokenizer makes tokens this long on average; what lies beyond could not be shown.
    private const int MostBytesPerToken = 64;

    public static Command Create()
    {
        var model = new Option<string>("--model") { Description = "A model folder, or a shipped model's name; for pictures the folder that heed train wrote, or NAME:option=value,... of a vision model.", HelpName = "NAME|FOLDER", DefaultValueFactory = _ => ModelFolder.Default };
        var text = new Option<string?>("--text") { Description = "UTF-8 text to read; - for standard input. Without it, the page that ships with the model.", HelpName = "FILE|-" };
        var output = new Option<string>("--out") { Description = "The report to write.", HelpName = "FILE", DefaultValueFactory = _ => "report.html" };
        var tokens = new Option<int>("--tokens") { Description = $"The most tokens to look at. Default: the model's context, at most {InspectionOptions.DefaultTokens}.", HelpName = "N" }.Between(2, InspectionReport.MaximumTokens);
        var budget = new Option<double>("--map-budget")
        {
            Description = "Megabytes that the attention maps may take in the report; less makes them coarser.",
            HelpName = "MB",
            DefaultValueFactory = _ => InspectionOptions.DefaultMapBudget / (double)MegaByte,
        }.Between(0.1, 1000);
        var image = new Option<string?>("--image") { Description = "Look at a picture with a vision model: a file, or the number of a picture of Fashion-MNIST's test split.", HelpName = "FILE|N" };
        var audio = new Option<string?>("--audio") { Description = "Listen to a sound with a speech model: a WAV file.", HelpName = "FILE" };
        var masks = new Option<int>("--masks") { Description = "With --audio: how often parts of the sound are hidden to find what matters; 0: never.", HelpName = "N" }.AtLeast(0);
        var prompt = new Option<string?>("--prompt") { Description = $"With --image and a vision-language model: what to say to it. Default: {PictureModel.DefaultPrompt}", HelpName = "TEXT" };
        var edit = CommandExtensions.EditOption();
        var weights = new Option<string?>("--weights") { Description = "With --image and a model's name: a checkpoint with its weights (.pth or safetensors).", HelpName = "FILE" };
        var data = new Option<string?>("--data") { Description = "Folder of Fashion-MNIST; the default is where its Debian package puts it.", HelpName = "FOLDER" };
        var file = new Argument<string?>("file") { Description = "An ONNX model (FILE.onnx), with a picture, a text or tensors.", Arity = ArgumentArity.ZeroOrOne, HelpName = "FILE.onnx" };
        var tensors = new Option<string[]>("--tensor") { Description = "For ONNX models: a tensor as .npy, .safetensors or .json, for the input before the = or the next that has none.", HelpName = "[INPUT=]FILE" };
        var input = new Option<string?>("--input") { Description = "For ONNX models: the input that the picture, text or tensor is for.", HelpName = "NAME" };
        var pixels = new Option<string?>("--pixels") { Description = $"For ONNX models: how pixels become numbers: {OnnxPixels.Names}. Default: half, and half:bgr for lines of text.", HelpName = "NAME[:bgr]" };
        var characters = new Option<string?>("--characters") { Description = "For ONNX models that read lines of text: the list of characters, one a line. Default: a .txt file beside the model that fits.", HelpName = "FILE" };
        var save = new Option<string?>("--save") { Description = "For ONNX models: write the edited model.", HelpName = "FILE.onnx" };
        var attention = CommandExtensions.AttentionOption();
        var threads = CommandExtensions.ThreadsOption();
        var json = CommandExtensions.JsonOption();
        var command = new Command("inspect", "Run a model on a text or a picture and write a report (one HTML page) of what it attends to.") { file, model, text, image, prompt, edit, audio, masks, weights, data, output, tokens, budget, attention, threads, json, tensors, input, pixels, characters, save };
        return command.Runs((result, terminal, cancellation) =>
        {
            if (result.GetValue(file) is { } given && !InspectOnnx.Is(given))
            {
                throw new ArgumentException($"'{given}' is not an ONNX model (FILE.onnx): name other models with --model.");
            }

            if ((result.GetValue(file) ?? result.GetValue(model)) is { } onnx && InspectOnnx.Is(onnx))
            {
                if (new Option[] { prompt, audio, masks, weights, data, tokens, attention }.FirstOrDefault(option => result.GetResult(option) is { Implicit: false }) is { } unsuited)
                {
                    throw new ArgumentException($"{unsuited.Name} is not for ONNX models: leave it out.");
                }

                var request = new OnnxRequest
                {
                    Image = result.GetValue(image),
                    // A text may be a file, standard input, or the text itself.
                    Text = result.GetValue(text) is not { } words ? null : words == TextSource.StandardInput || File.Exists(words) ? TextSource.Read(words, ".", MegaByte, cancellation) : (words, "the text given"),
                    Tensors = result.GetValue(tensors) ?? [],
                    Input = result.GetValue(input),
                    Pixels = result.GetValue(pixels),
                    Characters = result.GetValue(characters),
                    Edits = result.GetValue(edit) ?? [],
                    MapBudget = (long)(result.GetValue(budget) * MegaByte),
                    Threads = result.GetValue(threads),
                };
                return InspectOnnx.Run(onnx, request, result.GetValue(save), result.GetRequiredValue(output), result.GetValue(json), terminal, cancellation);
            }

            if (new Option[] { tensors, input, pixels, characters, save }.FirstOrDefault(option => result.GetResult(option) is { Implicit: false }) is { } only)
            {
                throw new ArgumentException($"{only.Name} is for ONNX models: name one, for example heed inspect model.onnx {only.Name} ....");
            }

            var options = new InspectionOptions
            {
                Tokens = result.GetResult(tokens) is null ? null : result.GetValue(tokens), MapBudget = (long)(result.GetValue(budget) * MegaByte), Attention = result.GetValue(attention), Edits = result.GetValue(edit) ?? [],
            };
            if (result.GetValue(threads) is > 0 and var count)
            {
                torch.set_num_threads(count);
            }

            var name = result.GetRequiredValue(model);
            if (result.GetValue(audio) is { } sound)
            {
                if (new Option[] { text, image, prompt, edit, weights, data, tokens, budget, attention }.FirstOrDefault(option => result.GetResult(option) is { Implicit: false }) is { } foreign)
                {
                    throw new ArgumentException($"{foreign.Name} is not for sounds: leave it out where --audio is given.");
                }

                return InspectAudio.Run(
                    new(result.GetResult(model) is { Implicit: false } ? name : null, sound, result.GetResult(masks) is null ? null : result.GetValue(masks), result.GetRequiredValue(output), result.GetValue(json)), terminal, cancellation);
            }

            if (result.GetResult(masks) is not null)
            {
                throw new ArgumentException("--masks is for sounds: say which with --audio FILE.");
            }

            if (result.GetValue(image) is { } shown && PretrainedVisionLanguageModel.IsIn(name))
            {
                if (new Option[] { text, budget, attention, weights, data }.FirstOrDefault(option => result.GetResult(option) is { Implicit: false }) is { } unused)
                {
                    throw new ArgumentException($"{unused.Name} is not for vision-language models: leave it out.");
                }

                return PictureModel.Inspect(
                    name, shown, result.GetValue(prompt), options.Tokens ?? PictureModel.DefaultTokens, result.GetValue(edit) ?? [], result.GetRequiredValue(output), result.GetValue(json), terminal, cancellation);
            }

            if (result.GetValue(prompt) is not null)
            {
                throw new ArgumentException("--prompt is for vision-language models: name the folder of one with --model, and a picture with --image.");
            }

            if (result.GetValue(image) is not null || ImageModelCard.IsIn(name))
            {
                if (new Option[] { text, tokens, budget, attention, edit }.FirstOrDefault(option => result.GetResult(option) is { Implicit: false }) is { } other)
                {
                    throw new ArgumentException($"{other.Name} is for texts: leave it out where a picture is looked at.");
                }

                return InspectImage.Run(
                    new(result.GetResult(model) is { Implicit: false } ? name : null, result.GetValue(image), result.GetValue(weights), result.GetValue(data), result.GetRequiredValue(output), result.GetValue(json)),
                    terminal, cancellation);
            }

            if (new[] { weights, data }.FirstOrDefault(option => result.GetValue(option) is not null) is { } without)
            {
                throw new ArgumentException($"{without.Name} is for pictures: say which with --image FILE or --image N.");
            }

            var folder = ModelFolder.Find(name);
            var mostBytes = (long)MostBytesPerToken * Math.Max(1024, options.Tokens ?? InspectionOptions.DefaultTokens);
            var (page, source) = TextSource.Read(result.GetValue(text), folder, mostBytes, cancellation);
            var path = result.GetRequiredValue(output);
            using var pretrained = PretrainedModel.Load(folder);
            var inspection = WithProgress(terminal, progress =>
                Inspector.Run(pretrained, ModelFolder.NameOf(folder), page, source, options, progress, cancellation));
            AtomicFile.Write(path, stream => InspectionReport.Write(inspection, stream));

            if (result.GetValue(json))
            {
                terminal.WriteJson(ForPrograms(inspection, path));
            }
            else
            {
                Print(terminal.Console, inspection, path);
            }

            return ExitCode.Success;
        });
    }

    private static InspectionResult WithProgress(Terminal terminal, Func<IProgress<InspectionProgress>?, InspectionResult> run)
    {
        if (!terminal.Notices.Profile.Capabilities.Interactive)
        {
            return run(null);
        }

        return terminal.Notices.Progress().AutoClear(true).Columns(new TaskDescriptionColumn(), new ProgressBarColumn(), new RemainingTimeColumn()).Start(context =>
        {
            var task = context.AddTask("Reading");
            return run(new Reporter(step => task.Value = 100.0 * step.Done / step.Total));
        });
    }

    private static void Print(IAnsiConsole console, InspectionResult inspection, string path)
    {
        var table = new Table().Border(TableBorder.Simple);
        foreach (var (name, left) in new[]
        {
            ("layer", false), ("head", false), ("entropy", false), ("of most", false), ("on first", false), ("near", false), ("distance", false), ("previous", false), ("self", false), ("induction", false), ("looks", true),
        })
        {
            table.AddColumn(new TableColumn(name) { Alignment = left ? Justify.Left : Justify.Right });
        }

        if (inspection.Attention is not null)
        {
            table.AddColumn(new TableColumn("computed") { Alignment = Justify.Right });
        }

        var layer = 0;
        foreach (var head in inspection.Heads)
        {
            if (head.Layer != layer)
            {
                table.AddEmptyRow();
                layer = head.Layer;
            }

            var statistics = head.Statistics;
            string[] cells =
            [
                Text(head.Layer), Text(head.Head), Text(statistics.Entropy, "F2"), Percent(statistics.EntropyShare), Percent(statistics.FirstMass), Percent(statistics.NearMass), Text(statistics.MeanDistance, "F1"),
                Percent(statistics.PreviousShare), Percent(statistics.SelfShare), statistics.Induction is { } induction ? Percent(induction) : "–",
                $"[{Colour(head.Look)}]{HeadLooks.Word(head.Look)}[/]{(head.IsDormant ? ", dormant" : "")}",
            ];
            cells = head.ComputedShare is { } computed ? [.. cells, Percent(computed)] : cells;
            table.AddRow(head.IsDormant ? Array.ConvertAll(cells, cell => $"[grey]{cell}[/]") : cells);
        }

        console.Write(table);
        console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"entropy in nats and as share of the most a row can have; mass on the first token and on the nearest 16; mean distance in tokens; rows whose largest weight is the previous token or the token itself{(inspection.Attention is null ? "" : "; pairs computed, of those that the layer has")}");
        if (inspection.Heads.Any(head => head.IsDormant))
        {
            console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"dormant (grey): {InspectedHead.DormantMeaning}");
        }

        PrintNorms(console, inspection);
        PrintSinks(console, inspection);
        foreach (var notice in inspection.Notices)
        {
            console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"[yellow]{notice}[/]");
        }

        console.WriteLine();
        console.MarkupLineInterpolated(
            CultureInfo.InvariantCulture,
            $"[bold]{inspection.Model.Name}[/] on {inspection.Source}: {inspection.Tokens.Count:N0} tokens, [bold]{inspection.BitsPerByte:F3}[/] bits per byte, {inspection.LossPerToken:F3} nats per token ({inspection.Seconds:F1} s)");
        if (inspection.BitsPerByteWithout is { } without)
        {
            var change = (inspection.BitsPerByte / without) - 1;
            console.MarkupLineInterpolated(
                CultureInfo.InvariantCulture,
                $"[bold]{inspection.Attention}[/] computes {Percent(inspection.Heads.Average(head => head.ComputedShare ?? 1))} of the pairs; the model's own attention reads the text at [bold]{without:F3}[/] bits per byte: the swap costs {change:+0.0%;-0.0%;0.0%}");
        }

        if (inspection.Before is { } before)
        {
            var changes = inspection.Tokens.Zip(before.Tokens, (after, first) => after.Loss - first.Loss).OfType<double>().ToArray();
            console.MarkupLineInterpolated(
                CultureInfo.InvariantCulture,
                $"[bold]{string.Join(" ", inspection.Edits)}[/]: the unedited model reads the text at [bold]{before.BitsPerByte:F3}[/] bits per byte, a change of {(inspection.BitsPerByte / before.BitsPerByte) - 1:+0.0%;-0.0%;0.0%}; {changes.Count(change => change < 0)} tokens predicted better, {changes.Count(change => change > 0)} worse");
        }

        console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"Report: [bold]{path}[/] ({new FileInfo(path).Length / (double)MegaByte:F1} MB); open it in a browser.");
    }

    private static void PrintNorms(IAnsiConsole console, InspectionResult inspection)
    {
        if (inspection.Layers.Count == 0)
        {
            return;
        }

        var table = new Table().Border(TableBorder.Simple);
        foreach (var name in new[] { "layer", "first token's norm", "others' mean", "others' largest", "first token's value", "others' value", "logit gap" })
        {
            table.AddColumn(new TableColumn(name) { Alignment = Justify.Right });
        }

        foreach (var layer in inspection.Layers)
        {
            table.AddRow(
                Text(layer.Layer), Text(layer.Residual.Norm, "F1"), Text(layer.Residual.OthersMean, "F1"), Text(layer.Residual.OthersMaximum, "F1"), Text(layer.SinkValueNorm, "F2"), Text(layer.OthersValueNorm, "F2"),
                layer.SinkLogitGap is { } gap ? Text(gap, "F1") : "–");
        }

        console.Write(table);
    }

    private static void PrintSinks(IAnsiConsole console, InspectionResult inspection)
    {
        if (inspection.Sinks is not { } sinks)
        {
            return;
        }

        // Most first tokens are sinks; a text full of sinks has its longest-lived shown.
        const int rows = 12;
        var shown = sinks.Tokens.Where(sink => sink.Label != SinkLabel.Noise).OrderByDescending(sink => sink.Lifetime).ThenBy(sink => sink.Token).Take(rows).OrderBy(sink => sink.Token).ToArray();
        var table = new Table().Border(TableBorder.Simple);
        foreach (var (name, left) in new[] { ("sink", false), ("token", true), ("kind", true), ("from layer", false), ("layers", false), ("attention received", false) })
        {
            table.AddColumn(new TableColumn(name) { Alignment = left ? Justify.Left : Justify.Right });
        }

        foreach (var sink in shown)
        {
            table.AddRow(
                Text(sink.Token), Markup.Escape(inspection.Tokens[sink.Token].Text.Replace("\n", "↵", StringComparison.Ordinal).Replace("\t", "⇥", StringComparison.Ordinal)), sink.Label == SinkLabel.Primary ? "[bold]primary[/]" : "secondary",
                Text(sink.Creation), Text(sink.Lifetime), Percent(sink.Received));
        }

        console.Write(table);
        console.MarkupLineInterpolated(
            CultureInfo.InvariantCulture,
            $"sinks: tokens whose residual stream is parallel (|cos| > {sinks.CosineThreshold}) to that of token {sinks.Primary} in layers {sinks.Start} to {sinks.End - 1}; primary from {inspection.Model.Layers - sinks.PrimarySlack} layers on; {sinks.Tokens.Count - shown.Length} more not listed");
    }

    private static object ForPrograms(InspectionResult inspection, string path) => new
    {
        inspection.Model,
        inspection.Source,
        inspection.Attention,
        Tokens = inspection.Tokens.Count,
        inspection.PredictedTokens,
        inspection.PredictedBytes,
        inspection.LossPerToken,
        inspection.BitsPerByte,
        inspection.BitsPerByteWithout,
        inspection.Edits,
        Before = inspection.Before is not { } before ? null : new
        {
            before.LossPerToken,
            before.BitsPerByte,
            Heads = before.Heads.Select(head => new
            {
                head.Layer, head.Head, head.Look, head.Statistics.Entropy, head.Statistics.EntropyShare, head.Statistics.FirstMass, head.Statistics.NearMass, head.Statistics.MeanDistance,
                head.Statistics.PreviousShare, head.Statistics.SelfShare, head.Statistics.Induction,
            }),
            TokenLosses = before.Tokens.Select(token => token.Loss),
        },
        inspection.Seconds,
        Report = path,
        inspection.Notices,
        Heads = inspection.Heads.Select(head => new
        {
            head.Layer,
            head.Head,
            head.Look,
            head.Statistics.Entropy,
            head.Statistics.EntropyShare,
            head.Statistics.FirstMass,
            head.Statistics.NearMass,
            head.Statistics.MeanDistance,
            head.Statistics.PreviousShare,
            head.Statistics.SelfShare,
            head.Statistics.Induction,
            head.ComputedShare,
            Dormant = head.IsDormant,
            head.ColumnEntropy,
            head.SinkLogitGap,
            head.AttentionSinks,
        }),
        Dormancy = new { DormantHeads.RowThreshold, DormantHeads.ColumnThreshold, LeastScore = SinkMask.AttentionThreshold, Meaning = InspectedHead.DormantMeaning },
        Sinks = inspection.Sinks is not { } sinks ? null : new
        {
            sinks.Primary,
            sinks.Start,
            sinks.End,
            sinks.PrimarySlack,
            sinks.NoiseLifetime,
            sinks.CosineThreshold,
            Tokens = sinks.Tokens.Select(sink => new { sink.Token, inspection.Tokens[sink.Token].Text, sink.Label, sink.Creation, sink.Lifetime, sink.Layers, AttentionReceived = sink.Received }),
        },
        Layers = inspection.Layers.Select(layer => new
        {
            layer.Layer,
            FirstTokenNorm = layer.Residual.Norm,
            OthersMeanNorm = layer.Residual.OthersMean,
            OthersLargestNorm = layer.Residual.OthersMaximum,
            FirstTokenValueNorm = layer.SinkValueNorm,
            layer.OthersValueNorm,
            layer.SinkLogitGap,
        }),
        TokenLosses = inspection.Tokens.Select(token => token.Loss),
    };

    private static string Text(IFormattable value, string? format = null) => value.ToString(format, CultureInfo.InvariantCulture);

    private static string Percent(double share) => Text(100 * share, share is > 0 and < 0.0995 ? "F1" : "F0") + "%";

    private static string Colour(HeadLook look) => look switch
    {
        HeadLook.Previous => "blue",
        HeadLook.Self => "purple",
        HeadLook.Induction => "hotpink2",
        HeadLook.Sink => "grey",
        HeadLook.Local => "green",
        HeadLook.Broad => "darkorange",
        _ => "default",
    };

    /// <summary>Unlike <see cref="Progress{T}"/>, reports on the thread that does the work, so that the last report is not lost.</summary>
    private sealed class Reporter(Action<InspectionProgress> report) : IProgress<InspectionProgress>
    {
        public void Report(InspectionProgress value) => report(value);
    }
}
