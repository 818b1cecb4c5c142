using System.Diagnostics;
using System.Globalization;
using Heed.Lab.Inspection;
using Heed.Onnx;

namespace Heed.Lab.Onnx;

/// <summary>What is to be looked at, and how.</summary>
public sealed record OnnxRequest
{
    /// <summary>A picture; null: none.</summary>
    public string? Image { get; init; }

    /// <summary>A text and what to call it; null: none.</summary>
    public (string Text, string Name)? Text { get; init; }

    /// <summary>Tensor files, each with or without <c>INPUT=</c> before it.</summary>
    public IReadOnlyList<string> Tensors { get; init; } = [];

    /// <summary>The input that picture, text or tensor is for; null: the one that fits.</summary>
    public string? Input { get; init; }

    /// <summary>How pixels become numbers; null: -1 to 1, blue first for lines of text.</summary>
    public string? Pixels { get; init; }

    /// <summary>The list of characters of a reader of lines; null: one beside the model.</summary>
    public string? Characters { get; init; }

    /// <summary>Edits, see <see cref="OnnxEdits"/>.</summary>
    public IReadOnlyList<string> Edits { get; init; } = [];

    /// <summary>Bytes that maps may take at once while the model runs.</summary>
    public long RunBudget { get; init; } = OnnxRunOptions.DefaultMapBudget;

    /// <summary>Bytes that maps may take in the report.</summary>
    public long MapBudget { get; init; } = InspectionOptions.DefaultMapBudget;

    /// <summary>Number of threads; 0: every processor.</summary>
    public int Threads { get; init; }
}

/// <summary>Runs an ONNX model on an input and records what every head attended to, before and after edits.</summary>
public static class OnnxInspector
{
    private const int MostSide = 256;
    private const int LeastSide = 24;

    /// <summary>Runs the model.</summary>
    /// <param name="model">The model.</param>
    /// <param name="request">What is to be looked at.</param>
    /// <param name="cancellation">Stops between and within runs.</param>
    /// <returns>What it attended to; and the edited model, where there are edits (the caller disposes it).</returns>
    /// <exception cref="ArgumentException">The input does not fit the model, an edit names what there is not, or the model has no attention.</exception>
    /// <exception cref="IOException">A file cannot be read.</exception>
    /// <exception cref="InvalidDataException">A file is of another kind, or the runtime refuses the model.</exception>
    public static (OnnxInspection Inspection, OnnxModel? Edited) Run(OnnxModel model, OnnxRequest request, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(request);
        if (model.Attentions.Count == 0)
        {
            throw new ArgumentException(
                $"No attention was found in {Path.GetFileName(model.Path)}: no softmax over a product of queries and keys whose weights multiply values.{(model.Notices.Count > 0 ? $" {model.Notices[0]}" : "")}");
        }

        var notices = model.Notices.ToList();
        var (inputs, picture, tokens, source) = InputsOf(model, request, notices);
        var watch = Stopwatch.StartNew();
        using var known = model.WithInputShapes(inputs.ToDictionary(entry => entry.Key, entry => entry.Value.Shape.ToArray()));
        var cells = Cells(known, request);
        var options = new OnnxRunOptions { MapBudget = request.RunBudget, Threads = request.Threads };
        var (layers, attended) = (new List<OnnxLayer>(), new List<OnnxMap>());
        var keepsMeans = picture is not null && OnnxPicture.IsLine(PictureInput(model, request));
        var run = known.Run(inputs, options, map => { layers.Add(Layer(map, cells, notices)); attended.AddRange(keepsMeans ? [map with { Values = map.Values[..(map.Heads * map.Queries * map.Keys)], Batch = 1 }] : []); }, cancellation);
        var (characters, reader, output) = keepsMeans ? Characters(model, request, picture!, run, attended, layers, notices) : (null, null, null);

        OnnxModel? edited = null;
        OnnxRun? after = null;
        if (request.Edits.Count > 0)
        {
            var edits = request.Edits.SelectMany(edit => OnnxEdits.Parse(edit, model.Attentions.Count)).ToList();
            foreach (var edit in edits.OfType<OnnxColumnScaling>())
            {
                var narrow = layers.Where(layer => edit.Layers?.Contains(layer.Attention.Layer) != false).MinBy(layer => layer.Keys)!;
                if (edit.Columns.FirstOrDefault(column => column >= narrow.Keys || column < -narrow.Keys, int.MinValue) is > int.MinValue and var beyond)
                {
                    throw new ArgumentException($"The edit names column {beyond}, and attention {narrow.Attention.Layer} ({narrow.Attention.Name}) has columns 0 to {narrow.Keys - 1} here.");
                }
            }

            edited = known.Edit(edits);
            after = edited.Run(inputs, options, map => layers[map.Attention.Layer] = layers[map.Attention.Layer] with { After = Layer(map, cells, []).Heads }, cancellation);
        }

        return (new()
        {
            Model = Path.GetFileName(model.Path),
            Parameters = model.ParameterCount,
            OperatorVersion = model.OperatorVersion,
            Source = source,
            Layers = layers,
            Tokens = tokens,
            Picture = picture,
            Characters = characters,
            TextAfter = reader is not null && after is not null ? string.Concat(reader.Read(after.Outputs[output!]).Select(character => character.Text)) : null,
            Outputs = run.Outputs,
            OutputsAfter = after?.Outputs,
            Edits = request.Edits,
            Notices = [.. notices.Distinct()],
            Seconds = watch.Elapsed.TotalSeconds,
        }, edited);
    }

