using System.Globalization;
using Heed.Onnx.Graphs;
using Microsoft.ML.OnnxRuntime;

namespace Heed.Onnx;

/// <summary>An ONNX model: its attentions, runs of it with their maps, and edits of them.</summary>
/// <remarks>
/// The file's bytes are read once and never written out again but for what changed: nodes that are added, and outputs. Weights in files beside the model stay there and are read by the runtime.
/// </remarks>
public sealed class OnnxModel : IDisposable
{
    private const long OldestOpset = 7;

    // The first line of what the runtime says carries its own names for the kind of error.
    private static readonly string[] Clutter = ["[ErrorCode:", "Load model from", "Exception during initialization:"];

    private readonly OnnxGraph _graph;
    private readonly Dictionary<string, TensorFact> _facts;
    private (InferenceSession Session, SessionOptions Options, string Key)? _session;

    private OnnxModel(string path, OnnxGraph graph, Dictionary<string, TensorFact> facts, IReadOnlyList<OnnxAttention> attentions, IReadOnlyList<string> notices, IReadOnlyList<string> weightFiles)
    {
        Path = path;
        _graph = graph;
        _facts = facts;
        Attentions = attentions;
        Notices = notices;
        WeightFiles = weightFiles;
        Inputs = [.. graph.Inputs.Select(value => new OnnxPort(value.Name, value.Type, value.Shape))];
        Outputs = [.. graph.Outputs.Select(value => new OnnxPort(value.Name, value.Type, value.Shape))];
    }

    /// <summary>The file.</summary>
    public string Path { get; }

    /// <summary>What a caller gives.</summary>
    public IReadOnlyList<OnnxPort> Inputs { get; }

    /// <summary>What the model gives.</summary>
    public IReadOnlyList<OnnxPort> Outputs { get; }

    /// <summary>Version of the standard operators that the model uses.</summary>
    public int OperatorVersion => (int)_graph.Opset;

    /// <summary>Number of the model's weights.</summary>
    public long ParameterCount => _graph.Constants.Values.Concat(_graph.Nodes.Where(node => node.Operation is "Constant").Select(node => node.Attribute("value")?.Tensor).OfType<OnnxConstant>())
        .Where(constant => constant.Type is OnnxElementType.Float32 or OnnxElementType.Float16 or OnnxElementType.BFloat16 or OnnxElementType.Float64).Sum(constant => constant.Count);

    /// <summary>The attentions, in the order in which the graph runs.</summary>
    public IReadOnlyList<OnnxAttention> Attentions { get; }

    /// <summary>Sentences about attention that cannot be shown.</summary>
    public IReadOnlyList<string> Notices { get; }

    /// <summary>Files beside the model that hold weights, as the model names them.</summary>
    public IReadOnlyList<string> WeightFiles { get; }

