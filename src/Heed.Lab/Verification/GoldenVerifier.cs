using Heed.Lab.Verification.Operations;
using static TorchSharp.torch;

namespace Heed.Lab.Verification;

/// <summary>How a case went.</summary>
/// <param name="Case">The case: its file's name without extension, below the folder that was verified.</param>
/// <param name="Operation">The operation; empty where the file could not be read.</param>
/// <param name="Passed">Whether everything expected was computed and is within tolerance.</param>
/// <param name="MaxError">The absolute error that is worst against its tolerance; null where the case could not be run, infinite where a value is not finite.</param>
/// <param name="Tolerance">The tolerance of that element; null where the case could not be run.</param>
/// <param name="Message">Which tensor is worst, or why the case could not be run.</param>
public sealed record GoldenResult(string Case, string Operation, bool Passed, double? MaxError, double? Tolerance, string Message);

/// <summary>Runs golden cases.</summary>
public static class GoldenVerifier
{
    /// <summary>The operations that can be verified, by name.</summary>
    public static IReadOnlyDictionary<string, GoldenOperation> Operations { get; } = new GoldenOperation[]
    {
        new CheckpointLogits(),
        new Qwen3GatedAttention(),
        new Qwen3ForCausalLM(),
        new GatedAttentionVariant(),
        new SinkStatistics(),
        new NeighborhoodAttentionOperation(),
        new NeighborhoodAttentionModuleOperation(),
        new WindowBoundsOperation(),
        new TokenPermuteOperation(),
        new SpeedupBoundOperation(),
        new MergeAttentionsOperation(),
        new InwardWindowOperation(),
        new InwardWindowAttentionOperation(),
        new DualPathAttention(),
        new CachedDualPathAttention(),
        new DualPathModel(),
        new CachedDualPathModel(),
        new MixtureOfBlocksOperation(),
        new BlockPartitionOperation(),
        new VMoBALayerOperation(),
        new TheoreticalFlopsOperation(),
        new PyramidAttentionOperation(),
        new LevelMapOperation(),
        new CausalLevelMapOperation(),
        new SampledImportanceOperation(),
        new AntidiagonalImportanceOperation(),
        new KeySimilarityLevelOperation(),
        new GilbertOrderOperation(),
        new PyramidSparseAttentionOperation(),
        new CausalPyramidAttentionOperation(),
        new HipTreeAttention(),
        new HipChunkScan(),
        new SuperlinearAttentionCase(),
        new DynamicMasks(),
        new DynamicMaskedAttention(),
        new DogeLayer(),
        new FactoredBias(),
        new MultipliedBias(),
        new AlibiModule(),
        new SpatialBiasModule(),
        new SvdBiasAttention(),
        new NeuralFactors(),
        new MoHAttention(),
        new MoHLlamaAttention(),
        new TransNeXtAttentionOperation(),
        new TransNeXtAggregatedAttention(),
        new TransNeXtBlockOperation(),
        new MoHDiT(),
        new ReducedAttentionOperation(),
        new ReducedEncoderOperation(),
        new CollapseStackOperation(),
        new RelativeConvolutionalAttentionOperation(),
        new TransformerXLLayerOperation(),
        new AutoregressiveModelOperation(),
        new AgentAttentionOperation(),
        new TokenMergeOperation(),
        new AgentSdAttentionOperation(),
        new AgentDeiTOperation(),
        new GaussianAdaptiveAttentionOperation(),
        new MultiHeadGaussianOperation(),
        new GaussianBlockOperation(),
        new LayerwiseGaussianOperation(),
        new GroupedQueryGaussianOperation(),
        new ImportanceFactorOperation(),
        new CrossScan(),
        new LocalScan(),
        new ContinuousScan(),
        new AtrousScan(),
        new ZigzagScan(),
        new SS2DOperation(),
        new VSSBlockOperation(),
        new VMambaOperation(),
        new AtrousSelectiveScanOperation(),
        new PlainMambaMixerOperation(),
        new LocalVimMixerOperation(),
        new SelectiveScanOperation(),
        new SsdChunkScanOperation(),
        new MambaMixerOperation(),
        new VimMixerOperation(),
        new VimOperation(),
        new FocalModulationOperation(),
        new FocalNetBlockOperation(),
        new FocalNetOperation(),
        new GatedCnnBlockOperation(),
        new MambaOutOperation(),
        new NiNBlockOperation(),
        new NiNformerClassifierOperation(),
        new SubspaceAttentionOperation(),
        new ContMixBlockOperation(),
        new DilatedReparamOperation(),
        new FocusBlockOperation(),
        new OverLoCKOperation(),
        new DetectSinks(),
        new SteerSinkNorm(),
        new SinkProbeOperation(),
        new HeadIntervention(),
        new IclSoftmaxAttentionOperation(),
        new IclPredictorsOperation(),
        new LinearRegressionDataOperation(),
        new MultiTaskDataOperation(),
        new BrainEncoderOperation(),
        new LayerEnsembleOperation(),
        new BigramBackcopySequence(),
        new BigramBackcopyTransformerOperation(),
        new ReducedSinkDynamicsOperation(),
        new OnnxAttentionMaps(),
        new CalibrateOperation(),
        new VisualAttentionRedistributionOperation(),
        new SelectVisualTokensOperation(),
        new InformedTokenAttentionOperation(),
        new VisualGuidanceOperation(),
        new SpesExplanationOperation(),
        new DeletionCurveOperation(),
        new AlignBoundariesOperation(),
        new AttentionSaliencyCorrelationOperation(),
    }.ToDictionary(operation => operation.Name, StringComparer.Ordinal);

