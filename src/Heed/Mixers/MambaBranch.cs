using Heed.Layers;
using Heed.Probes;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>One direction of a Mamba mixer between its projections: causal depth-wise convolution, SiLU, the maps of the selective scan from what came out, and the scan (arXiv 2312.00752, figure 3 and algorithm 2).
/// The parameters belong to the mixer, under the names that its checkpoints have.</summary>
/// <param name="Convolution">Holds the filters <c>[E, 1, k]</c> and their bias.</param>
/// <param name="Maps">E to R + 2 N without bias: step, input map, output map.</param>
/// <param name="Step">R to E; the bias is added within the scan, once.</param>
/// <param name="LogA"><c>[E, N]</c>: A = -exp of it.</param>
/// <param name="Skip">D, <c>[E]</c>.</param>
internal readonly record struct MambaBranch(Conv1d Convolution, Linear Maps, Linear Step, Parameter LogA, Parameter Skip)
{
    private const double LeastStep = 1e-3;
    private const double MostStep = 0.1;
    private const double StepFloor = 1e-4;

    /// <summary>The rank R of the steps where none is given.</summary>
    public static int DefaultStepRank(int width) => (width + 15) / 16;

    /// <summary>The freshly initialised parts of a direction, for a mixer to take as its own.</summary>
    public static MambaBranch Create(MambaOptions options) => new(
        NewConvolution(options.Channels, options.Kernel, options.ConvolutionBias),
        nn.Linear(options.Channels, options.Rank + (2 * options.States), hasBias: false),
        NewStep(options.Rank, options.Channels),
        NewLogA(options.Channels, options.States),
        NewSkip(options.Channels));

    /// <summary>The module that holds the filters.</summary>
    public static Conv1d NewConvolution(int channels, int kernel, bool bias) => nn.Conv1d(channels, channels, kernel, padding: kernel - 1, groups: channels, bias: bias);

    /// <summary>log(1 ... N) for every channel.</summary>
    public static Parameter NewLogA(int channels, int states) => Parameters.Make([channels, states], tensor =>
    {
        using var row = arange(1, states + 1, dtype: float32);
        using var logarithm = row.log();
        tensor.copy_(logarithm.expand(channels, states));
    });

    /// <summary>Ones for every channel.</summary>
    public static Parameter NewSkip(int channels) => Parameters.Make([channels], tensor => tensor.fill_(1));

    /// <summary>The projection of the steps: weights uniform within R^(-1/2), the bias so that steps after softplus are log-uniform in [0.001, 0.1].</summary>
    public static Linear NewStep(int rank, int channels)
    {
        var step = nn.Linear(rank, channels);
        FillStep(step.weight!, step.bias!);
        return step;
    }

    /// <summary>Fills weights <c>[..., E, R]</c> and biases <c>[..., E]</c> of a projection of the steps as <see cref="NewStep"/> says.</summary>
    public static void FillStep(Tensor weight, Tensor bias)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var bound = 1 / Math.Sqrt(weight.shape[^1]);
        nn.init.uniform_(weight, -bound, bound);
        using Scalar range = Math.Log(MostStep) - Math.Log(LeastStep);
        using Scalar least = Math.Log(LeastStep);
        using Scalar floor = StepFloor;
        var steps = ((rand(bias.shape) * range) + least).exp().clamp(floor);
        bias.copy_(steps + (-(-steps).expm1()).log());
    }

    /// <summary>Computes the output of the direction.</summary>
    /// <param name="tokens"><c>[B, E, T]</c>, before the convolution.</param>
    /// <param name="gate">z, <c>[B, E, T]</c>; null: none.</param>
    /// <param name="withStep">Whether the steps after softplus are wanted, for maps.</param>
    /// <returns>The output <c>[B, E, T]</c> and the steps <c>[B, E, T]</c> (without gradient) where they are wanted.</returns>
    public (Tensor Output, Tensor? Step) Run(Tensor tokens, Tensor? gate, bool withStep = false)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(tokens);
        var output = SelectiveScan.Apply(inputs.Tokens, inputs.Delta, inputs.A, inputs.B, inputs.C, Skip, gate, Step.bias, deltaSoftplus: true).Output;
        var step = withStep ? nn.functional.softplus(inputs.Delta.detach() + Step.bias!.detach().unsqueeze(1)).MoveToOuterDisposeScope() : null;
        return (output.MoveToOuterDisposeScope(), step);
    }

    /// <summary>What the scan reads; in the dispose scope of the caller.</summary>
    internal (Tensor Tokens, Tensor Delta, Tensor A, Tensor B, Tensor C) Inputs(Tensor tokens)
    {
        var (rank, states) = (Step.weight!.shape[1], LogA.shape[1]);
        var convolved = nn.functional.silu(DepthwiseConvolution.ApplyCausal(tokens, Convolution.weight!, Convolution.bias));
        var maps = Maps.forward(convolved.transpose(1, 2));
        var delta = nn.functional.linear(maps.narrow(2, 0, rank), Step.weight).transpose(1, 2);
        return (convolved, delta, -LogA.exp(), maps.narrow(2, rank, states).transpose(1, 2), maps.narrow(2, rank + states, states).transpose(1, 2));
    }

    /// <summary>Hands over how strongly the scans answered at every place of the picture (the norm over channels), and how long their steps were (the mean). The steps are there
    /// where the source has a recorder.</summary>
    internal static void Record(IMapSource source, TokenGrid? grid, IReadOnlyList<string> directions, IEnumerable<Tensor> outputs, IEnumerable<Tensor?> steps)
    {
        if (source.Recorder is not { } recorder || grid is null)
        {
            return;
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        recorder.Record(source, "response", grid.Maps(stack(outputs.Select(output => linalg.norm(output.detach(), dims: [1])), 1)), [.. directions.Select(direction => $"response, {direction}")]);
        recorder.Record(source, "step", grid.Maps(stack(steps.Select(step => step!.mean([1L])), 1)), [.. directions.Select(direction => $"step, {direction}")]);
    }
}
