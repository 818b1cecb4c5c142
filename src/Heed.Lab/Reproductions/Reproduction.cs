namespace Heed.Lab.Reproductions;

/// <summary>A small honest version of what a paper claims: <c>heed reproduce SLUG</c>. It measures, states its claims with what was expected and what was measured, and lets the numbers
/// decide. At most ten minutes on two cores; <see cref="ReproductionRun.IsQuick"/> within twenty seconds.</summary>
public abstract class Reproduction
{
    /// <summary>All reproductions.</summary>
    public static IReadOnlyList<Reproduction> All { get; } =
    [
        new NeighborhoodReproduction(),
        new FreeSwimReproduction(),
        new HipAttentionReproduction(),
        new SuperlinearAttentionReproduction(),
        new DynamicMaskAttentionReproduction(),
        new FlashBiasReproduction(),
        new VMoBAReproduction(),
        new PyramidReproduction(),
        new MixtureOfHeadReproduction(),
        new NiNformerReproduction(),
        new OverLoCKReproduction(),
        new UlsamReproduction(),
        new AgentAttentionReproduction(),
        new GaussianAttentionReproduction(),
        new FocalModulationReproduction(),
        new MambaOutReproduction(),
        new VisualMambaReproduction(),
        new MinimalTransformerReproduction(),
        new RcmhaReproduction(),
        new GatedAttentionReproduction(),
        new VisualAttentionSinkReproduction(),
        new ImbalancedAttentionReproduction(),
        new ActiveDormantReproduction(),
        new InContextRegressionReproduction(),
        new BrainEncoderReproduction(),
        new CrossAttentionSaliencyReproduction(),
        new SecondarySinksReproduction(),
        new AttentionCalibrationReproduction(),
    ];

    /// <summary>The paper.</summary>
    public abstract string Slug { get; }

    /// <summary>What is done, in one line.</summary>
    public abstract string Summary { get; }

    /// <summary>Measures and states the claims. Called within a dispose scope, with libtorch's generator seeded.</summary>
    /// <param name="run">Remembers what was measured, takes claims, tables and figures, and tells of progress and cancellation.</param>
    public abstract void Run(ReproductionRun run);

    /// <summary>The reproduction of a paper.</summary>
    /// <exception cref="ArgumentException">There is none; the message lists those that exist.</exception>
    public static Reproduction Find(string slug) => All.FirstOrDefault(reproduction => string.Equals(reproduction.Slug, slug, StringComparison.OrdinalIgnoreCase))
        ?? throw new ArgumentException($"There is no reproduction of '{slug}'; there are: {string.Join(", ", All.Select(known => known.Slug))}.", nameof(slug));

    /// <summary>Does what is too small for more than one thread: handing it out would cost more than the work.</summary>
    /// <param name="work">The work.</param>
    protected static void OnOneThread(Action work)
    {
        ArgumentNullException.ThrowIfNull(work);
        var threads = TorchSharp.torch.get_num_threads();
        TorchSharp.torch.set_num_threads(1);
        try
        {
            work();
        }
        finally
        {
            TorchSharp.torch.set_num_threads(threads);
        }
    }
}