    private static OnnxPort PictureInput(OnnxModel model, OnnxRequest request) =>
        (request.Input is { } name ? model.Inputs.Where(input => input.Name == name) : model.Inputs.Where(OnnxPicture.Fits)).FirstOrDefault()
        ?? throw new ArgumentException(request.Input is { } missing ? $"The model has no input '{missing}'; it has: {string.Join(", ", model.Inputs)}." : $"The model takes no picture; its inputs are: {string.Join(", ", model.Inputs)}.");

    private static (Dictionary<string, OnnxTensor> Inputs, OnnxPicture? Picture, IReadOnlyList<string> Tokens, string Source) InputsOf(OnnxModel model, OnnxRequest request, List<string> notices)
    {
        if (request.Input is { } asked && model.Inputs.All(input => input.Name != asked))
        {
            throw new ArgumentException($"The model has no input '{asked}'; it has: {string.Join(", ", model.Inputs)}.");
        }

        var inputs = new Dictionary<string, OnnxTensor>(StringComparer.Ordinal);
        var sources = new List<string>();
        foreach (var tensor in request.Tensors)
        {
            var named = tensor.IndexOf('=') is > 0 and var equals && model.Inputs.Any(input => input.Name == tensor[..equals]) ? tensor[..equals] : null;
            var file = named is null ? tensor : tensor[(named.Length + 1)..];
            sources.Add(Path.GetFileName(file));
            foreach (var (name, value) in TensorFile.Read(file))
            {
                // A tensor without a name is for the input that was named, or the first that has none yet.
                var target = named ?? request.Input ?? (model.Inputs.Any(input => input.Name == name) ? name : model.Inputs.FirstOrDefault(input => !inputs.ContainsKey(input.Name))?.Name)
                    ?? throw new ArgumentException($"'{file}' gives more tensors than the model has inputs: {string.Join(", ", model.Inputs)}.");
                inputs[target] = value;
            }
        }

        OnnxPicture? picture = null;
        if (request.Image is { } image)
        {
            var input = PictureInput(model, request);
            if (!OnnxPicture.Fits(input))
            {
                throw new ArgumentException($"The input {input} takes no picture: give it a tensor with --tensor FILE.");
            }

            var way = request.Pixels ?? (OnnxPicture.IsLine(input) ? "half:bgr" : "half");
            picture = OnnxPicture.Read(image, input, OnnxPixels.Parse(way));
            if (request.Pixels is null && !OnnxPicture.IsLine(input))
            {
                notices.Add("The file does not say how the model wants its pixels: they were scaled to -1 to 1, red first (--pixels names other ways).");
            }

            inputs[input.Name] = picture.Tensor;
            sources.Add(Path.GetFileName(image));
        }

        IReadOnlyList<string> tokens = [];
        if (request.Text is { } text)
        {
            var encoded = OnnxText.Encode(Path.GetDirectoryName(Path.GetFullPath(model.Path))!, text.Text);
            tokens = [.. encoded.Select(token => token.Text)];
            foreach (var input in model.Inputs.Where(input => request.Input is null || input.Name == request.Input))
            {
                if (OnnxText.InputOf(input, [.. encoded.Select(token => token.Id)]) is { } tensor)
                {
                    inputs.TryAdd(input.Name, tensor);
                }
            }

            sources.Add(text.Name);
        }

        // A mask and its like follow from the length of the ids.
        if (inputs.Values.FirstOrDefault(tensor => tensor is { Type: OnnxElementType.Int64, Shape: [1, _] }) is { } given)
        {
            foreach (var input in model.Inputs.Where(input => !inputs.ContainsKey(input.Name) && input.Name.ToLowerInvariant() is "attention_mask" or "input_mask" or "token_type_ids" or "segment_ids" or "position_ids"))
            {
                inputs[input.Name] = OnnxText.InputOf(input, given.ToSingles().Select(id => (long)id).ToArray())!;
            }
        }

        return model.Inputs.FirstOrDefault(input => !inputs.ContainsKey(input.Name)) is not { } missing ? (inputs, picture, tokens, string.Join(" and ", sources))
            : throw new ArgumentException($"The model's input {missing} was not given: name a tensor with --tensor {missing.Name}=FILE (.npy, .safetensors or .json){(OnnxPicture.Fits(missing) ? ", or a picture with --image FILE" : "")}.");
    }

