using System.Text;
using Heed.Lab.Mechanisms;
using Heed.Lab.Search;
using Heed.Models.Texts;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Search;

public sealed class HeadSearchTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-search-").FullName;

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData(true, 0)]
    [InlineData(false, 0)]
    [InlineData(false, 1.5)]
    public void Heads_are_kept_where_the_metric_gets_better_by_more_than_the_margin(bool lowerIsBetter, double margin)
    {
        // The metric is the sum of what the edited heads are worth.
        double[,] worth = { { 1, -2, 0 }, { 3, -1, -4 } };
        var now = new List<(int Layer, int Head)>();
        var problem = Problem(now) with { Metric = _ => 10 + now.Sum(head => worth[head.Layer, head.Head]), LowerIsBetter = lowerIsBetter, Margin = margin };

        var found = HeadSearch.Run(problem, cancellation: Token);

        Assert.Equal(10, found.Baseline);
        Assert.Equal(6, found.Heads.Count);
        Assert.All(found.Heads, head => Assert.Equal(10 + worth[head.Layer, head.Head], head.Value));
        Assert.All(found.Heads, head => Assert.Equal(lowerIsBetter ? -worth[head.Layer, head.Head] : worth[head.Layer, head.Head], head.Gain));
        (int, int)[] expected = lowerIsBetter ? [(0, 1), (1, 1), (1, 2)] : margin > 0 ? [(1, 0)] : [(0, 0), (1, 0)];
        Assert.Equal(expected, found.Kept);
        Assert.Equal(10 + found.Kept.Sum(head => worth[head.Layer, head.Head]), found.Together);
        Assert.Empty(now);
    }

    [Fact]
    public void A_search_that_was_stopped_goes_on_and_one_that_was_done_measures_nothing()
    {
        var now = new List<(int Layer, int Head)>();
        var measured = 0;
        using var stop = new CancellationTokenSource();
        var problem = Problem(now) with
        {
            Metric = _ =>
            {
                if (++measured == 4)
                {
                    stop.Cancel();
                }

                return now.Sum(head => head.Layer - head.Head);
            },
            LowerIsBetter = false,
        };
        MetricCache Cache(string edit = "zero") => new(_folder, [("model", "abc"), ("edit", edit)]);
        Assert.Throws<OperationCanceledException>(() => HeadSearch.Run(problem, Cache(), cancellation: stop.Token));
        Assert.Equal(4, Cache().Count);

        var steps = new List<HeadSearchProgress>();
        var found = HeadSearch.Run(problem, Cache(), steps.Add, Token);
        Assert.Equal(7, measured);
        Assert.Equal(4, steps[^1].Kept);
        Assert.Equal(steps[^1].Total, steps[^1].Done);
        var again = HeadSearch.Run(problem, Cache(), cancellation: Token);
        Assert.Equal(7, measured);
        Assert.Equal(found.Heads, again.Heads);
        Assert.Equal(found.Together, again.Together);

        // Another edit, model or text is another cache.
        Assert.Equal(0, Cache("act:beta=0.4").Count);
        File.WriteAllText(Cache().Path, "{}");
        Assert.Contains("delete it", Assert.Throws<InvalidDataException>(() => Cache()).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Removing_heads_one_by_one_is_what_the_edit_of_the_command_line_does()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        manual_seed(2);
        using var model = new BigramBackcopyTransformer(new() { Vocabulary = 9, Length = 8, Width = 12, Layers = 2, Heads = 3 });
        var target = new EditTarget(model.Hooks, 2, 3);
        var tokens = randint(0, 9, [2, 8], dtype: int64);
        double Metric(CancellationToken _) => model.forward(tokens).square().mean().item<float>();
        var zero = SearchEdit.Parse("zero");
        var problem = new HeadSearchProblem { Layers = [0, 1], Heads = 3, Edit = heads => zero.Install(target, heads), Metric = Metric, LowerIsBetter = true };

        var found = HeadSearch.Run(problem, cancellation: Token);
        var scaled = SearchEdit.Parse("heads:by=0");
        var same = HeadSearch.Run(problem with { Edit = heads => scaled.Install(target, heads) }, cancellation: Token);

        Assert.Equal(found.Heads, same.Heads);
        Assert.Equal(6, found.Heads.Select(head => head.Value).Distinct().Count());
        Assert.Empty(model.Hooks.Installed);
        Assert.Equal("heads:scale=0.2/1.0,by=0", zero.With([(0, 2), (1, 0)]));
        Assert.Equal("heads:by=0,scale=0.2", scaled.With([(0, 2)]));
        using (ModelEdit.Parse(zero.With([(1, 2)]))(target))
        {
            Assert.Equal(found.Heads[^1].Value, Metric(Token));
        }
    }

    [Fact]
    public void The_report_has_every_head_and_what_to_do_next()
    {
        var found = new HeadSearchResult(2.5, [new(0, 0, 2.4, 0.1, true), new(0, 1, 2.5, 0, false), new(3, 0, 2.9, -0.4, false), new(3, 1, double.NaN, double.NaN, false)], 2.4);
        using var stream = new MemoryStream();
        HeadSearchReport.Write(new("a<b", "zero", "bits per byte", true, "100 bytes of a page", "heads:scale=0.0,by=0"), found, stream);
        var page = Encoding.UTF8.GetString(stream.ToArray());

        Assert.Equal(4, page.Split("<td class=").Length - 1);
        Assert.Contains("a&lt;b", page, StringComparison.Ordinal);
        Assert.Contains("class=\"better kept\" style=\"--share:0.250\" title=\"layer 0, head 0: 2.4\">-0.1000", page, StringComparison.Ordinal);
        Assert.Contains("class=\"worse\" style=\"--share:1.000\"", page, StringComparison.Ordinal);
        Assert.Contains("--edit heads:scale=0.0,by=0", page, StringComparison.Ordinal);
        Assert.DoesNotContain("{{", page, StringComparison.Ordinal);
        Assert.DoesNotContain("http", page.Replace("http-equiv", "", StringComparison.Ordinal), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("heads:scale=0.1,by=0", "leave scale= out")]
    [InlineData("heads:factor=0", "no option 'factor'")]
    [InlineData("spiral", "no edit 'spiral'")]
    public void Edits_that_cannot_be_searched_with_are_told_in_a_sentence(string edit, string sentence) =>
        Assert.Contains(sentence, Assert.Throws<ArgumentException>(() => SearchEdit.Parse(edit)).Message, StringComparison.Ordinal);

    [Fact]
    public void A_search_without_heads_is_refused() =>
        Assert.Contains("at least one head", Assert.Throws<ArgumentException>(() => HeadSearch.Run(Problem([]) with { Layers = [] }, cancellation: Token)).Message, StringComparison.Ordinal);

    private static HeadSearchProblem Problem(List<(int Layer, int Head)> now) => new()
    {
        Layers = [0, 1], Heads = 3, LowerIsBetter = true, Metric = _ => 0,
        Edit = heads =>
        {
            now.AddRange(heads);
            return new Undo(now.Clear);
        },
    };

    private sealed class Undo(Action undo) : IDisposable
    {
        public void Dispose() => undo();
    }
}
