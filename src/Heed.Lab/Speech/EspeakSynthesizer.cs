using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using Heed.Models.Speech;

namespace Heed.Lab.Speech;

/// <summary>How a sentence is spoken.</summary>
/// <param name="Name">The voice, perhaps with a variant, for example <c>en-us+f3</c>.</param>
/// <param name="WordsPerMinute">Speed, 80 to 450.</param>
/// <param name="Pitch">Base pitch, 0 to 100; 50 is normal.</param>
public sealed record SpeakingStyle(string Name, int WordsPerMinute = 175, int Pitch = 50);

/// <summary>A word and when it starts.</summary>
/// <param name="Text">The word.</param>
/// <param name="Start">Seconds from the beginning of the sound.</param>
public readonly record struct SpokenWord(string Text, double Start);

/// <summary>A sentence as it was spoken.</summary>
/// <param name="Sound">The sound.</param>
/// <param name="Words">Its words with their starts, as the synthesiser says.</param>
public sealed record SpokenSentence(Waveform Sound, IReadOnlyList<SpokenWord> Words);

/// <summary>Speech from text with the time of every word, by the library eSpeak NG of the Debian package <c>libespeak-ng1</c>.</summary>
/// <remarks>The library has one state for the whole process: calls wait for each other.</remarks>
public static unsafe partial class EspeakSynthesizer
{
    private const string Library = "espeak-ng";

    // Values of speak_lib.h.
    private const int Synchronous = 2, DoNotExit = 0x8000, Rate = 1, Pitch = 3, PositionCharacter = 1, Utf8 = 1, EndPause = 0x1000;
    private const int WordEvent = 1;

    private static readonly Lock s_gate = new();
    private static readonly List<short> s_samples = [];
    private static readonly List<(int Position, int Milliseconds)> s_words = [];
    private static int s_rate;

    static EspeakSynthesizer() => NativeLibrary.SetDllImportResolver(typeof(EspeakSynthesizer).Assembly, Resolve);

    /// <summary>How to get the library.</summary>
    public const string HowToInstall = "run 'apt-get install libespeak-ng1 espeak-ng-data'";

    /// <summary>Whether the library and its voices are there.</summary>
    public static bool IsInstalled()
    {
        try
        {
            lock (s_gate)
            {
                Start();
            }

            return true;
        }
        catch (FileNotFoundException)
        {
            return false;
        }
    }

    /// <summary>Speaks a sentence.</summary>
    /// <param name="words">Its words, of letters and apostrophes only.</param>
    /// <param name="style">How.</param>
    /// <exception cref="FileNotFoundException">The library or its data are not installed; the message says how to install them.</exception>
    /// <exception cref="ArgumentException">There is no such voice, a word holds something else, or the synthesiser speaks several words as one, so that their times are not known.</exception>
    public static SpokenSentence Speak(IReadOnlyList<string> words, SpeakingStyle style)
    {
        ArgumentNullException.ThrowIfNull(words);
        ArgumentNullException.ThrowIfNull(style);
        if (words.Count == 0 || words.Any(word => word.Length == 0 || word.Any(letter => !char.IsAsciiLetter(letter) && letter != '\'')))
        {
            throw new ArgumentException($"A sentence is one word or more of the letters a to z, not '{string.Join(' ', words)}'.", nameof(words));
        }

        if (style.WordsPerMinute is < 80 or > 450 || style.Pitch is < 0 or > 100)
        {
            throw new ArgumentException($"Speech has 80 to 450 words a minute and a pitch of 0 to 100, not {style.WordsPerMinute} and {style.Pitch}.", nameof(style));
        }

        lock (s_gate)
        {
            Start();
            s_samples.Clear();
            s_words.Clear();
            if (SetVoice(style.Name) != 0)
            {
                throw new ArgumentException($"eSpeak NG has no voice '{style.Name}'.", nameof(style));
            }

            var text = Encoding.UTF8.GetBytes(string.Join(' ', words) + "\0");
            fixed (byte* start = text)
            {
                if (SetParameter(Rate, style.WordsPerMinute, 0) != 0 || SetParameter(Pitch, style.Pitch, 0) != 0 || Synthesize(start, (nuint)text.Length, 0, PositionCharacter, 0, Utf8 | EndPause, null, null) != 0)
                {
                    throw new InvalidOperationException("eSpeak NG could not speak the sentence.");
                }
            }

            return new(new([.. s_samples.Select(sample => sample / 32768f)], s_rate), Times(words));
        }
    }