    /// <summary>Reads a model. Nothing runs yet.</summary>
    /// <param name="path">The <c>.onnx</c> file; weights in files beside it are looked for in its folder.</param>
    /// <exception cref="FileNotFoundException">There is no such file, or a file of weights beside it is missing.</exception>
    /// <exception cref="InvalidDataException">It is no ONNX model, or a damaged one.</exception>
    /// <exception cref="NotSupportedException">It uses operators older than version 7.</exception>
    public static OnnxModel Load(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"There is no model file '{path}'.", path);
        }

        var length = new FileInfo(path).Length;
        if (length > Array.MaxLength)
        {
            throw new InvalidDataException($"'{path}' has {length:N0} bytes, and the ONNX format ends at 2 GB: larger models keep their weights in files beside it.");
        }

        OnnxGraph graph;
        List<string> weights;
        try
        {
            graph = OnnxGraph.Read(File.ReadAllBytes(path));
            weights = [.. graph.Constants.Values.Where(constant => constant.IsExternal).Select(constant => constant.Location ?? "").Distinct(StringComparer.Ordinal)];
        }
        catch (InvalidDataException error)
        {
            throw new InvalidDataException($"'{path}' is not an ONNX model, or a damaged one: {error.Message}.", error);
        }

        if (graph.Opset is > 0 and < OldestOpset)
        {
            throw new NotSupportedException($"'{path}' uses version {graph.Opset} of the ONNX operators, and heed knows versions from {OldestOpset} on: export the model again with a newer one.");
        }

        var folder = System.IO.Path.GetFullPath(System.IO.Path.GetDirectoryName(System.IO.Path.GetFullPath(path))!);
        foreach (var file in weights)
        {
            var full = System.IO.Path.GetFullPath(System.IO.Path.Combine(folder, file));
            if (file.Length == 0 || !full.StartsWith(folder, StringComparison.Ordinal) || System.IO.Path.IsPathRooted(file))
            {
                throw new InvalidDataException($"'{path}' wants weights from '{file}', which does not lie in its own folder.");
            }

            if (!File.Exists(full))
            {
                throw new FileNotFoundException($"'{path}' keeps weights in the file '{file}' beside it, and that is missing: put it there.", full);
            }
        }

        var facts = ShapeInference.Infer(graph);
        var notices = new List<string>();
        return new(path, graph, facts, AttentionFinder.Find(graph, facts, notices), notices, weights);
    }

    /// <summary>The same model knowing the sizes of its inputs: numbers of heads that the graph alone does not say become known.</summary>
    /// <param name="shapes">Shapes by input.</param>
    public OnnxModel WithInputShapes(IReadOnlyDictionary<string, long[]> shapes)
    {
        ArgumentNullException.ThrowIfNull(shapes);
        var (facts, attentions) = Resolve(shapes);
        return new(Path, _graph, facts, attentions, Notices, WeightFiles);
    }

    /// <summary>The same model with edits in its graph.</summary>
    /// <param name="edits">The edits, one after the other.</param>
    /// <returns>Another model; this one stays as it is. Its attentions are this one's: their maps are those after the edits.</returns>
    /// <exception cref="ArgumentException">An edit names an attention or a head that there is not, or the model has no attention.</exception>
    /// <exception cref="NotSupportedException">An attention cannot be edited.</exception>
    public OnnxModel Edit(params IEnumerable<OnnxEdit> edits)
    {
        ArgumentNullException.ThrowIfNull(edits);
        NeedAttention();
        var graph = _graph.Copy();
        foreach (var edit in edits)
        {
            edit.Check(Attentions);
            MapRewriter.Edit(graph, Attentions, edit, _facts);
        }

        return new(Path, graph, _facts, Attentions, Notices, WeightFiles);
    }

    /// <summary>The same model with maps among its outputs, each as <c>[B, H, Nq, Nk]</c>: for programs that run it themselves.</summary>
    /// <param name="layers">Which attentions; null: all.</param>
    /// <returns>The model, and the names of the outputs in the order of the attentions.</returns>
    /// <exception cref="ArgumentException">The model has no attention.</exception>
    public (OnnxModel Model, IReadOnlyList<string> MapOutputs) WithMaps(IReadOnlySet<int>? layers = null)
    {
        NeedAttention();
        var graph = _graph.Copy();
        var names = MapRewriter.Expose(graph, Attentions.Where(attention => layers?.Contains(attention.Layer) != false), _facts);
        return (new(Path, graph, _facts, Attentions, Notices, WeightFiles), names);
    }

    /// <summary>Writes the model. Weights in files beside the original are referred to, not copied: the written file belongs into the same folder.</summary>
    /// <param name="stream">Receives the file.</param>
    public void WriteTo(Stream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        _graph.Write().WriteTo(stream);
    }

    /// <summary>Runs the model and takes its maps.</summary>
    /// <param name="inputs">Its inputs by name. Numbers become the type that the input takes, where nothing is lost.</param>
    /// <param name="options">How; null: all maps, within a gigabyte.</param>
    /// <param name="onMap">Gets the maps one by one instead of all at the end; nothing is kept of them then.</param>
    /// <param name="cancellation">Stops between and within runs.</param>
    /// <exception cref="ArgumentException">An input is missing, superfluous, or of another shape or type; there is no attention; or one map alone does not fit the budget.</exception>
    /// <exception cref="InvalidDataException">The runtime cannot load or run the model; the message says why.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public OnnxRun Run(IReadOnlyDictionary<string, OnnxTensor> inputs, OnnxRunOptions? options = null, Action<OnnxMap>? onMap = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(inputs);
        options ??= new();
        var given = Check(inputs);
        var (facts, attentions) = Resolve(given.ToDictionary(entry => entry.Key, entry => entry.Value.Shape.ToArray(), StringComparer.Ordinal));
        var wanted = attentions.Where(attention => options.Layers?.Contains(attention.Layer) != false).ToList();
        if (options.Layers is not { Count: 0 })
        {
            NeedAttention();
        }

        var graph = _graph.Copy();
        var names = MapRewriter.Expose(graph, wanted, facts);
        var session = Session(graph, options.Threads, names);
        string[] own = [.. _graph.Outputs.Where(output => output.IsTensor).Select(output => output.Name)];
        var maps = new List<OnnxMap>();
        var results = new Dictionary<string, OnnxTensor>(StringComparer.Ordinal);
        long kept = 0;
        foreach (var group in Groups(wanted, facts, options.MapBudget, apart: onMap is not null))
        {
            cancellation.ThrowIfCancellationRequested();
            string[] outputs = results.Count == 0 ? [.. own, .. group.Select(i => names[i]).Except(own)] : [.. group.Select(i => names[i])];
            foreach (var (name, tensor) in RunOnce(session, given, outputs, cancellation))
            {
                results[name] = tensor;
            }

            foreach (var i in group)
            {
                var map = Map(wanted[i], results[names[i]]);
                kept += onMap is null ? map.Values.LongLength * sizeof(float) : 0;
                if (Math.Max(kept, map.Values.LongLength * sizeof(float)) > options.MapBudget)
                {
                    throw TooLarge(wanted[i], kept, options.MapBudget);
                }

                if (!own.Contains(names[i]))
                {
                    results.Remove(names[i]);
                }

                if (onMap is null)
                {
                    maps.Add(map);
                }
                else
                {
                    onMap(map);
                }
            }
        }

        return new(results, maps);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _session?.Session.Dispose();
        _session?.Options.Dispose();
        _session = null;
    }

    private static ArgumentException TooLarge(OnnxAttention attention, long bytes, long budget) => new(string.Create(
        CultureInfo.InvariantCulture,
        $"The maps up to attention {attention.Layer} ({attention.Name}) take {Math.Max(bytes, budget + 1) / 1048576.0:F1} MB, and {budget / 1048576.0:F1} MB are allowed: look at fewer attentions, give a shorter input, or allow more."));

    private static OnnxMap Map(OnnxAttention attention, OnnxTensor tensor)
    {
        int[] shape = [.. tensor.Shape.Select(size => checked((int)size))];
        return shape is [var batch, var heads, var queries, var keys]
            ? new(attention with { Heads = heads }, tensor.ToSingles(), batch, heads, queries, keys)
            : throw new InvalidDataException($"The weights of attention {attention.Layer} ({attention.Name}) came out as [{string.Join(", ", shape)}], which is no map of batch, heads, queries and keys.");
    }

    /// <summary>Attentions whose maps fit the budget together, as far as their sizes are known before the run.</summary>
    private static IEnumerable<List<int>> Groups(List<OnnxAttention> attentions, Dictionary<string, TensorFact> facts, long budget, bool apart)
    {
        var group = new List<int>();
        long bytes = 0;
        for (var i = 0; i < attentions.Count; i++)
        {
            var shape = facts.GetValueOrDefault(attentions[i].Place.Weights)?.Shape;
            var size = shape is not null && shape.All(length => length is not null) ? shape.Aggregate(sizeof(float), (long product, long? length) => product * length!.Value) : budget;
            if (apart && group.Count > 0 && bytes + size > budget)
            {
                yield return group;
                (group, bytes) = ([], 0);
            }

            group.Add(i);
            bytes += size;
        }

        yield return group;
    }

    private static Dictionary<string, OnnxTensor> RunOnce(InferenceSession session, Dictionary<string, OnnxTensor> inputs, string[] outputs, CancellationToken cancellation)
    {
        var values = new List<OrtValue>();
        using var options = new RunOptions { LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL };
        using var stop = cancellation.Register(() => options.Terminate = true);
        try
        {
            values.AddRange(inputs.Values.Select(tensor => tensor.ToRuntime()));
            using var results = session.Run(options, [.. inputs.Keys], values, outputs);
            var tensors = new Dictionary<string, OnnxTensor>(StringComparer.Ordinal);
            for (var i = 0; i < outputs.Length; i++)
            {
                if (OnnxTensor.FromRuntime(results[i]) is { } tensor)
                {
                    tensors[outputs[i]] = tensor;
                }
            }

            return tensors;
        }
        catch (OnnxRuntimeException error)
        {
            cancellation.ThrowIfCancellationRequested();
            throw new InvalidDataException($"The model could not be run on this input: {Sentence(error)}", error);
        }
        finally
        {
            values.ForEach(value => value.Dispose());
        }
    }

    private static string Sentence(OnnxRuntimeException error)
    {
        var message = string.Join(' ', error.Message.Split(['\n', '\r'], StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries));
        foreach (var clutter in Clutter)
        {
            if (message.StartsWith(clutter, StringComparison.Ordinal) && message.IndexOf(clutter[0] == '[' ? ']' : ':', StringComparison.Ordinal) is > 0 and var end)
            {
                message = message[(end + 1)..].Trim();
            }
        }

        return $"ONNX Runtime says: {message.TrimEnd('.')}.";
    }

    private void NeedAttention()
    {
        if (Attentions.Count == 0)
        {
            throw new ArgumentException(
                $"No attention was found in '{Path}': no softmax over a product of queries and keys whose weights multiply values.{(Notices.Count > 0 ? $" {Notices[0]}" : "")}");
        }
    }

    private (Dictionary<string, TensorFact> Facts, IReadOnlyList<OnnxAttention> Attentions) Resolve(IReadOnlyDictionary<string, long[]> shapes)
    {
        // An edited graph has the maps under the names that they had; what their axes are does not change either, so the graph as it was read answers.
        var facts = ShapeInference.Infer(_graph, shapes);
        var found = AttentionFinder.Find(_graph, facts, []).ToDictionary(attention => attention.Place.Node, StringComparer.Ordinal);
        return (facts, [.. Attentions.Select(attention => found.GetValueOrDefault(attention.Place.Node) is { } better && better.Place.Weights == attention.Place.Weights && better.Heads is not null
            ? better with { Layer = attention.Layer, IsCausal = attention.IsCausal, Kind = attention.Kind } : attention)]);
    }

    private Dictionary<string, OnnxTensor> Check(IReadOnlyDictionary<string, OnnxTensor> inputs)
    {
        if (inputs.Keys.FirstOrDefault(name => Inputs.All(input => input.Name != name)) is { } unknown)
        {
            throw new ArgumentException($"The model has no input '{unknown}'; it has: {string.Join(", ", Inputs)}.");
        }

        var given = new Dictionary<string, OnnxTensor>(StringComparer.Ordinal);
        foreach (var input in Inputs)
        {
            var tensor = inputs.GetValueOrDefault(input.Name) ?? throw new ArgumentException($"The model's input {input} was not given.");
            if (input.Shape is { } shape && (shape.Count != tensor.Shape.Count || shape.Zip(tensor.Shape).Any(sizes => sizes.First is { } size && size != sizes.Second)))
            {
                throw new ArgumentException($"The model's input {input} was given as [{string.Join(", ", tensor.Shape)}].");
            }

            given[input.Name] = tensor.To(input.Type, input.Name);
        }

        return given;
    }

    private InferenceSession Session(OnnxGraph graph, int threads, List<string> names)
    {
        var key = $"{threads} {string.Join(' ', names)}";
        if (_session is { } session && session.Key == key)
        {
            return session.Session;
        }

        Dispose();
        var message = graph.Write();
        if (message.Length > Array.MaxLength)
        {
            throw new InvalidDataException($"'{Path}' with its maps among its outputs is larger than 2 GB, where the ONNX format ends: keep its weights in a file beside it.");
        }

        // The runtime would otherwise write what it throws to standard error as well.
        if (!OrtEnv.IsCreated)
        {
            var environment = new EnvironmentCreationOptions { logId = "heed", logLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL };
            OrtEnv.CreateInstanceWithOptions(ref environment);
        }

        var options = new SessionOptions { LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL, IntraOpNumThreads = threads };
        try
        {
            if (WeightFiles.Count > 0)
            {
                options.AddSessionConfigEntry("session.model_external_initializers_file_folder_path", System.IO.Path.GetDirectoryName(System.IO.Path.GetFullPath(Path))!);
            }

            var created = new InferenceSession(message.ToArray(), options);
            _session = (created, options, key);
            return created;
        }
        catch (OnnxRuntimeException error)
        {
            options.Dispose();
            throw new InvalidDataException($"'{Path}' could not be loaded. {Sentence(error)}", error);
        }
    }
}
