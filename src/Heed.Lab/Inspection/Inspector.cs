using System.Diagnostics;
using System.Globalization;
using System.Text;
using Heed.Lab.Mechanisms;
using Heed.Models;
using Heed.Models.Decoders;
using Heed.Models.Tokenizers;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>Runs a decoder on a text and records what every head attended to.</summary>
public static class Inspector
{
    private const int InductionTokens = 64;
    private const int InductionSeed = 20;

    /// <summary>Runs the model with statistics and pooled maps of all heads, and once more on random tokens said twice (see <see cref="HeadStatistics.Induction"/>).</summary>
    /// <param name="pretrained">The model with its tokenizer.</param>
    /// <param name="name">What to call it.</param>
    /// <param name="text">The text. What the model has no room for is left out, with a notice.</param>
    /// <param name="source">Where the text came from, for the heading.</param>
    /// <param name="options">How; null: the defaults.</param>
    /// <param name="progress">Told after every layer.</param>
    /// <param name="cancellation">Stops between layers.</param>
    /// <exception cref="ArgumentException">The text is too short, the model has no tokenizer, or there is no such mechanism as the options name.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public static InspectionResult Run(
        PretrainedModel pretrained,
        string name,
        string text,
        string source,
        InspectionOptions? options = null,
        IProgress<InspectionProgress>? progress = null,
        CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(pretrained);
        ArgumentNullException.ThrowIfNull(text);
        options ??= new();
        if (options.Edits.Count > 0)
        {
            return RunEdited(pretrained, name, text, source, options, progress, cancellation);
        }

        var swap = options.Attention is { } attention ? AttentionSwap.Parse(attention) : null;
        var tokenizer = pretrained.Tokenizer ?? throw new ArgumentException($"The model {name} has no tokenizer.json, so text cannot be given to it.");
        var model = pretrained.Model;
        var configuration = pretrained.Configuration;
        var notices = new List<string>();
        var tokens = Cut(tokenizer.Encode(text), configuration, options, notices);
        if (tokens.Count < 2)
        {
            throw new ArgumentException($"{source} gives {tokens.Count} token{(tokens.Count == 1 ? "" : "s")}; attention needs at least 2.");
        }

        var watch = Stopwatch.StartNew();
        var heads = configuration.Layers * configuration.Heads;
        var (topCount, cell) = InspectionReport.Detail(tokens.Count, heads, options.MapBudget);
        var total = (swap is null ? 2 : 3) * configuration.Layers;
        var done = 0;
        void LayerDone(int layer)
        {
            cancellation.ThrowIfCancellationRequested();
            progress?.Report(new(++done, total));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var statistics = AttentionStatisticsProbe.OfEverything(topCount);
        using var extreme = new ExtremeTokenProbe();
        var residuals = new ResidualProbe();
        var near = new NearMassProbe(model.Hooks);
        var maps = new MapPoolingProbe(model.Hooks, cell, LayerDone);
        var ids = tokens.Select(token => (long)token.Id).ToArray();
        var bytes = PredictedBytes(text, tokens);
        double? without = null;
        if (swap is not null)
        {
            using var counter = model.Hooks.Install(new LayerCounter(LayerDone));
            without = Losses(model.forward(tensor(ids).unsqueeze(0)), ids).Sum() / Math.Log(2) / bytes;
        }

        using var swapped = swap?.Apply(model);
        if (swap?.Notice is { } notice)
        {
            notices.Add(notice);
        }

        var shares = new Dictionary<int, double[]>();
        double?[] losses;
        using (swap?.Count(model, shares))
        using (model.Hooks.Install(statistics))
        using (model.Hooks.Install(residuals))
        using (extreme.Install(model.Hooks))
        using (model.Hooks.Install(near))
        using (model.Hooks.Install(maps))
        {
            losses = Losses(model.forward(tensor(ids).unsqueeze(0)), ids);
        }

        var induction = Induction(pretrained, tokenizer, LayerDone);
        var broken = Array.FindIndex(losses, loss => loss is { } value && !double.IsFinite(value));
        if (broken >= 0)
        {
            notices.Add($"The model's prediction of token {broken} is not a finite number: its weights or its configuration are probably broken.");
        }

        var all = new List<InspectedHead>(heads);
        var measures = extreme.Measure().ToDictionary(measure => measure.Site);
        foreach (var site in statistics.Sites)
        {
            AddHeads(all, site.Layer, statistics[site], measures[site], near.Mass[site.Layer], configuration.WindowOf(site.Layer), topCount, maps.Maps[site.Layer], induction?.GetValueOrDefault(site.Layer),
                swap is null ? null : shares[site.Layer]);
        }

        return new InspectionResult
        {
            Model = new(name, configuration.Layers, configuration.Heads, configuration.KeyValueHeads, model.ParameterCount),
            Tokens = Describe(text, tokens, tokenizer, losses),
            Heads = all,
            PredictedBytes = bytes,
            TopCount = topCount,
            Source = source,
            Notices = notices,
            Attention = options.Attention,
            BitsPerByteWithout = without,
            Sinks = Sinks(residuals, all, configuration.Heads),
            Layers = [.. statistics.Sites.Select(site => measures[site]).Where(measure => measure.ResidualPeak is not null).Select(measure =>
                new InspectedLayer(measure.Site.Layer, measure.ResidualPeak!.Value, measure.SinkValueNorm.Average(), measure.OthersValueNorm.Average(), measure.SinkLogitGap?.Average()))],
            Seconds = watch.Elapsed.TotalSeconds,
        };
    }

