using System.Buffers.Binary;
using System.Text;

namespace Heed.Models.Speech;

/// <summary>Sound of one channel.</summary>
/// <param name="Samples">From -1 to 1.</param>
/// <param name="Rate">Samples per second.</param>
public sealed record Waveform(IReadOnlyList<float> Samples, int Rate)
{
    // Of the narrowest band that is kept, on either side.
    private const int Lobes = 16;

    // Far above what any recorder writes.
    private const int HighestRate = 768_000;

    /// <summary>How long it lasts, in seconds.</summary>
    public double Seconds => (double)Samples.Count / Rate;

    /// <summary>Reads a WAV file: whole numbers of 8, 16, 24 or 32 bits, or floating-point ones of 32 or 64. Several channels are averaged.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">It is no WAV file, is compressed, or is broken.</exception>
    public static Waveform Read(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"There is no sound file '{path}'.", path);
        }

        var content = File.ReadAllBytes(path);
        InvalidDataException Broken(string what) => new($"'{path}' is not a WAV file that can be read: {what}. Convert it, for example with 'ffmpeg -i IN -ac 1 -c:a pcm_s16le OUT.wav'.");
        if (content.Length < 12 || !Is(content, 0, "RIFF") || !Is(content, 8, "WAVE"))
        {
            throw Broken("it does not begin as one");
        }

        int format = 0, channels = 0, rate = 0, bits = 0;
        for (long at = 12; at + 8 <= content.Length;)
        {
            var size = BinaryPrimitives.ReadUInt32LittleEndian(content.AsSpan((int)at + 4));
            var body = at + 8;
            if (Is(content, (int)at, "fmt ") && size >= 16 && body + size <= content.Length)
            {
                var header = content.AsSpan((int)body, (int)size);
                (format, channels) = (BinaryPrimitives.ReadUInt16LittleEndian(header), BinaryPrimitives.ReadUInt16LittleEndian(header[2..]));
                (rate, bits) = (BinaryPrimitives.ReadInt32LittleEndian(header[4..]), BinaryPrimitives.ReadUInt16LittleEndian(header[14..]));

                // The extensible form says the real format in its subformat.
                format = format == 0xFFFE && size >= 26 ? BinaryPrimitives.ReadUInt16LittleEndian(header[24..]) : format;
            }
            else if (Is(content, (int)at, "data"))
            {
                if ((format, bits) is not ((1, 8 or 16 or 24 or 32) or (3, 32 or 64)) || channels is < 1 or > 64 || rate is < 1 or > HighestRate)
                {
                    throw Broken($"its samples are of format {format} with {bits} bits in {channels} channel(s) at {rate} a second");
                }

                // Programs that stream a file leave its length open.
                var bytes = (int)Math.Min(size, content.Length - body);
                return new(Mono(content.AsSpan((int)body, bytes), format, bits / 8, channels), rate);
            }

            at = body + size + (size % 2);
        }

        throw Broken("it has no samples");
    }

    /// <summary>Writes a WAV file of 16 bits; samples beyond -1 and 1 are cut off.</summary>
    /// <param name="path">The file.</param>
    public void Write(string path)
    {
        var bytes = new byte[44 + (2 * Samples.Count)];
        Encoding.ASCII.GetBytes("RIFF", bytes);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(4), bytes.Length - 8);
        Encoding.ASCII.GetBytes("WAVEfmt ", bytes.AsSpan(8));
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(16), 16);
        BinaryPrimitives.WriteInt16LittleEndian(bytes.AsSpan(20), 1);
        BinaryPrimitives.WriteInt16LittleEndian(bytes.AsSpan(22), 1);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(24), Rate);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(28), 2 * Rate);
        BinaryPrimitives.WriteInt16LittleEndian(bytes.AsSpan(32), 2);
        BinaryPrimitives.WriteInt16LittleEndian(bytes.AsSpan(34), 16);
        Encoding.ASCII.GetBytes("data", bytes.AsSpan(36));
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(40), 2 * Samples.Count);
        for (var i = 0; i < Samples.Count; i++)
        {
            BinaryPrimitives.WriteInt16LittleEndian(bytes.AsSpan(44 + (2 * i)), (short)Math.Clamp(Math.Round(Samples[i] * 32768), short.MinValue, short.MaxValue));
        }

        AtomicFile.Write(path, stream => stream.Write(bytes));
    }

    /// <summary>The same sound with another number of samples per second: by a windowed sinc that cuts off what the lower of the two rates cannot carry.</summary>
    /// <param name="rate">Samples per second, from 1.</param>
    public Waveform At(int rate)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(rate, 1);
        if (rate == Rate)
        {
            return this;
        }

        var band = Math.Min(1, (double)rate / Rate);
        var reach = Lobes / band;
        var source = Samples as float[] ?? [.. Samples];
        var samples = new float[(int)((long)source.Length * rate / Rate)];

        // The fractions of a sample at which outputs fall repeat: each has its filter once.
        var phases = rate / (int)System.Numerics.BigInteger.GreatestCommonDivisor(rate, Rate);
        var width = (2 * (int)Math.Ceiling(reach)) + 1;
        var filters = new double[phases][];
        for (var i = 0; i < samples.Length; i++)
        {
            var position = (long)i * Rate;
            var (centre, phase) = ((int)(position / rate), i % phases);
            var filter = filters[phase] ??= Filter((double)(position % rate) / rate, band, reach, width);
            double sum = 0;
            for (var tap = Math.Max(0, (width / 2) - centre); tap < width && centre - (width / 2) + tap < source.Length; tap++)
            {
                sum += filter[tap] * source[centre - (width / 2) + tap];
            }

            samples[i] = (float)sum;
        }

        return new(samples, rate);
    }

    private static double[] Filter(double fraction, double band, double reach, int width) => [.. Enumerable.Range(0, width).Select(tap =>
    {
        var distance = tap - (width / 2) - fraction;
        var x = Math.PI * distance * band;
        var window = Math.Abs(distance) < reach ? 0.5 + (0.5 * Math.Cos(Math.PI * distance / reach)) : 0;
        return band * window * (x == 0 ? 1 : Math.Sin(x) / x);
    })];

    private static bool Is(byte[] content, int at, string mark) => content.AsSpan(at, 4).SequenceEqual(Encoding.ASCII.GetBytes(mark));

    private static float[] Mono(ReadOnlySpan<byte> data, int format, int bytes, int channels)
    {
        var samples = new float[data.Length / (bytes * channels)];
        for (var i = 0; i < samples.Length; i++)
        {
            double sum = 0;
            for (var channel = 0; channel < channels; channel++)
            {
                var value = data.Slice(((i * channels) + channel) * bytes, bytes);
                sum += (format, bytes) switch
                {
                    (1, 1) => (value[0] - 128) / 128.0,
                    (1, 2) => BinaryPrimitives.ReadInt16LittleEndian(value) / 32768.0,
                    (1, 3) => ((value[0] << 8) | (value[1] << 16) | (value[2] << 24)) / 2147483648.0,
                    (1, _) => BinaryPrimitives.ReadInt32LittleEndian(value) / 2147483648.0,
                    (_, 4) => BinaryPrimitives.ReadSingleLittleEndian(value),
                    _ => BinaryPrimitives.ReadDoubleLittleEndian(value),
                };
            }

            samples[i] = (float)(sum / channels);
        }

        return samples;
    }
}
