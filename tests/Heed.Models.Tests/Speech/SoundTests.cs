using Heed.Models.Speech;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Speech;

public sealed class SoundTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void A_sound_comes_back_within_half_a_step_of_sixteen_bits()
    {
        var sound = Tone(440, 16_000, 0.2);
        sound.Write(_folder.At("tone.wav"));
        var read = Waveform.Read(_folder.At("tone.wav"));
        Assert.Equal((16_000, 3200), (read.Rate, read.Samples.Count));
        Assert.All(sound.Samples.Zip(read.Samples), pair => Assert.Equal(pair.First, pair.Second, 0.5 / 32768 + 1e-7));
    }

    [Theory]
    [InlineData(1, 8)]
    [InlineData(1, 24)]
    [InlineData(1, 32)]
    [InlineData(3, 32)]
    [InlineData(3, 64)]
    public void Every_form_of_samples_is_read_and_channels_are_averaged(int format, int bits)
    {
        // Left one half, right minus one quarter, in two channels.
        File.WriteAllBytes(_folder.At("a.wav"), Wav(format, bits, 2, 8000, [.. Enumerable.Repeat(new[] { 0.5, -0.25 }, 10).SelectMany(pair => pair)]));
        var read = Waveform.Read(_folder.At("a.wav"));
        Assert.Equal((8000, 10), (read.Rate, read.Samples.Count));
        Assert.All(read.Samples, sample => Assert.Equal(0.125, sample, 1e-6));
    }

    [Theory]
    [InlineData(22_050, 16_000)]
    [InlineData(16_000, 48_000)]
    [InlineData(48_000, 16_000)]
    public void A_tone_keeps_its_pitch_and_loudness_at_another_rate(int from, int to)
    {
        var (resampled, expected) = (Tone(1000, from, 0.3).At(to), Tone(1000, to, 0.3));
        Assert.InRange(resampled.Samples.Count, expected.Samples.Count - 2, expected.Samples.Count);
        for (var i = to / 50; i < resampled.Samples.Count - (to / 50); i++)
        {
            Assert.Equal(expected.Samples[i], resampled.Samples[i], 0.01);
        }
    }

    [Fact]
    public void What_the_lower_rate_cannot_carry_is_gone()
    {
        var quiet = Tone(11_000, 48_000, 0.3).At(16_000);
        Assert.True(quiet.Samples.Skip(500).SkipLast(500).Max(Math.Abs) < 0.01);
    }

    [Theory]
    [InlineData(new byte[] { 1, 2, 3 }, "does not begin as one")]
    public void Broken_files_are_told(byte[] content, string what)
    {
        File.WriteAllBytes(_folder.At("b.wav"), content);
        Assert.Contains(what, Assert.Throws<InvalidDataException>(() => Waveform.Read(_folder.At("b.wav"))).Message, StringComparison.Ordinal);
        Assert.Throws<FileNotFoundException>(() => Waveform.Read(_folder.At("none.wav")));
        var wav = Wav(7, 8, 1, 8000, [0.1]);
        File.WriteAllBytes(_folder.At("b.wav"), wav);
        Assert.Contains("of format 7", Assert.Throws<InvalidDataException>(() => Waveform.Read(_folder.At("b.wav"))).Message, StringComparison.Ordinal);
        File.WriteAllBytes(_folder.At("b.wav"), wav[..36]);
        Assert.Contains("no samples", Assert.Throws<InvalidDataException>(() => Waveform.Read(_folder.At("b.wav"))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Filters_have_equal_area_and_a_tone_lights_its_bin()
    {
        using var scope = NewDisposeScope();
        using var mel = new LogMel(new() { Bins = 40, Seconds = null, Normalization = FeatureNormalization.PerBin });
        // Triangles of area 1 over frequency, sampled every 40 Hz; narrow ones are sampled coarsely.
        var areas = (mel.FilterBank.sum([1L]) * 40).data<float>().ToArray();
        Assert.All(areas.Skip(15), area => Assert.Equal(1, area, 0.1));
        using var plain = new LogMel(new() { Seconds = null });
        var features = plain.Compute(Tone(1000, 16_000, 0.5));
        Assert.Equal([50L, 80], features.shape);
        // 1000 Hz is 15 mel of 45.25 in steps of 45.25 / 81: the top of bin 25.9.
        Assert.Equal(26, features[25].argmax().item<long>(), 1.0);
        Assert.True(features.max().item<float>() - features.min().item<float>() <= 2 + 1e-5);
    }

    [Fact]
    public void Whispers_features_are_three_thousand_frames_and_own_ones_have_mean_zero()
    {
        using var scope = NewDisposeScope();
        using var whisper = new LogMel(new());
        Assert.Equal([3000L, 80], whisper.Compute(Tone(300, 16_000, 1)).shape);
        using var own = new LogMel(new() { Bins = 40, Seconds = null, Normalization = FeatureNormalization.PerBin });
        var random = new Random(1);
        var features = own.Compute(new([.. Enumerable.Range(0, 8000).Select(_ => (float)random.NextDouble() - 0.5f)], 16_000));
        Assert.True(features.mean([0L]).abs().max().item<float>() < 1e-4);
        Assert.Equal(1, features.square().mean().item<float>(), 1e-3);
        Assert.Contains("less than one window", Assert.Throws<ArgumentException>(() => own.Compute(new(new float[100], 16_000))).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => (object)new LogMel(new() { Bins = 0 }));
    }

    private static Waveform Tone(double hertz, int rate, double seconds) => new([.. Enumerable.Range(0, (int)(rate * seconds)).Select(i => (float)(0.5 * Math.Sin(2 * Math.PI * hertz * i / rate)))], rate);

    private static byte[] Wav(int format, int bits, int channels, int rate, double[] samples)
    {
        using var buffer = new MemoryStream();
        using var writer = new BinaryWriter(buffer);
        var bytes = samples.Length * bits / 8;
        writer.Write("RIFF"u8);
        writer.Write(36 + bytes);
        writer.Write("WAVEfmt "u8);
        writer.Write(16);
        writer.Write((short)format);
        writer.Write((short)channels);
        writer.Write(rate);
        writer.Write(rate * channels * bits / 8);
        writer.Write((short)(channels * bits / 8));
        writer.Write((short)bits);
        writer.Write("data"u8);
        writer.Write(bytes);
        foreach (var sample in samples)
        {
            switch (format, bits)
            {
                case (3, 32): writer.Write((float)sample); break;
                case (3, 64): writer.Write(sample); break;
                case (_, 8): writer.Write((byte)(128 + (sample * 128))); break;
                case (_, 24): writer.Write(BitConverter.GetBytes((int)(sample * 8388608))[..3]); break;
                default: writer.Write((int)(sample * 2147483648)); break;
            }
        }

        return buffer.ToArray();
    }
}
