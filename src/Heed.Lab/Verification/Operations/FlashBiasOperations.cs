using Heed.Biases;
using Heed.Heads;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>The authors' attention with factors appended (arXiv 2505.12044), forward and backward.</summary>
internal sealed class FactoredBias : GoldenOperation
{
    public override string Name => "flashbias/FactoredBiasAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var mask = golden.Has("in.mask") ? run.Input("mask") : null;
        run.Output("output", FactoredBiasAttention.Compute(
            run.Input("query"), run.Input("key"), run.Input("value"), run.Input("q_bias"), run.Input("k_bias"), mask, golden.Flag("causal", false), FlashBiasCases.Scale(golden)));
    }
}

/// <summary>The bias that multiplies the query-key product (appendix J).</summary>
internal sealed class MultipliedBias : GoldenOperation
{
    public override string Name => "flashbias/MultiplicativeBiasAttention";

    public override void Run(GoldenRun run) => run.Output("output", FactoredBiasAttention.Multiply(
        run.Input("query"), run.Input("key"), run.Input("value"), run.Input("q_bias"), run.Input("k_bias"), run.Case.Flag("causal", false), FlashBiasCases.Scale(run.Case)));
}

/// <summary>The language model's module, with the authors' sign of ALiBi and with the usual one.</summary>
internal sealed class AlibiModule : GoldenOperation
{
    public override string Name => "flashbias/AlibiAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var sign = golden.Number("bias_sign", 1) switch
        {
            1 => AlibiSign.Reward,
            -1 => AlibiSign.Penalise,
            var other => throw new InvalidDataException($"The case's bias_sign is {other}; known are 1 and -1."),
        };
        AlibiAttention Make(AlibiSign chosen) => new(golden.Integer("dim"), golden.Integer("num_heads"), golden.Integer("head_dim", 0), chosen, golden.Flag("causal", true));
        var usual = Make(AlibiSign.Penalise);
        run.Load(usual);
        var module = Make(sign);
        run.Load(module);
        var input = run.Input("x");
        run.Output("slopes", module.Slopes);
        run.Output("output", module.forward(input));
        run.Output("output_standard_sign", usual.forward(input));
    }
}

/// <summary>The point-cloud model's module: distances weighted by the token.</summary>
internal sealed class SpatialBiasModule : GoldenOperation
{
    public override string Name => "flashbias/SpatialBiasAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new SpatialBiasAttention(golden.Integer("dim"), golden.Integer("num_heads"));
        run.Load(module);
        var (input, positions) = (run.Input("x"), run.Input("positions"));
        if (positions.shape[^1] != golden.Integer("space_dim", (int)positions.shape[^1]))
        {
            throw new InvalidDataException($"The case's space_dim is {golden.Integer("space_dim")}, and its positions have {positions.shape[^1]} axes.");
        }

        var distances = LowRankBiases.SquaredDistance(positions, positions);
        run.Output("q_bias", distances.QueryFactors.transpose(1, 2));
        run.Output("k_bias", distances.KeyFactors.transpose(1, 2));
        run.Output("bias", LowRankBiases.Dense(distances).squeeze(1));
        run.Output("output", module.forward(input, positions));
    }
}

/// <summary>A stored bias cut to a rank by singular value decomposition, per head.</summary>
internal sealed class SvdBiasAttention : GoldenOperation
{
    public override string Name => "flashbias/SvdBiasAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (query, key, value, bias) = (run.Input("query"), run.Input("key"), run.Input("value"), run.Input("bias"));
        using var decomposition = SvdBias.Decompose(bias);
        var rank = golden.Integer("rank");
        var split = golden.Choice("split", "sqrt", ("sqrt", FactorSplit.SquareRoot), ("left", FactorSplit.Query), ("query", FactorSplit.Query), ("right", FactorSplit.Key), ("key", FactorSplit.Key));
        var factors = decomposition.Truncate(rank, split, run.Type);
        var heads = Enumerable.Range(0, decomposition.Heads).ToList();
        run.Output("bias_approx", LowRankBiases.Dense(factors).squeeze(0));
        run.Output("energy", tensor(heads.Select(head => decomposition.Energy(head, rank)).ToArray()));
        run.Output("rank_at_energy", tensor(heads.Select(head => (long)decomposition.RankFor(head, golden.Number("energy_threshold", 0.995))).ToArray()));
        if (golden.Has("out.singular_values"))
        {
            using var expected = golden.Read("out.singular_values");
            run.Output("singular_values", decomposition.SingularValues.narrow(1, 0, Math.Min(expected.shape[^1], decomposition.FullRank)));
        }

        var (causal, scale) = (golden.Flag("causal", false), FlashBiasCases.Scale(golden));
        run.Output("output", FactoredBiasAttention.Compute(query, key, value, factors.QueryFactors.transpose(1, 2), factors.KeyFactors.transpose(1, 2), causal: causal, scale: scale));
        var options = new AttentionOptions { Scale = scale, Causal = causal ? Kernels.Causality.AlignedToStart : Kernels.Causality.None, Biases = [new DenseBias(bias)] };
        run.Output("output_full_bias", Attention.Compute(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), options).transpose(1, 2));
    }
}

/// <summary>The two networks that reproduce AlphaFold 3's triangle bias.</summary>
internal sealed class NeuralFactors : GoldenOperation
{
    public override string Name => "flashbias/NeuralBiasFactorizer";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (pair, single) = (run.Input("pair"), run.Input("single"));
        var width = golden.Integer("c_in") + golden.Integer("c_single");
        var module = new NeuralBiasFactorizer(width, width, golden.Integer("num_heads"), golden.Integer("rank"), golden.Integer("hidden"), golden.Integer("c_in"));
        run.Load(module);
        var (factors, bias) = (module.FromPair(pair, single), module.PairBias(pair));
        run.Output("q_bias", factors.QueryFactors);
        run.Output("k_bias", factors.KeyFactors);
        run.Output("bias", bias);
        run.Output("loss", NeuralBiasFactorizer.Loss(factors, bias));
    }
}

internal static class FlashBiasCases
{
    public static double? Scale(GoldenCase golden) => golden.HasOption("scale") ? golden.Number("scale") : null;
}