    private static InspectionResult RunEdited(
        PretrainedModel pretrained, string name, string text, string source, InspectionOptions options, IProgress<InspectionProgress>? progress, CancellationToken cancellation)
    {
        var edits = options.Edits.Select(ModelEdit.Parse).ToArray();
        var unedited = options with { Edits = [] };
        var shape = pretrained.Configuration;
        var target = new EditTarget(pretrained.Model.Hooks, shape.Layers, shape.Heads) { Materialize = true };
        // What the model lacks is told before a minute of work.
        ModelEdit.Apply(edits, target).Dispose();
        var before = Run(pretrained, name, text, source, unedited, Half(progress, second: false), cancellation);
        using var applied = ModelEdit.Apply(edits, target);
        var edited = Run(pretrained, name, text, source, unedited, Half(progress, second: true), cancellation);
        if (double.IsFinite(before.BitsPerByte))
        {
            ModelEdit.RequireFinite([edited.BitsPerByte]);
        }

        return edited with { Edits = options.Edits, Before = before };
    }

    private static Halved? Half(IProgress<InspectionProgress>? progress, bool second) => progress is null ? null : new Halved(progress, second);

    private static InspectedSinks? Sinks(ResidualProbe residuals, List<InspectedHead> heads, int headsPerLayer)
    {
        if (residuals.Layers.Count < 2)
        {
            return null;
        }

        var options = new SinkDetectorOptions();
        var map = residuals.Detect(options);
        double Received(int layer, int token) =>
            heads.Skip(layer * headsPerLayer).Take(headsPerLayer).Average(head => head.MassReceived[token] / (double)(map.Tokens - token));
        return InspectedSinks.Of(map, options, Received);
    }

    private static List<TextToken> Cut(IReadOnlyList<TextToken> tokens, DecoderConfiguration configuration, InspectionOptions options, List<string> notices)
    {
        var asked = options.Tokens ?? InspectionOptions.DefaultTokens;
        var most = Math.Min(Math.Min(asked, configuration.ContextLength), InspectionReport.MaximumTokens);
        if (tokens.Count <= most)
        {
            return [.. tokens];
        }

        string Number(int count) => count.ToString("N0", CultureInfo.InvariantCulture);
        notices.Add(asked <= configuration.ContextLength && options.Tokens is not null
            ? $"Only the first {Number(most)} tokens of the text are shown, as asked."
            : most == configuration.ContextLength
                ? $"The text is longer than the model's context: only its first {Number(most)} tokens are shown."
                : $"The text is long: only its first {Number(most)} tokens are shown (--tokens shows more).");
        return [.. tokens.Take(most)];
    }

    private static double?[] Losses(Tensor logits, long[] ids)
    {
        const int rows = 256;
        var losses = new double?[ids.Length];
        for (var first = 0; first < ids.Length - 1; first += rows)
        {
            using var scope = NewDisposeScope();
            var count = Math.Min(rows, ids.Length - 1 - first);
            var chunk = logits[0].narrow(0, first, count).to(ScalarType.Float32);
            var loss = nn.functional.cross_entropy(chunk, tensor(ids.AsSpan(first + 1, count).ToArray(), device: logits.device), reduction: nn.Reduction.None);
            var values = loss.cpu().data<float>();
            for (var i = 0; i < count; i++)
            {
                losses[first + 1 + i] = values[i];
            }
        }

        return losses;
    }

    private static Dictionary<int, float[]>? Induction(PretrainedModel pretrained, TextTokenizer tokenizer, Action<int> layerDone)
    {
        var configuration = pretrained.Configuration;
        var first = tokenizer.BeginTokenId is null ? 0 : 1;
        var length = Math.Min(InductionTokens, (configuration.ContextLength - first) / 2);
        var special = new HashSet<int>(tokenizer.EndTokenIds);
        if (tokenizer.BeginTokenId is { } begin)
        {
            special.Add(begin);
        }

        // Fewer tokens would not tell a match from chance.
        if (length < 8 || tokenizer.VocabularySize - special.Count < length)
        {
            return null;
        }

        using var scope = NewDisposeScope();
        var probe = new InductionProbe(first, length);
        var ids = InductionProbe.Sequence(tokenizer.VocabularySize, special, tokenizer.BeginTokenId, length, InductionSeed);
        using (pretrained.Model.Hooks.Install(probe))
        using (pretrained.Model.Hooks.Install(new LayerCounter(layerDone)))
        {
            pretrained.Model.forward(tensor(ids).unsqueeze(0)).Dispose();
        }

        return probe.Scores;
    }

