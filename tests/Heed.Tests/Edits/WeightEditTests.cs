using Heed.Biases;
using Heed.Edits;
using Heed.Kernels;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Edits;

/// <summary>The forms of edits of weights mean the same: from columns, row by row with a cache, and by the map in float64.</summary>
public sealed class WeightEditTests
{
    private const long ImageStart = 3, ImageLength = 8, Prompt = 20;
    private static readonly AttentionSite Site = new(2, AttentionKind.Self, "layer.2");
    private static readonly TokenLayout Layout = new(
        new TokenSpan(TokenKind.Text, 0, ImageStart), new TokenSpan(TokenKind.Image, ImageStart, ImageLength), new TokenSpan(TokenKind.Text, ImageStart + ImageLength, Prompt - ImageStart - ImageLength));

    public static TheoryData<string> Edits => ["calibrate", "calibrate some", "calibrate all", "redistribute", "boost", "boost all rows", "boost a head", "lower", "inform"];

    [Theory]
    [MemberData(nameof(Edits))]
    public void Every_form_gives_the_output_of_the_map_for_every_option(string name)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        foreach (var (what, options) in Options())
        {
            var (q, k, v) = Inputs(3);
            var expected = Run(name, q, k, v, options, materialize: true, out _, float64);
            var columns = Run(name, q, k, v, options, materialize: false, out var form);
            Assert.Equal(name == "lower" ? EditForm.Map : EditForm.Columns, form);
            Assertions.Close(expected, columns, 2e-5, $"{name}, {what}");
            Assertions.Close(expected, Run(name, q, k, v, options, materialize: true, out _), 2e-5, $"{name} by the map, {what}");
            Assertions.Close(expected, Run(name, q, k, v, options, materialize: false, out form, float64), 1e-12, $"{name} in float64, {what}");
            Assert.Equal(EditForm.Map, form);
        }
    }

    [Theory]
    [MemberData(nameof(Edits))]
    public void Rows_one_by_one_are_edited_as_several_at_once(string name)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        foreach (var type in new[] { float32, bfloat16 })
        {
            foreach (var width in new[] { 16, 6 })
            {
                var (q, k, v) = Inputs(4, Prompt + 6, width);
                (k, v) = (k.to(type), v.to(type));
                // The same values on both sides: what is compared is the edit, not bfloat16.
                var (wideK, wideV) = (k.to(float32), v.to(float32));
                foreach (var window in new long?[] { null, 30 })
                {
                    var options = AttentionOptions.CausalSelf with { WindowBefore = window };
                    var oracle = Sequence(name, q, wideK, wideV, options, float64, materialize: true, steps: 1, out _);
                    Assertions.Close(oracle, Sequence(name, q, k, v, options, float32, materialize: false, steps: 1, out var form), 2e-5, $"{name}, {type}, width {width}");
                    Assert.Equal(name == "lower" ? EditForm.Map : EditForm.Row, form);
                    if (name is not ("boost" or "boost a head" or "lower" or "inform") && !name.StartsWith("calibrate", StringComparison.Ordinal))
                    {
                        Assertions.Close(oracle, Sequence(name, q, wideK, wideV, options, float32, materialize: false, steps: 3, out _), 2e-5, $"{name} in chunks");
                    }
                }
            }
        }
    }

    [Fact]
    public void Column_weights_and_scores_are_columns_of_the_map()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        for (var seed = 0; seed < 60; seed++)
        {
            using var drawn = new RandomCall(seed);
            var hook = new Columns();
            var hooks = new AttentionHooks();
            using var installed = hooks.Install(hook);
            if (drawn.Options.Normalizer != Normalizer.Softmax)
            {
                continue;
            }

            Attention.Compute(drawn.Query, drawn.Key, drawn.Value, drawn.Options, Site, hooks);
            Assertions.Close(hook.Expected!, hook.Found!, 2e-5, $"seed {seed}: {drawn}");
        }
    }

    [Fact]
    public void Refuses_columns_that_do_not_exist()
    {
        using var scope = NewDisposeScope();
        var hooks = new AttentionHooks();
        using var installed = hooks.Install(new Columns { Key = 99 });
        var q = randn(1, 2, 5, 4);
        Assert.Contains("keys 0 to 4", Assert.Throws<ArgumentException>(() => Attention.Compute(q, q, q, null, Site, hooks)).Message);
    }

    [Theory]
    [MemberData(nameof(Edits))]
    public void Gradients_flow_through_an_edit(string name)
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = Inputs(5);
        (q, k, v) = (q.to(float64), k.to(float64), v.to(float64));
        var weight = randn(q.shape, float64);
        Tensor[] inputs = [q, k, v];
        foreach (var input in inputs)
        {
            input.requires_grad_();
        }

        double Loss() => (Run(name, q, k, v, AttentionOptions.CausalSelf, false, out _, keep: true) * weight).sum().item<double>();
        (Run(name, q, k, v, AttentionOptions.CausalSelf, false, out _, keep: true) * weight).sum().backward();
        const double step = 1e-6;
        foreach (var input in inputs)
        {
            var flat = input.detach().view(-1);
            foreach (var place in new long[] { 5, 77, flat.numel() - 3 })
            {
                var old = flat[place].item<double>();
                flat[place] = old + step;
                var up = Loss();
                flat[place] = old - step;
                var down = Loss();
                flat[place] = old;
                Assert.Equal((up - down) / (2 * step), input.grad!.view(-1)[place].item<double>(), 5);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Edits))]
    public void A_batch_is_edited_item_by_item(string name)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(6);
        var both = Run(name, q, k, v, AttentionOptions.CausalSelf, false, out _);
        for (var item = 0; item < 2; item++)
        {
            var alone = Run(name, q.narrow(0, item, 1), k.narrow(0, item, 1), v.narrow(0, item, 1), AttentionOptions.CausalSelf, false, out _, item: item);
            Assertions.Close(both.narrow(0, item, 1), alone, 1e-5, name);
        }
    }

    [Theory]
    [MemberData(nameof(Edits))]
    public void An_edited_model_ignores_the_future(string name)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(7);
        if (name.StartsWith("calibrate", StringComparison.Ordinal))
        {
            // Calibration looks at whole columns by definition: what ignores the future is its running form.
            var whole = Sequence(name, q, k, v, AttentionOptions.CausalSelf, float32, false, 1, out _, prompt: 10);
            var cut = Sequence(name, q.narrow(2, 0, 15), k.narrow(2, 0, 15), v.narrow(2, 0, 15), AttentionOptions.CausalSelf, float32, false, 1, out _, prompt: 10);
            Assertions.Close(cut, whole.narrow(2, 0, 15), 1e-5, name);
            return;
        }

        var before = Run(name, q, k, v, AttentionOptions.CausalSelf, false, out _);
        k.narrow(2, Prompt - 1, 1).fill_(3);
        v.narrow(2, Prompt - 1, 1).fill_(-2);
        Assertions.Close(before.narrow(2, 0, Prompt - 1), Run(name, q, k, v, AttentionOptions.CausalSelf, false, out _).narrow(2, 0, Prompt - 1), 1e-6, name);
    }

    [Theory]
    [MemberData(nameof(Edits))]
    public void Edited_rows_still_sum_to_one(string name)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(8);
        // With ones for values, an output is the sum of its row.
        var sums = Run(name, q, k, ones_like(v), AttentionOptions.CausalSelf, false, out _);
        Assertions.Close(ones_like(sums), sums, 1e-5, name);
    }

    [Fact]
    public void An_edit_goes_by_weights_that_another_hook_changed()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(9);
        var options = AttentionOptions.CausalSelf;
        var hooks = new AttentionHooks { Layout = Layout };
        using var first = Install(hooks, "inform", materialize: true);
        Watch(hooks, 2);
        using var second = Install(hooks, "redistribute", materialize: false);
        Watch(hooks, 2);
        var found = Attention.Compute(q, k, v, options, Site, hooks);
        var other = new AttentionHooks { Layout = Layout };
        using var third = Install(other, "inform", materialize: true);
        using var fourth = Install(other, "redistribute", materialize: true);
        Watch(other, 2);
        Assertions.Close(Attention.Compute(q, k, v, options, Site, other), found, 1e-5);
    }

    [Fact]
    public void Probes_see_the_edited_map_where_it_is_materialised()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(10);
        using var probe = new AttentionMapProbe();
        var hooks = new AttentionHooks { Layout = Layout };
        using var observed = hooks.Install(probe);
        using var edited = Install(hooks, "calibrate all", materialize: true);
        Attention.Compute(q, k, v, AttentionOptions.CausalSelf, Site, hooks);
        var bare = new AttentionHooks();
        using var plain = new AttentionMapProbe();
        using var observing = bare.Install(plain);
        Attention.Compute(q, k, v, AttentionOptions.CausalSelf, Site, bare);
        Assertions.Close(AttentionCalibration.Apply(plain[Site], sinkThreshold: 0.06), probe[Site], 1e-6);
    }

    [Fact]
    public void Thousands_of_edited_steps_leave_nothing_behind()
    {
        using var still = no_grad();
        var (q, k, v) = Inputs(11);
        foreach (var name in new[] { "calibrate", "redistribute", "inform" })
        {
            var hooks = new AttentionHooks { Layout = Layout };
            using var edit = Install(hooks, name, materialize: false);
            using (var scope = NewDisposeScope())
            {
                Watch(hooks, 2);
            }

            Attention.Compute(q, k, v, AttentionOptions.CausalSelf, Site, hooks).Dispose();
            var before = TorchSharp.DisposeScopeManager.Statistics.ThreadTotalLiveCount;
            for (var i = 0; i < 200; i++)
            {
                if (name == "redistribute")
                {
                    Watch(hooks, 2);
                }

                using var output = Attention.Compute(q, k, v, AttentionOptions.CausalSelf, Site, hooks);
            }

            Assert.Equal(before, TorchSharp.DisposeScopeManager.Statistics.ThreadTotalLiveCount);
        }

        q.Dispose();
        k.Dispose();
        v.Dispose();
    }

    private static (Tensor Query, Tensor Key, Tensor Value) Inputs(int seed, long tokens = Prompt, long width = 16)
    {
        using var generator = new Generator((ulong)seed);
        var k = randn([2, 2, tokens, width], generator: generator);
        // Some keys that everybody looks at, among them one of the image and one of the text after it.
        var q = randn([2, 4, tokens, width], generator: generator) + 0.7;
        k.index_add_(2, tensor(new long[] { 0, ImageStart + 2, 14 }), ones(2, 2, 3, width) * 0.5, 1);
        return (q, k, randn([2, 2, tokens, width], generator: generator));
    }

    private static IEnumerable<(string What, AttentionOptions Options)> Options()
    {
        yield return ("causal", AttentionOptions.CausalSelf);
        yield return ("everything seen", AttentionOptions.Default);
        yield return ("aligned to the start", new() { Causal = Causality.AlignedToStart });
        yield return ("scale", AttentionOptions.CausalSelf with { Scale = 0.5 });
        yield return ("softcap", AttentionOptions.CausalSelf with { Softcap = 2 });
        yield return ("window", AttentionOptions.CausalSelf with { WindowBefore = 9 });
        yield return ("both windows", new() { WindowBefore = 9, WindowAfter = 5 });
        yield return ("sinks", AttentionOptions.CausalSelf with { Sinks = tensor(new[] { 0.5f, -1, 2, 0 }) });
        yield return ("gate", AttentionOptions.CausalSelf with { Gate = rand(2, 4, Prompt, 1) });
        yield return ("biases", AttentionOptions.CausalSelf with { Biases = [new AlibiBias(tensor(new[] { 0.1f, 0.2f, 0.3f, 0.05f })), new KeyBias(randn(Prompt)), new DenseBias(randn(1, 4, 1, Prompt))] });
        yield return ("low rank", AttentionOptions.CausalSelf with { Biases = [new LowRankBias(randn(4, Prompt, 2), randn(4, Prompt, 2))] });
        yield return ("mask", AttentionOptions.CausalSelf with { Mask = rand(1, 1, Prompt, Prompt).gt(0.3) });
        yield return ("lengths", AttentionOptions.CausalSelf with { KeyLengths = tensor(new long[] { Prompt, 15 }), QueryLengths = tensor(new long[] { Prompt, 15 }) });
    }

    private static Tensor Run(
        string name, Tensor q, Tensor k, Tensor v, AttentionOptions options, bool materialize, out EditForm form, ScalarType? type = null, int? item = null, bool keep = false)
    {
        var hooks = new AttentionHooks { Layout = Layout };
        using var installed = Install(hooks, name, materialize, item);
        Watch(hooks, (int)q.shape[0], item);
        Tensor Cast(Tensor tensor) => keep ? tensor : tensor.to(type ?? float32);
        Tensor? Maybe(Tensor? tensor) => tensor is null ? null : Cast(tensor);
        var cast = options with
        {
            Sinks = Maybe(options.Sinks),
            Gate = Maybe(options.Gate),
            Biases = [.. options.Biases.Select(bias => bias is LowRankBias low ? new LowRankBias(Cast(low.QueryFactors), Cast(low.KeyFactors)) : bias)],
        };
        var output = Attention.Compute(Cast(q), Cast(k), Cast(v), cast, Site, hooks);
        form = ((WeightEdit)hooks.Installed[0]).Form;
        return output;
    }

    /// <summary>A prompt and then some tokens at a time, as with a cache.</summary>
    private static Tensor Sequence(
        string name, Tensor q, Tensor k, Tensor v, AttentionOptions options, ScalarType type, bool materialize, int steps, out EditForm form, long prompt = Prompt)
    {
        var hooks = new AttentionHooks { Layout = prompt == Prompt ? Layout : null };
        using var installed = Install(hooks, name, materialize);
        List<Tensor> parts = [];
        form = EditForm.None;
        for (long at = 0, count = prompt; at < q.shape[2]; at += count, count = Math.Min(steps, q.shape[2] - at))
        {
            if (at == 0)
            {
                Watch(hooks, 2);
            }

            var (key, value) = (k.narrow(2, 0, at + count), v.narrow(2, 0, at + count));
            parts.Add(Attention.Compute(q.narrow(2, at, count).to(type), type == float64 ? key.to(type) : key, type == float64 ? value.to(type) : value, options, Site, hooks));
            form = ((WeightEdit)hooks.Installed[0]).Form;
        }

        return cat(parts, 2);
    }

    private static IDisposable Install(AttentionHooks hooks, string name, bool materialize, int? item = null)
    {
        InformedTokens[] informed = [new([1, 4, 6], [2]), new([0, 2], [5, 7])];
        switch (name)
        {
            case "calibrate":
                return hooks.Install(new CalibrationEdit([(2, 1), (2, 3)], 0.06) { Materialize = materialize });
            case "calibrate some":
                return hooks.Install(new CalibrationEdit([(2, 0), (2, 2), (1, 7)], 0.09, beta: 0, keepFirst: false) { Materialize = materialize });
            case "calibrate all":
                return hooks.Install(new CalibrationEdit(Enumerable.Range(0, 4).Select(head => (2, head)), 0.06) { Materialize = materialize });
            case "redistribute":
                return new RedistributionEdit([0, 5], 2.5, 0.7, 0.05, 0.3) { Materialize = materialize }.InstallOn(hooks);
            case "boost":
                return hooks.Install(new ScoreEdit([new([2, 5, 6], 0.7), new([9], 0.2)]) { Materialize = materialize });
            case "boost all rows":
                return hooks.Install(new ScoreEdit([new([2, 5, 6, 18], 0.7)], rows: EditedRows.All) { Materialize = materialize });
            case "boost a head":
                return hooks.Install(new ScoreEdit([new([2, 5, 6], 3)], heads: [2]) { Materialize = materialize });
            case "lower":
                return hooks.Install(new ScoreEdit([new([0, 5, 6], -0.9)], rows: EditedRows.All) { Materialize = materialize });
            default:
                return hooks.Install(new InformedTokenEdit(item is { } only ? [informed[only]] : informed) { Materialize = materialize, ScalesOfLayer = _ => InformedTokenEdit.HeadScales([0.1, 0.2, 0.1, 0.9]) });
        }
    }

    /// <summary>Shows the hidden states before the layer: sinks at the first token, one or two image tokens (by batch item) and one token after the image.</summary>
    private static void Watch(AttentionHooks hooks, int batch, int? item = null)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        var states = randn([2, Prompt, 16], generator: generator);
        states[0, 0, 5] = states[1, 0, 5] = states[0, ImageStart + 2, 0] = states[1, ImageStart + 2, 5] = states[1, ImageStart + 5, 0] = states[0, 14, 5] = 40;
        states = item is { } only ? states.narrow(0, only, 1) : states;
        Assert.Equal(batch, states.shape[0]);
        new StreamPlace(hooks, 2, "layer.2").Pass(StreamPoint.BlockInput, states);
    }

    private sealed class Columns : AttentionHook
    {
        public long? Key { get; init; }

        public Tensor? Expected { get; private set; }

        public Tensor? Found { get; private set; }

        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Statistics | AttentionStages.Output;

        public override AttentionStatisticsRequest StatisticsAt(AttentionSite site) => new();

        public override Tensor OnOutput(AttentionCall call, Tensor output)
        {
            var keys = new[] { Key ?? 0, call.Key.size(2) / 2, call.Key.size(2) - 1 }.Distinct().ToArray();
            var (heads, rows) = (new[] { (int)call.Query.size(1) - 1 }, new[] { call.Query.size(2) / 3, call.Query.size(2) - 1 }.Distinct().ToArray());
            Found = call.ColumnWeights(keys, heads, rows).MoveToOuterDisposeScope();
            Expected = call.Weights(heads, rows).index_select(3, tensor(keys)).MoveToOuterDisposeScope();
            var scores = call.ColumnScores(keys, heads, rows);
            Assert.True(scores.isinf().logical_not().logical_or(Found.eq(0)).all().item<bool>());
            return output;
        }
    }
}
