using System.ComponentModel;
using System.Diagnostics;
using System.Text;
using System.Text.RegularExpressions;

namespace Heed.Lab.Corpora;

/// <summary>The King James text (1611, public domain) as printed by the program <c>bible</c> of the Debian package <c>bible-kjv</c>.</summary>
public static partial class KingJamesText
{
    private const int Verses = 31_102;
    private const int Chapters = 1_189;

    /// <summary>The whole text, a document a chapter, a line a verse, without references.</summary>
    /// <exception cref="FileNotFoundException">The program is not installed; the message says how to install it.</exception>
    /// <exception cref="InvalidDataException">The program printed something else than the whole text.</exception>
    public static TextCorpus Load()
    {
        var start = new ProcessStartInfo("bible", ["-f", "gen1:1-rev22:21"])
        {
            RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true, StandardOutputEncoding = Encoding.UTF8,
        };
        Process process;
        try
        {
            process = Process.Start(start)!;
        }
        catch (Win32Exception exception)
        {
            throw new FileNotFoundException(
                "The King James text comes from the program 'bible', which is not installed: run 'apt-get install bible-kjv', or give a text of your own with --text FILE.", exception);
        }

        using (process)
        {
            process.StandardInput.Close();
            process.ErrorDataReceived += (_, _) => { };
            process.BeginErrorReadLine();
            var printed = process.StandardOutput.ReadToEnd();
            process.WaitForExit();
            var documents = Parse(printed, out var verses);
            return verses == Verses && documents.Count == Chapters
                ? new TextCorpus("King James Bible", documents)
                : throw new InvalidDataException(
                    $"'bible -f gen1:1-rev22:21' printed {verses:N0} verses in {documents.Count:N0} chapters where {Verses:N0} in {Chapters:N0} were expected: " +
                    "reinstall it with 'apt-get install --reinstall bible-kjv bible-kjv-text'.");
        }
    }

    /// <summary>Chapters of lines like <c>Ge1:1 In the beginning ...</c>; lines of another form are left out.</summary>
    internal static List<TextDocument> Parse(string printed, out int verses)
    {
        var documents = new List<TextDocument>();
        var chapter = new StringBuilder();
        string? name = null;
        verses = 0;
        foreach (var line in printed.Split('\n'))
        {
            var match = Verse().Match(line);
            if (!match.Success)
            {
                continue;
            }

            verses++;
            var of = $"{match.Groups["book"].Value} {match.Groups["chapter"].Value}";
            if (of != name)
            {
                AddChapter();
                name = of;
            }

            chapter.Append(match.Groups["text"].Value.Trim()).Append('\n');
        }

        AddChapter();
        return documents;

        void AddChapter()
        {
            if (name is not null)
            {
                documents.Add(new TextDocument(name, chapter.ToString()));
                chapter.Clear();
            }
        }
    }

    [GeneratedRegex(@"^(?<book>\d?[A-Za-z]+)(?<chapter>\d+):\d+ (?<text>\S.*)$")]
    private static partial Regex Verse();
}