    private static void AddHeads(
        List<InspectedHead> all, int layer, AttentionStatistics statistics, ExtremeTokenMeasures measures, float[] near, int? window, int topCount, PooledMap[] maps, float[]? induction,
        double[]? shares)
    {
        static T[] Values<T>(Tensor tensor, ScalarType type)
            where T : unmanaged
        {
            using var plain = tensor.to(type).cpu().contiguous();
            return plain.data<T>().ToArray();
        }

        var entropy = Values<float>(statistics.Entropy!, ScalarType.Float32);
        var place = Values<int>(statistics.MaximumKey!, ScalarType.Int32);
        var distance = Values<float>(statistics.MeanDistance!, ScalarType.Float32);
        var first = Values<float>(statistics.SetMass!, ScalarType.Float32);
        var received = Values<float>(statistics.MassPerKey!, ScalarType.Float32);
        var topKeys = Values<int>(statistics.TopKeys!, ScalarType.Int32);
        var topWeights = Values<float>(statistics.TopWeights!, ScalarType.Float32);
        var tokens = maps[0].Tokens;
        var dormant = DormantHeads.Detect(statistics, leastRows: (tokens + 1) / 2, leastScore: SinkMask.AttentionThreshold);
        var (isDormant, columnEntropy) = (Values<bool>(dormant.IsDormant, ScalarType.Bool), Values<float>(dormant.ColumnEntropy, ScalarType.Float32));
        var seen = SinkScore.RowsThatSee(tokens, tokens, window: window);
        var takes = Values<bool>(SinkMask.FromStatistics(statistics, window: window).IsSink, ScalarType.Bool);
        for (var head = 0; head < maps.Length; head++)
        {
            var rows = new Range(head * tokens, (head + 1) * tokens);
            var top = new Range(head * tokens * topCount, (head + 1) * tokens * topCount);
            all.Add(new InspectedHead
            {
                Layer = layer,
                Head = head,
                Statistics = HeadStatistics.Of(entropy.AsSpan(rows), place.AsSpan(rows), distance.AsSpan(rows), first.AsSpan(rows), near.AsSpan(rows), window, induction?[head]),
                ComputedShare = shares?[head],
                Map = maps[head],
                TopKeys = topKeys[top],
                TopWeights = topWeights[top],
                MassReceived = received[rows],
                Entropy = entropy[rows],
                IsDormant = isDormant[head],
                ColumnEntropy = columnEntropy[head],
                SinkLogitGap = measures.SinkLogitGap?[head],
                AttentionSinks = [.. Enumerable.Range(0, tokens).Where(token => takes[(head * tokens) + token] && seen[token] >= InspectedHead.LeastRows)],
            });
        }
    }

    /// <summary>What each token stands for. Where several tokens share a character (its bytes), the first stands for the character and the others for their bytes.</summary>
    private static List<InspectedToken> Describe(string text, List<TextToken> tokens, TextTokenizer tokenizer, double?[] losses)
    {
        var described = new List<InspectedToken>(tokens.Count);
        var shown = 0;
        for (var i = 0; i < tokens.Count; i++)
        {
            var token = tokens[i];
            var start = Math.Max(token.Start, shown);
            var end = token.Start + token.Length;
            var isText = end > start;
            described.Add(new(token.Id, isText ? text[start..end] : tokenizer.TokenText(token.Id), losses[i], isText));
            shown = Math.Max(shown, end);
        }

        return described;
    }

    private static long PredictedBytes(string text, List<TextToken> tokens)
    {
        var start = tokens[0].Start + tokens[0].Length;
        var end = tokens.Max(token => token.Start + token.Length);
        // A first token that shares its only character with the rest leaves nothing of its own to count from.
        return Encoding.UTF8.GetByteCount(text.AsSpan(end > start ? start..end : tokens[0].Start..end));
    }

    /// <summary>One of two readings of a text.</summary>
    private sealed class Halved(IProgress<InspectionProgress> whole, bool second) : IProgress<InspectionProgress>
    {
        public void Report(InspectionProgress value) => whole.Report(new(value.Done + (second ? value.Total : 0), 2 * value.Total));
    }

    /// <summary>Tells when a layer's attention is over.</summary>
    private sealed class LayerCounter(Action<int> layerDone) : AttentionHook
    {
        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Map;

        public override void OnMap(AttentionCall call) => layerDone(call.Site.Layer);
    }
}