    // Positions of words count characters from 1.
    private static SpokenWord[] Times(IReadOnlyList<string> words)
    {
        var times = s_words.GroupBy(found => found.Position).ToDictionary(group => group.Key, group => group.First().Milliseconds);
        var (spoken, position) = (new SpokenWord[words.Count], 1);
        for (var i = 0; i < words.Count; i++)
        {
            spoken[i] = times.TryGetValue(position, out var milliseconds)
                ? new(words[i], milliseconds / 1000.0)
                : throw new ArgumentException($"eSpeak NG speaks '{words[i]}' of '{string.Join(' ', words)}' as one with a word beside it, so that its time is not known: choose other words.", nameof(words));
            position += words[i].Length + 1;
        }

        return spoken;
    }

    private static void Start()
    {
        if (s_rate > 0)
        {
            return;
        }

        int rate;
        try
        {
            rate = Initialize(Synchronous, 0, null, DoNotExit);
        }
        catch (DllNotFoundException error)
        {
            throw new FileNotFoundException($"Speech is made by the library eSpeak NG, which is not installed: {HowToInstall}.", error);
        }

        if (rate <= 0)
        {
            throw new FileNotFoundException($"eSpeak NG does not find its voices: {HowToInstall}.");
        }

        SetCallback(&Receive);
        s_rate = rate;
    }

    private static nint Resolve(string name, Assembly assembly, DllImportSearchPath? path) =>
        name != Library ? 0
        : new[] { "libespeak-ng.so.1", "libespeak-ng.dylib", "libespeak-ng.dll" }.Select(file => NativeLibrary.TryLoad(file, assembly, path, out var handle) ? handle : 0).FirstOrDefault(handle => handle != 0);

    // Called by the library on the thread that synthesises.
    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static int Receive(short* samples, int count, Event* events)
    {
        if (samples != null)
        {
            s_samples.AddRange(new ReadOnlySpan<short>(samples, count));
        }

        for (; events->Type != 0; events++)
        {
            if (events->Type == WordEvent)
            {
                s_words.Add((events->TextPosition, events->AudioPosition));
            }
        }

        return 0;
    }

    [LibraryImport(Library, EntryPoint = "espeak_Initialize", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Initialize(int output, int bufferLength, string? path, int options);

    [LibraryImport(Library, EntryPoint = "espeak_SetSynthCallback")]
    private static partial void SetCallback(delegate* unmanaged[Cdecl]<short*, int, Event*, int> callback);

    [LibraryImport(Library, EntryPoint = "espeak_SetVoiceByName", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int SetVoice(string name);

    [LibraryImport(Library, EntryPoint = "espeak_SetParameter")]
    private static partial int SetParameter(int parameter, int value, int relative);

    [LibraryImport(Library, EntryPoint = "espeak_Synth")]
    private static partial int Synthesize(byte* text, nuint size, uint position, int positionType, uint endPosition, uint flags, uint* identifier, void* userData);

    // espeak_EVENT of speak_lib.h.
    [StructLayout(LayoutKind.Sequential)]
    private struct Event
    {
        public int Type;
        public uint Identifier;
        public int TextPosition;
        public int Length;
        public int AudioPosition;
        public int Sample;
        public void* UserData;
        public long Union;
    }
}
