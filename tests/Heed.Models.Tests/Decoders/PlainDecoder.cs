using Heed.Masks;
using Heed.Models.Decoders;

namespace Heed.Models.Tests.Decoders;

/// <summary>The decoders written out in plain loops over float64 arrays, with nothing of the library's but the configuration and the weights.</summary>
internal sealed class PlainDecoder(DecoderConfiguration configuration, Func<string, double[]?> weight)
{
    private readonly int _headWidth = configuration.HeadWidth == 0 ? configuration.HiddenSize / configuration.Heads : configuration.HeadWidth;
    private readonly int _groups = configuration.KeyValueHeads == 0 ? configuration.Heads : configuration.KeyValueHeads;

    /// <summary>Logits of every token of one text.</summary>
    public double[][] Logits(int[] ids)
    {
        var embedding = weight("model.embed_tokens.weight")!;
        var width = configuration.HiddenSize;
        var states = ids.Select(id => embedding[(id * width)..((id + 1) * width)]).ToArray();
        for (var layer = 0; layer < configuration.Layers; layer++)
        {
            var prefix = $"model.layers.{layer}.";
            var normal = states.Select(state => Norm(state, $"{prefix}input_layernorm")).ToArray();
            var attended = Attention(normal, $"{prefix}self_attn.", configuration.WindowOf(layer));
            for (var i = 0; i < states.Length; i++)
            {
                states[i] = Sum(Weighted(states[i], $"{prefix}input_residual"), attended[i]);
                var inner = Norm(states[i], $"{prefix}post_attention_layernorm");
                var (gate, up) = (Linear(inner, $"{prefix}mlp.gate_proj"), Linear(inner, $"{prefix}mlp.up_proj"));
                states[i] = Sum(Weighted(states[i], $"{prefix}post_attention_residual"), Linear([.. gate.Select((value, at) => value / (1 + Math.Exp(-value)) * up[at])], $"{prefix}mlp.down_proj"));
            }
        }

        return [.. states.Select(state => Linear(Norm(state, "model.norm"), configuration.TieEmbeddings ? "model.embed_tokens" : "lm_head"))];
    }

    private static double[] Sum(double[] left, double[] right) => [.. left.Zip(right, (x, y) => x + y)];

    private double[] Weighted(double[] residual, string name) => weight(name) is { } gains ? [.. residual.Zip(gains, (x, y) => x * y)] : residual;

    private double[][] Attention(double[][] inputs, string prefix, int? window)
    {
        var perGroup = configuration.Heads / _groups;
        var gateWidth = configuration.OutputGate switch { OutputGate.Headwise => 1, OutputGate.Elementwise => _headWidth, _ => 0 };
        var queries = inputs.Select(input => Linear(input, $"{prefix}q_proj")).ToArray();
        var keys = inputs.Select(input => Linear(input, $"{prefix}k_proj")).ToArray();
        var values = inputs.Select(input => Linear(input, $"{prefix}v_proj")).ToArray();
        var importance = configuration.DynamicMaskWindow is null ? null : values.Select(value => Importance(value, prefix)).ToArray();
        var outputs = new double[inputs.Length][];
        for (var i = 0; i < inputs.Length; i++)
        {
            var merged = new double[configuration.Heads * _headWidth];
            for (var head = 0; head < configuration.Heads; head++)
            {
                var (group, member) = (head / perGroup, head % perGroup);
                var groupStart = group * perGroup * (_headWidth + gateWidth);
                var query = Position(Part(queries[i], groupStart + (member * _headWidth), $"{prefix}q_norm"), i);
                var seen = Enumerable.Range(0, i + 1).Where(j => window is null || j > i - window).ToArray();
                if (importance is not null)
                {
                    // The same token has the same importance in the first layer: the later one stays.
                    seen = [.. seen.OrderByDescending(j => importance[j][group]).ThenByDescending(j => j).Take(configuration.DynamicMaskWindow!.Value)];
                }

                var weights = seen.Select(j =>
                    Math.Exp((query.Zip(Position(Part(keys[j], group * _headWidth, $"{prefix}k_norm"), j), (x, y) => x * y).Sum() / Math.Sqrt(_headWidth)) + (importance?[j][group] ?? 0))).ToArray();
                var total = weights.Sum();
                for (var element = 0; element < _headWidth; element++)
                {
                    var output = weights.Select((value, at) => value / total * values[seen[at]][(group * _headWidth) + element]).Sum();
                    if (gateWidth > 0)
                    {
                        var score = queries[i][groupStart + (perGroup * _headWidth) + (member * gateWidth) + (gateWidth == 1 ? 0 : element)];
                        output /= 1 + Math.Exp(-score);
                    }

                    merged[(head * _headWidth) + element] = output;
                }
            }

            outputs[i] = Linear(merged, $"{prefix}o_proj");
        }

        return outputs;
    }

    private double[] Importance(double[] value, string prefix)
    {
        var amplitude = weight($"{prefix}A")!;
        var linear = Linear(value, $"{prefix}dt_proj").Select((step, group) => amplitude[group] * Math.Log(1 + Math.Exp(step)));
        return [.. configuration.DynamicMaskForm == ImportanceForm.Exponential ? linear.Select(Math.Exp) : linear];
    }

    private double[] Part(double[] projected, int start, string norm)
    {
        var part = projected[start..(start + _headWidth)];
        return configuration.QueryKeyNorm ? Norm(part, norm) : part;
    }

    private double[] Position(double[] vector, int position)
    {
        var half = _headWidth / 2;
        var turned = new double[_headWidth];
        for (var pair = 0; pair < half; pair++)
        {
            var angle = position * Math.Pow(configuration.RotaryTheta, -2.0 * pair / _headWidth);
            turned[pair] = (vector[pair] * Math.Cos(angle)) - (vector[pair + half] * Math.Sin(angle));
            turned[pair + half] = (vector[pair + half] * Math.Cos(angle)) + (vector[pair] * Math.Sin(angle));
        }

        return turned;
    }

    private double[] Norm(double[] vector, string name)
    {
        var scale = 1 / Math.Sqrt(vector.Average(value => value * value) + configuration.NormEpsilon);
        var gain = weight($"{name}.weight")!;
        return [.. vector.Select((value, at) => value * scale * gain[at])];
    }

    private double[] Linear(double[] input, string name)
    {
        var (matrix, bias) = (weight($"{name}.weight")!, weight($"{name}.bias"));
        return [.. Enumerable.Range(0, matrix.Length / input.Length).Select(row => (bias?[row] ?? 0) + input.Select((value, at) => value * matrix[(row * input.Length) + at]).Sum())];
    }
}