    /// <summary>Runs the cases in a folder and one level below, one after the other. Files that are not cases are passed over.</summary>
    /// <param name="folder">The folder.</param>
    /// <returns>A result per case, in the order of their names, as they finish.</returns>
    /// <exception cref="DirectoryNotFoundException">There is no such folder.</exception>
    public static IEnumerable<GoldenResult> Verify(string folder)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        if (!Directory.Exists(folder))
        {
            throw new DirectoryNotFoundException($"The folder {folder} does not exist.");
        }

        return Files(folder).Select(path => Run(path, Path.ChangeExtension(Path.GetRelativePath(folder, path), null).Replace('\\', '/'))).OfType<GoldenResult>();
    }

    /// <summary>Runs one file.</summary>
    /// <param name="path">The file.</param>
    /// <param name="name">What to call it in the result.</param>
    /// <returns>The result; null where the file is not a case.</returns>
    public static GoldenResult? Run(string path, string name)
    {
        var operation = "";
        try
        {
            using var golden = GoldenCase.Open(path);
            if (golden is null)
            {
                return null;
            }

            operation = golden.Operation;
            if (!Operations.TryGetValue(operation, out var found))
            {
                return new GoldenResult(name, operation, false, null, null, $"The operation '{operation}' is not known here.");
            }

            using var scope = NewDisposeScope();
            using var run = new GoldenRun(golden, found.NeedsDouble ? ScalarType.Float64 : TypeOf(golden));
            found.Run(run);
            run.Finish();
            return new GoldenResult(name, operation, run.Worst.IsWithin, run.Worst.Error, run.Worst.Tolerance, $"worst: {run.Worst.Name}");
        }
        catch (Exception error) when (error is not (DllNotFoundException or TypeInitializationException or OutOfMemoryException))
        {
            return new GoldenResult(name, operation, false, null, null, error.Message.ReplaceLineEndings(" "));
        }
    }

    /// <summary>Whoever uses attention runs it in float32, so that is what is verified, wherever the tolerance leaves room for float32's rounding. The absolute part decides: near zero
    /// nothing else is left of the tolerance, and sums of larger numbers that come out there (gradients over tokens, distances from their factors) carry the rounding of those.</summary>
    private static ScalarType TypeOf(GoldenCase golden) => golden.AbsoluteTolerance >= 2e-6 ? ScalarType.Float32 : ScalarType.Float64;

    private static IEnumerable<string> Files(string folder) => new[] { folder }.Concat(Directory.EnumerateDirectories(folder).Order(StringComparer.Ordinal))
        .SelectMany(inner => Directory.EnumerateFiles(inner, "*.safetensors").Order(StringComparer.Ordinal));
}
