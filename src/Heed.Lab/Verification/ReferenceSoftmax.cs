using static TorchSharp.torch;

namespace Heed.Lab.Verification;

/// <summary>A softmax in float32 that rounds as the one did that made the golden cases: some authors take it in float32 whatever the type of their inputs, and their cases in float64 hold the rounding of that, which is far
/// above the cases' tolerance.</summary>
/// <remarks>Exponentials by the polynomial of degree 6 after reduction by ln 2, sums in eight lanes that are added by halves, then a product with the reciprocal.</remarks>
internal sealed class ReferenceSoftmax : AttentionHook
{
    private const int Lanes = 8;
    private const float Least = -104;
    private static readonly float[] s_coefficients =
        [0.00139304355252534151077271f, 0.00833336077630519866943359f, 0.0416664853692054748535156f, 0.166666671633720397949219f, 0.5f];

    private Tensor? _scores;

    public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Scores | AttentionStages.Weights;

    public override Tensor OnScores(AttentionCall call, Tensor scores) => _scores = scores;

    public override Tensor OnWeights(AttentionCall call, Tensor weights)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var values = _scores!.to(float32).contiguous().data<float>().ToArray();
        var length = (int)weights.shape[^1];
        for (var start = 0; start < values.Length; start += length)
        {
            Normalize(values.AsSpan(start, length));
        }

        return tensor(values).view(weights.shape).to(weights.dtype).MoveToOuterDisposeScope();
    }

    private static void Normalize(Span<float> row)
    {
        var largest = float.NegativeInfinity;
        foreach (var score in row)
        {
            largest = MathF.Max(largest, score);
        }

        for (var i = 0; i < row.Length; i++)
        {
            row[i] = Exponential(row[i] - largest);
        }

        var reciprocal = 1 / Sum(row);
        for (var i = 0; i < row.Length; i++)
        {
            row[i] *= reciprocal;
        }
    }

    private static float Sum(ReadOnlySpan<float> row)
    {
        if (row.Length < Lanes)
        {
            var total = row[0];
            foreach (var value in row[1..])
            {
                total += value;
            }

            return total;
        }

        Span<float> lanes = stackalloc float[Lanes];
        row[..Lanes].CopyTo(lanes);
        for (var i = Lanes; i < row.Length; i++)
        {
            lanes[i % Lanes] += row[i];
        }

        for (var half = Lanes / 2; half > 0; half /= 2)
        {
            for (var lane = 0; lane < half; lane++)
            {
                lanes[lane] += lanes[lane + half];
            }
        }

        return lanes[0];
    }

    private static float Exponential(float x)
    {
        if (x < Least)
        {
            return 0;
        }

        var power = MathF.Round(x * 1.44269504f);
        var rest = MathF.FusedMultiplyAdd(power, -0.693145751953125f, x);
        rest = MathF.FusedMultiplyAdd(power, -1.428606765330187045e-06f, rest);
        var sum = 0.000198527617612853646278381f;
        foreach (var coefficient in s_coefficients)
        {
            sum = MathF.FusedMultiplyAdd(sum, rest, coefficient);
        }

        return MathF.ScaleB(1 + MathF.FusedMultiplyAdd(rest * rest, sum, rest), (int)power);
    }
}
