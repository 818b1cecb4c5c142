using Heed.Onnx;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Attention maps and outputs of an ONNX model beside the case.</summary>
internal sealed class OnnxAttentionMaps : GoldenOperation
{
    private const string InputPrefix = "in.";
    private const string OutputPrefix = "out.";

    public override string Name => "onnx/AttentionMaps";

    public override void Run(GoldenRun run)
    {
        var file = run.Case.Text("model");
        if (Path.GetFileName(file) != file || file is "" or "." or "..")
        {
            throw new InvalidDataException($"The case's model '{file}' is not a plain name of a file beside it.");
        }

        using var model = OnnxModel.Load(Path.Combine(Path.GetDirectoryName(Path.GetFullPath(run.Case.Path))!, file));
        // An exporter drops an input that nothing needs; a model's only input may be called otherwise in the case.
        var given = run.Case.Names.Where(name => name.StartsWith(InputPrefix, StringComparison.Ordinal)).Select(name => name[InputPrefix.Length..]).ToList();
        var inputs = given is [var only] && model.Inputs is [var port]
            ? new Dictionary<string, OnnxTensor> { [port.Name] = ToOnnx(run.Case.Read(InputPrefix + only)) }
            : given.Where(name => model.Inputs.Any(input => input.Name == name)).ToDictionary(name => name, name => ToOnnx(run.Case.Read(InputPrefix + name)));
        var result = model.Run(inputs, new() { Layers = model.Attentions.Select(attention => attention.Layer).ToHashSet() });
        foreach (var map in result.Maps)
        {
            run.Output($"map.{map.Attention.Layer}", tensor(map.Values, [map.Batch, map.Heads, map.Queries, map.Keys]));
        }

        // A classifier's softmax that passed for attention would be one map too many.
        if (run.Case.Integer("maps", result.Maps.Count) is var expected && expected != result.Maps.Count)
        {
            throw new InvalidDataException($"{result.Maps.Count} attentions were found, and {expected} were expected.");
        }

        var outputs = run.Case.Names.Where(name => name.StartsWith(OutputPrefix, StringComparison.Ordinal)).Select(name => name[OutputPrefix.Length..]).Where(name => !name.StartsWith("map.", StringComparison.Ordinal)).ToList();
        foreach (var (name, value) in result.Outputs)
        {
            // A case may call a model's only output as it likes.
            run.Output(outputs.Count == 1 && result.Outputs.Count == 1 ? outputs[0] : name, tensor(value.ToSingles(), value.Shape.ToArray()));
        }
    }

    private static OnnxTensor ToOnnx(Tensor value)
    {
        using var plain = value.contiguous();
        return is_floating_point(value) ? OnnxTensor.Of(plain.to(ScalarType.Float64).data<double>().ToArray(), value.shape) : OnnxTensor.Of(plain.to(ScalarType.Int64).data<long>().ToArray(), value.shape);
    }
}