    /// <summary>Cells a side that fit the budget of the report: a byte a cell, a third more as text, twice with edits.</summary>
    private static int Cells(OnnxModel model, OnnxRequest request)
    {
        var heads = model.Attentions.Sum(attention => attention.Heads ?? 1) * (request.Edits.Count > 0 ? 2 : 1);
        return (int)Math.Clamp(Math.Sqrt(request.MapBudget * 3.0 / 4 / Math.Max(1, heads)), LeastSide, MostSide);
    }

    private static OnnxLayer Layer(OnnxMap map, int cells, List<string> notices)
    {
        if (map.Batch > 1)
        {
            notices.Add(string.Create(CultureInfo.InvariantCulture, $"Attention {map.Attention.Layer} ({map.Attention.Name}) has {map.Batch} maps a head (a batch, or windows): the first is shown."));
        }

        var causal = IsCausal(map);
        return new(map.Attention, map.Queries, map.Keys, causal, [.. Enumerable.Range(0, map.Heads).Select(head => new OnnxHead(
            head, MapStatistics.Of(map.Head(0, head), map.Queries, map.Keys, causal), CellMap.Of(map.Head(0, head), map.Queries, map.Keys, cells)))], null);
    }

    private static bool IsCausal(OnnxMap map)
    {
        for (var head = 0; head < map.Heads && map.Queries > 1; head++)
        {
            var weights = map.Head(0, head);
            for (var row = 0; row < map.Queries; row++)
            {
                var first = Math.Max(0, row + 1 + map.Keys - map.Queries);
                if (first < map.Keys && weights[((row * map.Keys) + first)..((row + 1) * map.Keys)].IndexOfAnyExceptInRange(-1e-9f, 1e-9f) >= 0)
                {
                    return false;
                }
            }
        }

        return map.Queries > 1 && map.Keys >= map.Queries;
    }

    private static (List<InspectedCharacter>? Characters, LineReader? Reader, string? Output) Characters(OnnxModel model, OnnxRequest request, OnnxPicture picture, OnnxRun run, List<OnnxMap> maps, List<OnnxLayer> layers, List<string> notices)
    {
        if (run.Outputs.FirstOrDefault(output => output.Value.Shape is [1, > 1, > 2]) is not { Value: { } output, Key: var name })
        {
            return (null, null, null);
        }

        if (LineReader.Find(request.Characters, model.Path, output.Shape[2]) is not { } reader)
        {
            notices.Add($"The model tells {output.Shape[2]} classes apart along the line, and no list of so many characters lies beside it: name one with --characters FILE to read them.");
            return (null, null, null);
        }

        var steps = (int)output.Shape[1];
        // Pixels of the file's picture that a step along the line stands for.
        var pixels = (double)picture.PaddedWidth / steps * picture.SourceWidth / picture.Width;
        double Pixel(double step, double most) => Math.Clamp(step * pixels, 0, most);
        var characters = reader.Read(output).Select(read =>
        {
            var looks = maps.Where(map => map.Queries == steps && map.Keys == steps).SelectMany(map =>
            {
                var nearest = layers.First(layer => layer.Attention.Layer == map.Attention.Layer).Heads.MaxBy(head => head.Statistics.NearMass)!.Head;
                return new int?[] { null, nearest }.Select(head =>
                {
                    var weights = RowsOf(map, head, read);
                    var peak = Array.IndexOf(weights, weights.Max());
                    var (first, last) = (Math.Max(0, read.First - 1), Math.Min(steps - 1, read.Last + 1));
                    return new CharacterLook(
                        map.Attention.Layer, head, weights, Pixel(peak, picture.SourceWidth - 1), Pixel(peak + 1, picture.SourceWidth) - 1, weights[first..(last + 1)].Sum(weight => (double)weight), (last - first + 1) / (double)steps);
                });
            });
            return new InspectedCharacter(read, Pixel(read.First, picture.SourceWidth - 1), Pixel(read.Last + 1, picture.SourceWidth) - 1, [.. looks]);
        });
        return ([.. characters], reader, name);
    }

    /// <summary>Weights of a character's steps on every step, their mean; of one head or the mean of all.</summary>
    private static float[] RowsOf(OnnxMap map, int? head, ReadCharacter read)
    {
        var weights = new float[map.Keys];
        var (from, to) = head is { } one ? (one, one) : (0, map.Heads - 1);
        var count = (to - from + 1) * (read.Last - read.First + 1);
        for (var at = from; at <= to; at++)
        {
            for (var step = read.First; step <= read.Last; step++)
            {
                var row = map.Head(0, at).Slice(step * map.Keys, map.Keys);
                for (var i = 0; i < weights.Length; i++)
                {
                    weights[i] += row[i] / count;
                }
            }
        }

        return weights;
    }
}
