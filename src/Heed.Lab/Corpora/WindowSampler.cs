namespace Heed.Lab.Corpora;

/// <summary>
/// Windows of a token stream in a random order that depends on the seed and the window's number alone, so that a run can be taken up anywhere: every epoch cuts the stream at a fresh
/// random phase into windows and visits each once.
/// </summary>
public sealed class WindowSampler
{
    private readonly int[] _stream;
    private readonly int _length;
    private readonly int _seed;
    private readonly int _perEpoch;
    private long _epoch = -1;
    private int[] _starts = [];

    /// <summary>Prepares windows of <paramref name="length"/> tokens.</summary>
    /// <exception cref="ArgumentException">The stream is shorter than two windows.</exception>
    public WindowSampler(int[] stream, int length, int seed)
    {
        // The random phase of an epoch may cost up to one window.
        _perEpoch = (stream.Length / length) - 1;
        if (_perEpoch < 1)
        {
            throw new ArgumentException($"The text has {stream.Length:N0} tokens; at least two windows of {length:N0} are needed: give a longer text.", nameof(stream));
        }

        _stream = stream;
        _length = length;
        _seed = seed;
    }

    /// <summary>Window number <paramref name="index"/>, counted over all epochs.</summary>
    public ReadOnlySpan<int> this[long index]
    {
        get
        {
            var (epoch, place) = Math.DivRem(index, _perEpoch);
            if (epoch != _epoch)
            {
                _epoch = epoch;
                var random = new Random(HashOf(_seed, _length, epoch));
                var phase = random.Next(_length);
                _starts = Enumerable.Range(0, _perEpoch).Select(window => phase + (window * _length)).ToArray();
                random.Shuffle(_starts);
            }

            return _stream.AsSpan(_starts[place], _length);
        }
    }

    // HashCode is seeded per process; this must be the same everywhere.
    private static int HashOf(int seed, int length, long epoch)
    {
        var hash = unchecked(((ulong)(uint)seed * 0x9E3779B97F4A7C15) ^ ((ulong)length * 0xC2B2AE3D27D4EB4F) ^ ((ulong)epoch * 0x165667B19E3779F9));
        hash ^= hash >> 29;
        hash = unchecked(hash * 0xBF58476D1CE4E5B9);
        return (int)(hash >> 33);
    }
}
