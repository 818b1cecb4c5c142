using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models.Speech;

/// <summary>How log-mel features are scaled.</summary>
public enum FeatureNormalization
{
    /// <summary>Whisper's: logarithms to base 10, nothing more than 8 below the loudest, plus 4, over 4.</summary>
    Whisper,

    /// <summary>Every bin of an utterance to mean 0 and standard deviation 1, so that 0 is the average: what occlusion needs.</summary>
    PerBin,
}

/// <summary>How log-mel features are made. The defaults are Whisper's.</summary>
public sealed record LogMelOptions
{
    /// <summary>Samples per second.</summary>
    public int Rate { get; init; } = 16_000;

    /// <summary>Number F of mel bins.</summary>
    public int Bins { get; init; } = 80;

    /// <summary>Samples of a frame's window, which is also the length of its Fourier transform.</summary>
    public int Window { get; init; } = 400;

    /// <summary>Samples between two frames.</summary>
    public int Hop { get; init; } = 160;

    /// <summary>Seconds to which an utterance is padded with silence or cut; null: its own.</summary>
    public double? Seconds { get; init; } = 30;

    /// <summary>How features are scaled.</summary>
    public FeatureNormalization Normalization { get; init; }
}

/// <summary>Log-mel features of sound: power spectra of windowed frames, summed within triangles of equal area on Slaney's mel scale (linear up to 1 kHz, logarithmic above), then their logarithms.</summary>
public sealed class LogMel : IDisposable
{
    private const double Floor = 1e-10;
    private readonly Tensor _filters;
    private readonly Tensor _window;

    /// <summary>Prepares the filters.</summary>
    /// <param name="options">How.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public LogMel(LogMelOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.Rate < 1 || options.Bins < 1 || options.Window < 2 || options.Hop < 1 || options.Seconds <= 0)
        {
            throw new ArgumentException($"Rate, bins, window, hop and seconds must be positive, not {options.Rate}, {options.Bins}, {options.Window}, {options.Hop} and {options.Seconds}.", nameof(options));
        }

        Options = options;
        using var scope = NewDisposeScope();
        _filters = tensor(Filters(options)).reshape(options.Bins, (options.Window / 2) + 1).DetachFromDisposeScope();
        _window = hann_window(options.Window, periodic: true).DetachFromDisposeScope();
    }

    /// <summary>How features are made.</summary>
    public LogMelOptions Options { get; }

    /// <summary>The triangles, float32 <c>[F, window / 2 + 1]</c>.</summary>
    public Tensor FilterBank => _filters;

    /// <summary>The features of a sound.</summary>
    /// <param name="sound">The sound; it is brought to the options' rate.</param>
    /// <returns>float32 <c>[T, F]</c>, a frame every hop.</returns>
    /// <exception cref="ArgumentException">The sound is shorter than a window.</exception>
    public Tensor Compute(Waveform sound)
    {
        ArgumentNullException.ThrowIfNull(sound);
        var samples = sound.At(Options.Rate).Samples;
        if (Options.Seconds is { } seconds)
        {
            var count = (int)Math.Round(seconds * Options.Rate);
            samples = samples.Count > count ? [.. samples.Take(count)] : [.. samples, .. Enumerable.Repeat(0f, count - samples.Count)];
        }

        if (samples.Count < Options.Window)
        {
            throw new ArgumentException($"The sound has {samples.Count} samples at {Options.Rate} a second, less than one window of {Options.Window}: give a longer one.", nameof(sound));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        using Scalar floor = Floor;
        var half = Options.Window / 2;

        // Mirrored at both ends, so that frame t is centred at sample t hop; the frame past the end is left out.
        var signal = tensor(samples.ToArray());
        var padded = cat([signal.narrow(0, 1, half).flip(0), signal, signal.narrow(0, samples.Count - half - 1, half).flip(0)]);
        var frames = padded.unfold(0, Options.Window, Options.Hop);
        frames = frames.narrow(0, 0, Math.Max(1, samples.Count / Options.Hop));
        var power = fft.rfft(frames * _window).abs().square();
        var energies = power.matmul(_filters.transpose(0, 1)).clamp_min(floor).log10();
        return Scale(energies).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _filters.Dispose();
        _window.Dispose();
    }

    private static double Mel(double hertz) => hertz < 1000 ? hertz * 3 / 200 : 15 + (27 * Math.Log(hertz / 1000) / Math.Log(6.4));

    private static double Hertz(double mel) => mel < 15 ? mel * 200 / 3 : 1000 * Math.Exp((mel - 15) * Math.Log(6.4) / 27);

    private static float[] Filters(LogMelOptions options)
    {
        var (bins, places) = (options.Bins, (options.Window / 2) + 1);
        var top = Mel(options.Rate / 2.0);
        var edges = Enumerable.Range(0, bins + 2).Select(index => Hertz(top * index / (bins + 1))).ToArray();
        var filters = new float[bins * places];
        for (var bin = 0; bin < bins; bin++)
        {
            var (low, middle, high) = (edges[bin], edges[bin + 1], edges[bin + 2]);
            for (var place = 0; place < places; place++)
            {
                var hertz = (double)place * options.Rate / options.Window;
                var height = Math.Min((hertz - low) / (middle - low), (high - hertz) / (high - middle));
                filters[(bin * places) + place] = (float)(Math.Max(0, height) * 2 / (high - low));
            }
        }

        return filters;
    }

    private Tensor Scale(Tensor energies)
    {
        using Scalar range = 8, offset = 4, epsilon = 1e-5;
        if (Options.Normalization == FeatureNormalization.Whisper)
        {
            return (maximum(energies, energies.max() - range) + offset) / offset;
        }

        var centred = energies - energies.mean([0L], keepdim: true);
        return centred / centred.square().mean([0L], keepdim: true).sqrt().clamp_min(epsilon);
    }
}
