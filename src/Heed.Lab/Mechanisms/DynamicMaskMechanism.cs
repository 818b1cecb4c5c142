using Heed.Masks;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Lab.Mechanisms;

/// <summary>Dynamic masks with parameters drawn at random, as a layer has them before it is trained.</summary>
internal static class DynamicMaskMechanism
{
    public const string Usage = "dma:w=128,form=linear,a=0.02,seed=1";

    public static Func<AttentionSite, AttentionSelector?> Create(Specification specification)
    {
        var (window, deviation, seed) = (specification.Integer("w", 128, 1), specification.Number("a", 0.02), specification.Integer("seed", 1, 0));
        var form = FormOf(specification);
        if (!double.IsFinite(deviation) || deviation < 0)
        {
            throw new ArgumentException($"a of '{specification.Name}' is the deviation of the amplitudes, from 0, not {deviation}.");
        }

        return site => new DynamicMaskSelector(window, new Untrained(form, deviation, (ulong)(seed + (1000L * Math.Max(0, site.Layer)))).Importance);
    }

    /// <summary>The option <c>form</c>, linear or exp.</summary>
    /// <exception cref="ArgumentException">It is something else.</exception>
    public static ImportanceForm FormOf(Specification specification) => specification.Text("form") switch
    {
        null or "linear" => ImportanceForm.Linear,
        "exp" => ImportanceForm.Exponential,
        var other => throw new ArgumentException($"form of '{specification.Name}' is linear or exp, not '{other}'."),
    };

    /// <summary>Parameters of a layer, made when the shape of its values is known.</summary>
    private sealed class Untrained(ImportanceForm form, double deviation, ulong seed)
    {
        private Tensor? _weight;
        private Tensor? _amplitude;

        public Tensor Importance(Tensor value)
        {
            var (heads, width) = (value.shape[1], value.shape[3]);
            if (_weight is null || _weight.shape[0] != heads || _weight.shape[1] != heads * width)
            {
                using var generator = new Generator(seed);
                using var scope = NewDisposeScope();
                using Scalar spread = deviation, size = 1 / Math.Sqrt(heads * width);
                _weight = randn([heads, heads * width], generator: generator).mul(size).DetachFromDisposeScope();
                _amplitude = randn([heads], generator: generator).mul(spread).DetachFromDisposeScope();
            }

            using var inner = NewDisposeScope();
            return DynamicMask.Importance(value.to(ScalarType.Float32), _weight, null, _amplitude!, form).to(value.dtype).MoveToOuterDisposeScope();
        }
    }
}
