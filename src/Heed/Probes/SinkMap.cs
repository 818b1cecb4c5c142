namespace Heed.Probes;

/// <summary>What a token is.</summary>
public enum SinkLabel
{
    /// <summary>No sink at any layer.</summary>
    None,

    /// <summary>A sink through nearly all layers, as the begin token is.</summary>
    Primary,

    /// <summary>A sink through some layers.</summary>
    Secondary,

    /// <summary>A sink for too few layers to be one.</summary>
    Noise,
}

/// <summary>The sinks of one sequence, layer by layer (arXiv 2512.22213).</summary>
public sealed class SinkMap
{
    /// <summary>The published slack of a primary sink's lifetime: <c>L - 15</c> layers.</summary>
    public const int PublishedSlack = 15;

    /// <summary>The published longest lifetime of noise.</summary>
    public const int PublishedNoise = 4;

    // The depth of the published 14B models, for which slack and noise were chosen.
    private const int PublishedDepth = 48;

    private readonly bool[,] _layers;

    internal SinkMap(int primary, int start, int end, bool[,] layers)
    {
        (Primary, Start, End, _layers) = (primary, start, end, layers);
        var (depth, tokens) = (layers.GetLength(0), layers.GetLength(1));
        var (creation, lifetime) = (new int[tokens], new int[tokens]);
        Array.Fill(creation, -1);
        for (var token = 0; token < tokens; token++)
        {
            for (var layer = 0; layer < depth; layer++)
            {
                if (layers[layer, token])
                {
                    creation[token] = creation[token] < 0 ? layer : creation[token];
                    lifetime[token]++;
                }
            }
        }

        (Creation, Lifetime) = (creation, lifetime);
    }

    /// <summary>The primary sink's position.</summary>
    public int Primary { get; }

    /// <summary>The first layer that was looked at: the first with the primary's inflated vector, or 0 without clipping.</summary>
    public int Start { get; }

    /// <summary>The layer after the last that was looked at: the first after the primary's norm drops (usually the last layer), or L without clipping.</summary>
    public int End { get; }

    /// <summary>Number of layers L.</summary>
    public int Depth => _layers.GetLength(0);

    /// <summary>Number of tokens N.</summary>
    public int Tokens => _layers.GetLength(1);

    /// <summary>The layer at which each token becomes a sink; -1: never.</summary>
    public IReadOnlyList<int> Creation { get; }

    /// <summary>At how many layers each token is a sink (layers in between at which it is none do not count).</summary>
    public IReadOnlyList<int> Lifetime { get; }

    /// <summary>Whether a token is a sink at a layer.</summary>
    public bool this[int layer, int token] => _layers[layer, token];

    /// <summary>The published slack in proportion to a depth: 15 of 48 layers.</summary>
    public static int SlackFor(int depth) => (int)Math.Ceiling(PublishedSlack * depth / (double)PublishedDepth);

    /// <summary>The published longest lifetime of noise in proportion to a depth: 4 of 48 layers.</summary>
    public static int NoiseFor(int depth) => PublishedNoise * depth / PublishedDepth;

    /// <summary>What each token is.</summary>
    /// <param name="minLifetime">A sink of at most so many layers is noise.</param>
    /// <param name="primarySlack">A sink of at least L less so many layers is primary. The published 15 leaves no room for secondary sinks below about 20 layers: use <see cref="SlackFor"/> there.</param>
    public SinkLabel[] Label(int minLifetime = PublishedNoise, int primarySlack = PublishedSlack) => [.. Lifetime.Select(life =>
        life == 0 ? SinkLabel.None : life >= Depth - primarySlack ? SinkLabel.Primary : life > minLifetime ? SinkLabel.Secondary : SinkLabel.Noise)];

    /// <summary>What each token is, by slack and noise in proportion to the depth.</summary>
    public SinkLabel[] LabelInProportion() => Label(NoiseFor(Depth), SlackFor(Depth));

    /// <summary>How many tokens have each sink level (creation layer and lifetime), primary sinks included.</summary>
    /// <returns><c>[L + 1, L + 1]</c>: row the lifetime, column the creation layer.</returns>
    public int[,] LevelHistogram()
    {
        var levels = new int[Depth + 1, Depth + 1];
        for (var token = 0; token < Tokens; token++)
        {
            if (Lifetime[token] > 0)
            {
                levels[Lifetime[token], Creation[token]]++;
            }
        }

        return levels;
    }
}
