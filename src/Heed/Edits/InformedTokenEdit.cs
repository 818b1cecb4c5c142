namespace Heed.Edits;

/// <summary>Informed-token attention, PAINT (arXiv 2501.12206): while a vision-language model writes, the scores of informative image tokens rise, s + alpha |s| for local and s + beta |s| for summary tokens, for the last query,
/// in every head of the chosen layers. One set of all image tokens as local ones is uniform boosting (PAI).</summary>
/// <remarks>The image tokens are those of the calls' <see cref="AttentionCall.Layout"/>; texts without an image span are left alone, as the unconditional pass of <see cref="VisualGuidance"/> needs. The published response to
/// alpha is a cliff (0.7 works, 0.9 degenerates).</remarks>
public sealed class InformedTokenEdit : ScoreEdit
{
    /// <summary>The factor of local tokens.</summary>
    public const double DefaultAlpha = 0.7;

    /// <summary>The factor of summary tokens.</summary>
    public const double DefaultBeta = 0.4;

    private readonly double _alpha;
    private readonly double _beta;
    private readonly Dictionary<int, BoostPlan?> _plans = [];
    private IReadOnlyList<InformedTokens> _tokens;
    private TokenLayout? _layout;

    /// <summary>Initializes the edit.</summary>
    /// <param name="tokens">The informed tokens of the picture: of each batch item, or one for all.</param>
    /// <param name="alpha">The factor of local tokens, finite.</param>
    /// <param name="beta">The factor of summary tokens, finite.</param>
    /// <param name="layers">The layers; null: 2..32 (start inclusive, end exclusive), as published.</param>
    /// <exception cref="ArgumentException">A factor is not finite, or the layers are counted from the end.</exception>
    public InformedTokenEdit(IReadOnlyList<InformedTokens> tokens, double alpha = DefaultAlpha, double beta = DefaultBeta, Range? layers = null)
        : base(layers ?? new Range(2, 32), EditedRows.Last)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (!double.IsFinite(alpha) || !double.IsFinite(beta))
        {
            throw new ArgumentException($"The factors of informed tokens are finite numbers, not {alpha} and {beta}.", double.IsFinite(alpha) ? nameof(beta) : nameof(alpha));
        }

        (_tokens, _alpha, _beta) = (tokens, alpha, beta);
    }

    /// <summary>The informed tokens of the picture that is being talked about; to be set when another is shown.</summary>
    public IReadOnlyList<InformedTokens> Tokens
    {
        get => _tokens;
        set
        {
            ArgumentNullException.ThrowIfNull(value);
            _tokens = value;
            _plans.Clear();
        }
    }

    /// <summary>What alpha is multiplied by in each head of a layer, for example <see cref="HeadScales"/>; null (the default, and what the released code does): one. Not of the paper's code: its abstract speaks of it.</summary>
    public Func<int, IReadOnlyList<double>?>? ScalesOfLayer { get; init; }

    /// <summary>Scales of heads by their visual sensitivity: v_h / mean(v), at most 2.</summary>
    /// <param name="imageAttention">Mean attention of each head to the image tokens, over calibration queries; not negative.</param>
    /// <exception cref="ArgumentException">There is no head, or no attention to the image at all.</exception>
    public static double[] HeadScales(IReadOnlyList<double> imageAttention)
    {
        ArgumentNullException.ThrowIfNull(imageAttention);
        var mean = imageAttention.Count == 0 ? 0 : imageAttention.Average();
        return mean > 0 && imageAttention.All(value => value >= 0) ? [.. imageAttention.Select(value => Math.Min(2, value / mean))]
            : throw new ArgumentException("The sensitivity of heads is their attention to the image: numbers from 0 that are not all 0.", nameof(imageAttention));
    }

    private protected override BoostPlan? PlanOf(AttentionCall call)
    {
        var layout = call.Layout ?? throw new InvalidOperationException(
            "Informed-token attention needs to know the image tokens, and the model did not say what its tokens stand for: set AttentionHooks.Layout.");
        if (!ReferenceEquals(layout, _layout))
        {
            _plans.Clear();
            _layout = layout;
        }

        var key = ScalesOfLayer is null ? 0 : call.Site.Layer;
        if (!_plans.TryGetValue(key, out var plan))
        {
            plan = layout.Spans.Any(span => span.Kind == TokenKind.Image) ? Plan(layout.Only(TokenKind.Image), ScalesOfLayer?.Invoke(key)) : null;
            _plans.Add(key, plan);
        }

        return plan;
    }

    private BoostPlan? Plan(TokenSpan image, IReadOnlyList<double>? scales)
    {
        IReadOnlyList<long> Places(IReadOnlyList<long> tokens) => tokens.All(token => token >= 0 && token < image.Length) ? [.. tokens.Select(token => image.Start + token)]
            : throw new ArgumentException($"The picture has {image.Length} tokens; of the informed tokens {string.Join(", ", tokens)} some are others. Choose them anew for this picture.");
        return BoostPlan.Of(
            [.. _tokens.Select(item => (IReadOnlyList<ScoreBoost>)[new(Places(item.Local), _alpha), new(Places(item.Summary), _beta)])], set => set == 0 ? scales : null);
    }
}
