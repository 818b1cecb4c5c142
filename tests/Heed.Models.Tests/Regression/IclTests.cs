using Heed.Models.Regression;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Regression;

public sealed class IclTests
{
    [Fact]
    public void A_context_is_a_noisy_line_of_its_own_and_one_stays_a_batch()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        var task = new LinearRegressionTask(3, 200, 0) { Mean = 2 };
        var (query, z, target) = task.Sample(1, generator);
        Assert.Equal([1, 1, 4], query.shape);
        Assert.Equal([1, 200, 4], z.shape);
        Assert.Equal([1, 1, 1], target.shape);
        Assert.Equal(0, query[0, 0, 3].item<float>());
        Assert.InRange(z.narrow(2, 0, 3).mean().item<float>(), 1.8, 2.2);
        // Without noise the covariates decide y: ridge with a vanishing penalty says what the query's is.
        var told = IclPredictors.Ridge(z.narrow(2, 0, 3).to(float64), z.select(2, 3).to(float64), query.select(1, 0).narrow(1, 0, 3).to(float64), 1e-9);
        Assert.Equal(target.item<float>(), told.item<double>(), 4);
    }

    [Fact]
    public void Covariates_have_the_covariance_that_is_asked_for()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(2);
        var task = new LinearRegressionTask(4, 50) { Correlation = -0.5 };
        var x = task.Sample(2000, generator).Z.narrow(2, 0, 4).reshape(-1, 4).to(float64);
        var measured = matmul(x.t(), x) / x.shape[0];
        // 100,000 draws: a standard error of about 0.004.
        Assert.True((measured - task.Covariance()).abs().max().item<double>() < 0.02);
        Assert.Equal(0.25, task.Covariance()[0, 2].item<double>(), 12);
    }

    [Fact]
    public void The_same_seed_draws_the_same_contexts_of_two_tasks()
    {
        using var scope = NewDisposeScope();
        var task = new MultiTaskLinearRegression(6, 4, 4, 12);
        Tensor Draw(ulong seed)
        {
            using var generator = new Generator(seed);
            var (query, z, target) = task.Sample(2, generator);
            Assert.Equal([2, 1, 8], query.shape);
            Assert.Equal([2, 1, 2], target.shape);
            return z;
        }

        Assert.True(Draw(5).equal(Draw(5)).all().item<bool>());
        Assert.False(Draw(5).allclose(Draw(6)));
    }

    [Fact]
    public void Heads_that_hold_omega_and_mu_alone_are_the_predictor_of_that_name()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        double[] omega = [0.2, -0.15], mu = [1.5, -1.4];
        using var layer = new IclSoftmaxAttention(3, 2);
        layer.to(float64);
        foreach (var parameter in layer.parameters())
        {
            parameter.zero_();
        }

        for (var head = 0; head < 2; head++)
        {
            for (var i = 0; i < 3; i++)
            {
                layer.get_parameter("q_proj.weight")![(4 * head) + i, i] = tensor(2 * omega[head]);
                layer.get_parameter("k_proj.weight")![(4 * head) + i, i] = tensor(1.0);
            }

            layer.get_parameter("v_proj.weight")![(4 * head) + 3, 3] = tensor(mu[head]);
            layer.get_parameter("o_proj.weight")![0, (4 * head) + 3] = tensor(1.0);
        }

        var (query, z, _) = new LinearRegressionTask(3, 15).Sample(6);
        (query, z) = (query.to(float64), z.to(float64));
        var expected = IclPredictors.Softmax(z.narrow(2, 0, 3), z.select(2, 3), query.select(1, 0).narrow(1, 0, 3), omega, mu);
        Assert.True((layer.forward(query, z).flatten() - expected).abs().max().item<double>() < 1e-12);
        var measured = layer.Measure();
        Assert.Equal(omega, measured.Heads.Select(head => Math.Round(head.Slope, 12)));
        Assert.Equal(mu, measured.Heads.Select(head => Math.Round(head.Weight, 12)));
        Assert.Equal(0, measured.Diagonality, 12);
        Assert.Equal(0, measured.Homogeneity, 12);
        Assert.Equal(1, measured.SignAgreement);
    }

    [Fact]
    public void Only_the_share_of_every_pair_counts_for_softmax_and_their_number_for_the_sum()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (query, z, _) = new LinearRegressionTask(3, 8).Sample(4);
        var shuffled = z.flip(1);
        var twice = cat([z, z], 1);
        void Same(IclAttention layer, double factor)
        {
            using (layer)
            {
                var expected = layer.forward(query, z);
                Assert.True((layer.forward(query, shuffled) - expected).abs().max().item<float>() < 1e-5);
                Assert.True((layer.forward(query, twice) - (expected * factor)).abs().max().item<float>() < 1e-4);
            }
        }

        Same(new IclSoftmaxAttention(3, 2), 1);
        Same(new IclLinearAttention(3, 2), 2);
        Same(new IclLinearAttention(3, 2, dividesByLength: true), 1);
    }

    [Fact]
    public void Starts_are_what_they_are_called()
    {
        using var scope = NewDisposeScope();
        IclSoftmaxAttention Made(IclStart start)
        {
            manual_seed(7);
            return new(3, 4, 1, start);
        }

        using var usual = Made(IclStart.Default);
        using var small = Made(IclStart.SmallIdentity);
        using var opposed = Made(IclStart.OpposedSmallIdentity);
        using var parted = Made(IclStart.Opposed);
        Assert.All(small.Measure().Heads, head => Assert.Equal(1e-8 / 2, head.Slope, 12));
        Assert.Equal([1, 1, -1, -1], opposed.Measure().Heads.Select(head => Math.Sign(head.Slope)));
        Assert.All(opposed.Measure().Heads, head => Assert.Equal(0, head.OffDiagonal));
        var added = parted.get_parameter("q_proj.weight")! - usual.get_parameter("q_proj.weight")!;
        Assert.True((added - cat([eye(4), eye(4), -eye(4), -eye(4)], 0) * 0.3).abs().max().item<float>() < 1e-6);
        Assert.True(usual.get_parameter("v_proj.weight")!.equal(parted.get_parameter("v_proj.weight")!).all().item<bool>());
    }

    [Fact]
    public void Small_heads_of_opposite_sign_are_one_debiased_step()
    {
        using var scope = NewDisposeScope();
        var (zQuery, z, _) = new LinearRegressionTask { Mean = 1 }.Sample(50);
        var (x, y, query) = (z.narrow(2, 0, 5).to(float64), z.select(2, 5).to(float64), zQuery.select(1, 0).narrow(1, 0, 5).to(float64));
        double Gap(double gamma) => (IclPredictors.Softmax(x, y, query, [gamma, -gamma], [0.4 / gamma, -0.4 / gamma]) - IclPredictors.DebiasedGradientDescent(x, y, query, 0.8)).abs().max().item<double>();
        // The even orders cancel: what is left falls with the square of gamma.
        Assert.InRange(Gap(1e-2) / Gap(1e-3), 80, 120);
        // The mean of y says nothing to it, and much to the plain step.
        Assert.True((IclPredictors.DebiasedGradientDescent(x, y + 3, query, 0.8) - IclPredictors.DebiasedGradientDescent(x, y, query, 0.8)).abs().max().item<double>() < 1e-12);
        Assert.True((IclPredictors.GradientDescent(x, y + 3, query, 0.8) - IclPredictors.GradientDescent(x, y, query, 0.8)).abs().max().item<double>() > 1);
    }

    [Fact]
    public void Closed_forms_are_the_minima_of_the_approximate_loss()
    {
        var theory = new IclTheory();
        double[] omega = [0.3, -0.2, 0.1];
        var mu = theory.MuStar(omega);
        var least = theory.ApproxLoss(omega, mu);
        for (var head = 0; head < 3; head++)
        {
            foreach (var change in new[] { -1e-3, 1e-3 })
            {
                double[] moved = [.. mu];
                moved[head] += change;
                Assert.True(theory.ApproxLoss(omega, moved) > least);
            }
        }

        var one = theory.OneHead();
        Assert.Equal(one.Loss, theory.ApproxLoss([one.Omega], [one.Mu]), 12);
        Assert.Equal(one.Mu, theory.MuStar([one.Omega])[0], 12);
        Assert.Equal(0.372, one.Loss, 3);
        Assert.Equal(theory.TwoHeadLoss(0.2), theory.ApproxLoss([0.2, -0.2], theory.MuStar([0.2, -0.2])), 12);
        Assert.Equal(0.2209, theory.TwoHeadLoss(0), 4);
        Assert.Equal(theory.TwoHeadLoss(0), theory.TwoHeadLoss(1e-4), 7);
        Assert.Equal((0.860, 0.2398), (Math.Round(theory.BestGradientStep().Step, 3), Math.Round(theory.BestGradientStep().Loss, 4)));
    }

    [Fact]
    public void The_flow_descends_along_the_gradient()
    {
        var theory = new IclTheory(3, 20, 0.2);
        double[] omega = [0.3, -0.1], mu = [0.5, -0.7];
        const double rate = 1e-3, change = 1e-6;
        var after = theory.GradientFlow(omega, mu, rate, 1)[1];
        for (var head = 0; head < 2; head++)
        {
            double Slope(bool ofOmega)
            {
                double Half(double by)
                {
                    double[] w = [.. omega], m = [.. mu];
                    (ofOmega ? w : m)[head] += by;
                    return theory.ApproxLoss(w, m) / 2;
                }

                return (Half(change) - Half(-change)) / (2 * change);
            }

            Assert.Equal(omega[head] - (rate * Slope(true)), after.Omega[head], 9);
            Assert.Equal(mu[head] - (rate * Slope(false)), after.Mu[head], 9);
        }

        var flow = theory.GradientFlow(omega, mu, 0.02, 400, 50);
        Assert.Equal([0, 50, 100, 150, 200, 250, 300, 350, 400], flow.Select(point => point.Step));
        Assert.True(flow.Zip(flow.Skip(1)).All(pair => pair.Second.Loss < pair.First.Loss));
    }

    [Fact]
    public void Training_leaves_nothing_behind()
    {
        using var layer = new IclSoftmaxAttention(5, 2);
        using var optimizer = optim.Adam(layer.parameters(), 1e-3);
        var task = new LinearRegressionTask(5, 10);
        void Step()
        {
            using var scope = NewDisposeScope();
            var (query, z, target) = task.Sample(4);
            optimizer.zero_grad();
            nn.functional.mse_loss(layer.forward(query, z), target).backward();
            optimizer.step();
            layer.Measure();
        }

        for (var i = 0; i < 3; i++)
        {
            Step();
        }

        var live = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
        for (var i = 0; i < 50; i++)
        {
            Step();
        }

        Assert.Equal(live, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    [Fact]
    public void What_cannot_be_is_told_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        using var layer = new IclSoftmaxAttention(5, 2);
        Refused("contexts [batch, length, 6] (5 covariates and 1 output)", () => layer.forward(zeros(2, 1, 6), zeros(2, 4, 7)));
        Refused("holds no pair", () => layer.forward(zeros(2, 1, 6), zeros(2, 0, 6)));
        Refused("must be at least 1", () => _ = new IclSoftmaxAttention(5, 0));
        Refused("at least 1 covariate", () => new LinearRegressionTask(0).Sample(1));
        Refused("correlation between -1 and 1", () => new LinearRegressionTask { Correlation = 1 }.Sample(1));
        Refused("1 to 4 covariates each", () => new MultiTaskLinearRegression(4, 5, 2).Sample(1));
        Refused("share an ω", () => new IclTheory().MuStar([0.3, 0.3]));
        Refused("as many ω as μ", () => new IclTheory().ApproxLoss([0.3], [1, 2]));
        Refused("at least 1 pair", () => _ = new IclTheory(5, 0));
        Refused("a rate above 0", () => new IclTheory().GradientFlow([0.1], [0.1], 0, 3));
        Refused("queries [batch, d]", () => IclPredictors.GradientDescent(zeros(2, 4, 5), zeros(2, 4), zeros(2, 4), 1));
        Refused("from 0 on", () => IclPredictors.Ridge(zeros(2, 4, 5), zeros(2, 4), zeros(2, 5), -1));
    }
}
