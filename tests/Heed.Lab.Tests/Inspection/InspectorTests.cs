using Heed.Lab.Inspection;
using Heed.Models;
using Heed.Probes;
using TorchSharp;
using Xunit;

namespace Heed.Lab.Tests.Inspection;

public class InspectorTests
{
    private const string Text = "And God said, Let there be light: and there was light.";

    [Fact]
    public void An_edited_model_is_shown_beside_itself()
    {
        using var pretrained = TinyModel.Create();
        var plain = Inspect(pretrained, Text, "a verse");
        var options = new InspectionOptions { Edits = ["heads:scale=*.*,by=0.5", "act:layers=0-1,threshold=0.05"] };
        var edited = Inspector.Run(pretrained, "tiny", Text, "a verse", options, cancellation: TestContext.Current.CancellationToken);
        Assert.Equal(options.Edits, edited.Edits);
        Assert.Equal(plain.BitsPerByte, edited.Before!.BitsPerByte, 1e-6);
        Assert.NotEqual(plain.BitsPerByte, edited.BitsPerByte, 1e-4);
        Assert.NotEqual(plain.Heads[0].Map!.Cells, edited.Heads[0].Map!.Cells);
        Assert.Equal(plain.Heads[0].Map!.Cells, edited.Before.Heads[0].Map!.Cells);
        Assert.Empty(pretrained.Model.Hooks.Installed);
        using var page = new MemoryStream();
        InspectionReport.Write(edited, page);
        var html = System.Text.Encoding.UTF8.GetString(page.ToArray());
        Assert.Contains("id=\"b0\"", html, StringComparison.Ordinal);
        Assert.Contains("act:layers=0-1,threshold=0.05", html, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => Inspector.Run(pretrained, "tiny", Text, "a verse", new() { Edits = ["ablate:mlp=99"] }, cancellation: TestContext.Current.CancellationToken));
        var broken = Assert.Throws<ArgumentException>(() => Inspector.Run(pretrained, "tiny", Text, "a verse", new() { Edits = ["stream:scale=1e38"] }, cancellation: TestContext.Current.CancellationToken));
        Assert.Contains("not finite any more", broken.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(null)]
    [InlineData(12)]
    public void Numbers_are_those_of_the_maps(int? window)
    {
        using var pretrained = TinyModel.Create(window: window);
        var inspection = Inspect(pretrained, Text, "a verse");
        var tokens = Text.Length + 1;
        Assert.Equal(tokens, inspection.Tokens.Count);
        var maps = Maps(pretrained, inspection);
        foreach (var head in inspection.Heads)
        {
            var map = maps[head.Layer][head.Head];
            double entropy = 0, share = 0, first = 0, distance = 0, near = 0, previous = 0, self = 0;
            var received = new double[tokens];
            for (var row = 0; row < tokens; row++)
            {
                var weights = Enumerable.Range(0, tokens).Select(key => (double)map[row, key]).ToArray();
                var ofRow = -weights.Sum(w => w > 0 ? w * Math.Log(w) : 0);
                Assert.Equal(ofRow, head.Entropy[row], 1e-4);
                for (var key = 0; key < tokens; key++)
                {
                    received[key] += weights[key];
                    if (key <= row)
                    {
                        Assert.Equal(Math.Sqrt(weights[key]), Math.Sqrt(head.Map![row, key]), 0.51 / 255);
                    }
                }

                var best = Enumerable.Range(0, tokens).OrderByDescending(key => weights[key]).Take(inspection.TopCount).ToArray();
                for (var k = 0; k < inspection.TopCount; k++)
                {
                    Assert.Equal(weights[best[k]], head.TopWeights[(row * inspection.TopCount) + k], 1e-5);
                }

                if (row == 0)
                {
                    continue;
                }

                entropy += ofRow;
                share += ofRow / Math.Log(Math.Min(row + 1, window ?? int.MaxValue));
                first += weights[0];
                distance += weights.Select((w, key) => w * Math.Abs(row - key)).Sum();
                near += weights[Math.Max(0, row - 15)..(row + 1)].Sum();
                previous += best[0] == row - 1 ? 1 : 0;
                self += best[0] == row ? 1 : 0;
            }

            var rows = tokens - 1;
            Assert.Equal(entropy / rows, head.Statistics.Entropy, 1e-4);
            Assert.Equal(share / rows, head.Statistics.EntropyShare, 1e-4);
            Assert.Equal(first / rows, head.Statistics.FirstMass, 1e-5);
            Assert.Equal(near / rows, head.Statistics.NearMass, 1e-5);
            Assert.Equal(distance / rows, head.Statistics.MeanDistance, 1e-3);
            Assert.Equal(previous / rows, head.Statistics.PreviousShare, 1e-9);
            Assert.Equal(self / rows, head.Statistics.SelfShare, 1e-9);
            Assert.Equal(received, head.MassReceived.Select(mass => (double)mass), new Near(1e-3));
        }
    }

    [Fact]
    public void Sinks_norms_and_dormancy_are_those_of_the_streams_and_maps()
    {
        using var pretrained = TinyModel.Create();
        using var planted = pretrained.Model.Hooks.Install(new Planted());
        var inspection = Inspect(pretrained, Text, "a verse");
        var tokens = inspection.Tokens.Count;
        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        using var trace = new ModelTrace(new() { Attention = TraceParts.Value | TraceParts.Weights, Points = [StreamPoint.BlockOutput] });
        using (trace.Install(pretrained.Model.Hooks))
        {
            pretrained.Model.forward(torch.tensor(inspection.Tokens.Select(token => (long)token.Id).ToArray()).unsqueeze(0));
        }

        var map = SinkDetector.Detect(trace.Stream());
        Assert.Equal(map.Primary, inspection.Sinks!.Primary);
        Assert.Equal(Enumerable.Range(0, tokens).Where(token => map.Lifetime[token] > 0), inspection.Sinks.Tokens.Select(sink => sink.Token));
        Assert.Contains(inspection.Sinks.Tokens, sink => sink.Token == 12);
        Assert.Equal(TinyModel.Layers, inspection.Layers.Count);
        foreach (var layer in inspection.Layers)
        {
            var norms = trace[layer.Layer, StreamPoint.BlockOutput][0].square().sum(-1).sqrt().data<float>().ToArray();
            Assert.Equal(norms[0], layer.Residual.Norm, 1e-3);
            Assert.Equal(norms.Skip(1).Average(), layer.Residual.OthersMean, 1e-3);
            Assert.Equal(norms.Skip(1).Max(), layer.Residual.OthersMaximum, 1e-3);
            Assert.Equal(trace[layer.Layer, TraceParts.Value][0].square().sum(-1).sqrt().select(1, 0).mean().item<float>(), layer.SinkValueNorm, 1e-4);
            var weights = trace[layer.Layer, TraceParts.Weights];
            var score = SinkScore.Compute(weights);
            var dormant = DormantHeads.Detect(weights, leastRows: (tokens + 1) / 2, leastScore: SinkMask.AttentionThreshold);
            foreach (var head in inspection.Heads.Where(head => head.Layer == layer.Layer))
            {
                Assert.Equal(Enumerable.Range(0, tokens - InspectedHead.LeastRows + 1).Where(token => score[0, head.Head, token].item<float>() > SinkMask.AttentionThreshold), head.AttentionSinks);
                Assert.Equal(dormant.ColumnEntropy[0, head.Head].item<float>(), head.ColumnEntropy, 1e-3);
                Assert.Equal(dormant.IsDormant[0, head.Head].item<bool>(), head.IsDormant);
            }
        }
    }

    [Fact]
    public void A_model_with_dynamic_masks_is_seen_to_read_few_keys()
    {
        using var pretrained = TinyModel.Create(keptKeys: 12);
        var inspection = Inspect(pretrained, Text, "a verse");
        foreach (var head in inspection.Heads)
        {
            for (var row = 0; row < inspection.Tokens.Count; row++)
            {
                Assert.InRange(Enumerable.Range(0, row + 1).Count(key => head.Map![row, key] > 0), 1, Math.Min(row + 1, 12));
            }
        }
    }

    [Fact]
    public void A_mechanism_in_place_of_the_models_attention_is_looked_at_beside_it()
    {
        using var dense = TinyModel.Create();
        using var windowed = TinyModel.Create(window: 8);
        var inspection = Inspect(dense, Text, "a verse", new() { Attention = "window:w=8,dense=1" });
        var all = Inspect(dense, Text, "a verse", new() { Attention = "window:w=8" });
        var tokens = Text.Length + 1;

        Assert.Equal("window:w=8", all.Attention);
        Assert.Equal(Inspect(windowed, Text, "a verse").BitsPerByte, all.BitsPerByte, 1e-5);
        Assert.Equal(Inspect(dense, Text, "a verse").BitsPerByte, all.BitsPerByteWithout!.Value, 1e-5);
        var share = (36 + (8 * (tokens - 8))) / (tokens * (tokens + 1) / 2.0);
        Assert.All(inspection.Heads, head => Assert.Equal(head.Layer == 0 ? 1 : share, head.ComputedShare!.Value, 1e-12));
        Assert.All(all.Heads, head => Assert.Equal(0, head.Map![20, 12]));
        Assert.Empty(dense.Model.Hooks.Installed);
        Assert.Null(Inspect(dense, Text, "a verse").Heads[0].ComputedShare);
    }

    [Fact]
    public void A_mixture_of_heads_shows_its_share_of_the_pairs_and_what_it_costs()
    {
        using var pretrained = TinyModel.Create();
        var inspection = Inspect(pretrained, Text, "a verse", new() { Attention = "moh:shared=0.5,active=0.75" });
        Assert.Equal(0.75, inspection.Heads.Average(head => head.ComputedShare!.Value), 1e-12);
        Assert.Equal(Inspect(pretrained, Text, "a verse").BitsPerByte, inspection.BitsPerByteWithout!.Value, 1e-5);
        Assert.NotEqual(inspection.BitsPerByteWithout!.Value, inspection.BitsPerByte, 1e-4);
        Assert.Contains(inspection.Notices, notice => notice.Contains("do not use it", StringComparison.Ordinal));
        Assert.Null(pretrained.Model.Layers[0].SelfAttention!.Router);
    }

    [Fact]
    public void Coarse_maps_hold_the_mass_of_their_cells()
    {
        using var pretrained = TinyModel.Create(context: 256);
        var text = string.Concat(Enumerable.Repeat(Text, 4))[..190];
        var inspection = Inspect(pretrained, text, "verses", new() { MapBudget = 0 });
        var tokens = inspection.Tokens.Count;
        var cell = inspection.Heads[0].Map!.TokensPerCell;
        Assert.True(cell > 1);
        // The last row of cells is not full, which is where an average goes wrong.
        Assert.NotEqual(0, tokens % cell);
        var maps = Maps(pretrained, inspection);
        foreach (var head in inspection.Heads)
        {
            for (var row = 0; row < head.Map!.Side; row++)
            {
                var last = Math.Min(tokens, (row + 1) * cell);
                double sum = 0;
                for (var column = 0; column <= row; column++)
                {
                    double mass = 0;
                    for (var i = row * cell; i < last; i++)
                    {
                        for (var j = column * cell; j < Math.Min(tokens, (column + 1) * cell); j++)
                        {
                            mass += maps[head.Layer][head.Head][i, j];
                        }
                    }

                    mass /= last - (row * cell);
                    sum += mass;
                    Assert.Equal(Math.Sqrt(mass), Math.Sqrt(head.Map[row, column]), 0.51 / 255);
                }

                Assert.Equal(1, sum, 1e-4);
            }
        }
    }

    [Fact]
    public void Loss_is_that_of_the_next_token()
    {
        using var pretrained = TinyModel.Create();
        var inspection = Inspect(pretrained, Text, "a verse");
        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        var ids = inspection.Tokens.Select(token => (long)token.Id).ToArray();
        var logs = torch.nn.functional.log_softmax(pretrained.Model.forward(torch.tensor(ids).unsqueeze(0))[0].to(torch.float64), -1);
        Assert.Null(inspection.Tokens[0].Loss);
        double total = 0;
        for (var i = 1; i < ids.Length; i++)
        {
            var loss = -logs[i - 1, ids[i]].item<double>();
            Assert.Equal(loss, inspection.Tokens[i].Loss!.Value, 1e-4);
            total += loss;
        }

        Assert.Equal(total / Math.Log(2) / Text.Length, inspection.BitsPerByte, 1e-4);
        Assert.Equal(total / Text.Length, inspection.LossPerToken, 1e-4);
    }

    [Fact]
    public void Without_a_begin_token_the_first_byte_is_predicted_by_nothing()
    {
        using var pretrained = TinyModel.Create(hasBegin: false);
        var inspection = Inspect(pretrained, "éa", "two letters");
        // é has two bytes: the second is predicted, and so is the a.
        Assert.Equal(3, inspection.Tokens.Count);
        Assert.Equal(2, inspection.PredictedTokens);
        Assert.Equal(["é", "a"], inspection.Tokens.Where(token => token.IsText).Select(token => token.Text));
    }

    [Fact]
    public void Characters_of_several_tokens_are_shown_once()
    {
        using var pretrained = TinyModel.Create();
        var inspection = Inspect(pretrained, "a😀b", "an emoji");
        Assert.Equal("a😀b", string.Concat(inspection.Tokens.Where(token => token.IsText).Select(token => token.Text)));
        Assert.Equal(7, inspection.Tokens.Count);
        Assert.Equal(6, inspection.PredictedBytes);
        Assert.All(inspection.Tokens.Where(token => !token.IsText), token => Assert.NotEmpty(token.Text));
    }

    [Fact]
    public void Induction_is_the_mass_on_the_follower()
    {
        using var pretrained = TinyModel.Create(context: 40);
        var inspection = Inspect(pretrained, "Some text.", "a text");
        // Room for a begin token and two sayings of 19.
        const int length = 19;
        var ids = InductionProbe.Sequence(257, new HashSet<int> { 256 }, 256, length, 20);
        Assert.Equal(1 + (2 * length), ids.Length);
        Assert.Equal(ids[1..(length + 1)], ids[(length + 1)..]);
        Assert.Equal(length, ids[1..(length + 1)].Distinct().Count());
        using var probe = new AttentionMapProbe();
        using (pretrained.Model.Hooks.Install(probe))
        using (torch.no_grad())
        {
            pretrained.Model.forward(torch.tensor(ids).unsqueeze(0)).Dispose();
        }

        foreach (var head in inspection.Heads)
        {
            var map = probe[probe.Sites[head.Layer]][0, head.Head];
            var expected = Enumerable.Range(0, length - 1).Average(i => map[1 + length + i, 1 + i + 1].item<float>());
            Assert.Equal(expected, head.Statistics.Induction!.Value, 1e-5);
        }
    }

    [Fact]
    public void Text_longer_than_the_context_is_cut_with_a_notice()
    {
        using var pretrained = TinyModel.Create(context: 32);
        var inspection = Inspect(pretrained, Text, "a verse");
        Assert.Equal(32, inspection.Tokens.Count);
        Assert.Contains("context", Assert.Single(inspection.Notices), StringComparison.Ordinal);
        Assert.Equal(31, inspection.PredictedBytes);
    }

    [Fact]
    public void Fewer_tokens_on_request()
    {
        using var pretrained = TinyModel.Create();
        var inspection = Inspect(pretrained, Text, "a verse", new() { Tokens = 10 });
        Assert.Equal(10, inspection.Tokens.Count);
        Assert.Contains("as asked", Assert.Single(inspection.Notices), StringComparison.Ordinal);
    }

    [Fact]
    public void Text_without_two_tokens_is_refused()
    {
        using var pretrained = TinyModel.Create(hasBegin: false);
        var error = Assert.Throws<ArgumentException>(() => Inspect(pretrained, "a", "a letter"));
        Assert.Equal("a letter gives 1 token; attention needs at least 2.", error.Message);
    }

    [Fact]
    public void Model_without_tokenizer_is_refused()
    {
        using var pretrained = TinyModel.Create(tokenizer: false);
        Assert.Throws<ArgumentException>(() => Inspect(pretrained, Text, "a verse"));
    }

    [Fact]
    public void Broken_weights_are_told()
    {
        using var pretrained = TinyModel.Create();
        using (torch.no_grad())
        {
            pretrained.Model.parameters().First().fill_(float.NaN);
        }

        var inspection = Inspect(pretrained, Text, "a verse");
        Assert.Contains(inspection.Notices, notice => notice.Contains("not a finite number", StringComparison.Ordinal));
        using var stream = new MemoryStream();
        InspectionReport.Write(inspection, stream);
    }

    [Fact]
    public void Progress_counts_to_the_end_and_hooks_are_gone()
    {
        using var pretrained = TinyModel.Create();
        var steps = new List<InspectionProgress>();
        Inspect(pretrained, Text, "a verse", progress: new Collect(steps));
        Assert.Equal(Enumerable.Range(1, 2 * TinyModel.Layers), steps.Select(step => step.Done));
        Assert.All(steps, step => Assert.Equal(2 * TinyModel.Layers, step.Total));
        Assert.Empty(pretrained.Model.Hooks.Installed);
    }

    [Fact]
    public void Edited_model_is_shown_as_edited()
    {
        using var pretrained = TinyModel.Create();
        using var edit = pretrained.Model.Hooks.Install(new OnlyItself());
        var inspection = Inspect(pretrained, Text, "a verse");
        Assert.All(inspection.Heads, head =>
        {
            Assert.Equal(HeadLook.Self, head.Look);
            Assert.Equal(1, head.Statistics.NearMass, 1e-6);
            Assert.Equal(1, head.Map![5, 5]);
            Assert.Equal(0, head.Map[5, 4]);
        });
    }

    [Fact]
    public void Cancellation_stops_and_leaves_no_hook()
    {
        using var pretrained = TinyModel.Create();
        using var source = new CancellationTokenSource();
        source.Cancel();
        Assert.Throws<OperationCanceledException>(() => Inspect(pretrained, Text, "a verse", cancellation: source.Token));
        Assert.Empty(pretrained.Model.Hooks.Installed);
    }

    private static InspectionResult Inspect(
        PretrainedModel pretrained, string text, string source, InspectionOptions? options = null, IProgress<InspectionProgress>? progress = null, CancellationToken? cancellation = null) =>
        Inspector.Run(pretrained, "tiny", text, source, options, progress, cancellation ?? TestContext.Current.CancellationToken);

    private static float[][][,] Maps(PretrainedModel pretrained, InspectionResult inspection)
    {
        using var probe = new AttentionMapProbe();
        using var still = torch.no_grad();
        using (pretrained.Model.Hooks.Install(probe))
        {
            using var ids = torch.tensor(inspection.Tokens.Select(token => (long)token.Id).ToArray()).unsqueeze(0);
            pretrained.Model.forward(ids).Dispose();
        }

        return [.. probe.Sites.Select(site => Enumerable.Range(0, TinyModel.Heads).Select(head => Square(probe[site][0, head])).ToArray())];
    }

    private static float[,] Square(torch.Tensor map)
    {
        var side = (int)map.shape[0];
        var flat = map.contiguous().data<float>().ToArray();
        var square = new float[side, side];
        Buffer.BlockCopy(flat, 0, square, 0, flat.Length * sizeof(float));
        return square;
    }

    /// <summary>Writes one long vector into the streams of tokens 0 and 12.</summary>
    private sealed class Planted : StreamHook
    {
        public override bool ActsAt(StreamSite site) => site is { Layer: 0, Point: StreamPoint.FeedForwardOutput };

        public override torch.Tensor OnStates(StreamSite site, torch.Tensor states)
        {
            var vector = torch.zeros_like(states);
            foreach (var token in new[] { 0, 12 })
            {
                if (token < states.shape[1])
                {
                    vector[.., token, 3] = 2000f;
                }
            }

            return states + vector;
        }
    }

    private sealed class OnlyItself : AttentionHook
    {
        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Weights;

        public override torch.Tensor OnWeights(AttentionCall call, torch.Tensor weights) => torch.eye(weights.shape[^1]).expand_as(weights);
    }

    private sealed class Collect(List<InspectionProgress> steps) : IProgress<InspectionProgress>
    {
        public void Report(InspectionProgress value) => steps.Add(value);
    }

    private sealed class Near(double tolerance) : IEqualityComparer<double>
    {
        public bool Equals(double x, double y) => Math.Abs(x - y) <= tolerance;

        public int GetHashCode(double obj) => 0;
    }
}
