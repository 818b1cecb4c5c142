using Heed.Lab.Figures;
using Heed.Lab.Reproductions;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Reproductions;

/// <summary>Two random measurements and a claim of each verdict.</summary>
internal sealed class SampleReproduction : Reproduction
{
    public override string Slug => "sample";

    public override string Summary => "Measures two numbers.";

    public Action? AfterFirst { get; init; }

    public int Measurements { get; private set; }

    public override void Run(ReproductionRun run)
    {
        run.Tell("first", 0);
        var random = run.Once("random seed=1", () => (Value: Measure(() => rand(1).item<float>()), Infinite: double.PositiveInfinity));
        AfterFirst?.Invoke();
        run.Tell("second", 0.5);
        var another = run.Once("random seed=2", () => Measure(() => rand(1).item<float>()));
        run.Seeds.UnionWith([1, 2, 3]);
        run.Claim("A claim where a < b.", "a table", "a number", $"{random.Value} {random.Infinite}", holds: true);
        run.Claim("Another claim.", "a figure", "another number", $"{another}", holds: false);
        run.Claim("A third claim.", "a sentence", "a third number", "none", Verdict.Inconclusive);
        run.Tables.Add(new("A table", ["a", "b"], [["1", "2 | 3"]]));
        run.Figures.Add(new LineFigure("A figure", "x", "y", [new("line", [0, 1], [1, 0])]) { Width = 200, Height = 150 });
        run.Pictures.Add(("A picture", new LineFigure("A picture", "x", "y", [new("line", [0, 1], [0, 1])]) { Width = 200, Height = 150 }.Png()));
        run.Notes.Add("A note.");
    }

    private double Measure(Func<float> measure)
    {
        Measurements++;
        return measure();
    }
}
