using System.Security.Cryptography;
using System.Text;

namespace Heed.Lab.Corpora;

/// <summary>One text of a corpus: a chapter of a book, a part of a file.</summary>
/// <param name="Name">What to call it, for example <c>John 3</c>.</param>
/// <param name="Text">Its text, lines separated by <c>\n</c>, ending with one.</param>
public sealed record TextDocument(string Name, string Text);

/// <summary>Texts to train on and texts held out, chosen by their place alone: every <see cref="HeldOutEvery"/>th document is held out whole, so that the
/// same corpus always splits the same way and no held-out sentence has its neighbours in training.</summary>
public sealed class TextCorpus
{
    /// <summary>Every how many documents one is held out.</summary>
    public const int HeldOutEvery = 20;

    // A part of a file is about as long as a chapter of a book.
    private const int PartCharacters = 4_000;

    /// <summary>Splits documents into training and held-out texts.</summary>
    /// <exception cref="ArgumentException">There are too few documents to hold one out.</exception>
    public TextCorpus(string name, IReadOnlyList<TextDocument> documents)
    {
        if (documents.Count < HeldOutEvery)
        {
            throw new ArgumentException(
                $"'{name}' has {documents.Count} parts of about {PartCharacters:N0} characters; at least {HeldOutEvery} are needed to hold some out: give a longer text.", nameof(documents));
        }

        Name = name;
        Training = documents.Where((_, index) => (index + 1) % HeldOutEvery != 0).ToList();
        HeldOut = documents.Where((_, index) => (index + 1) % HeldOutEvery == 0).ToList();
        Sha256 = Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(string.Join('\n', documents.Select(document => document.Text)))));
    }

    /// <summary>What the corpus is called.</summary>
    public string Name { get; }

    /// <summary>The texts to train on, in their order.</summary>
    public IReadOnlyList<TextDocument> Training { get; }

    /// <summary>The texts that training never sees, in their order.</summary>
    public IReadOnlyList<TextDocument> HeldOut { get; }

    /// <summary>SHA-256 of all texts: two runs with the same value read the same corpus.</summary>
    public string Sha256 { get; }

    /// <summary>The training texts as one, with an empty line between documents.</summary>
    public string TrainingText => string.Join('\n', Training.Select(document => document.Text));

    /// <summary>A corpus of any UTF-8 text file, cut at line ends into parts of about 4,000 characters.</summary>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">The file is not UTF-8 text.</exception>
    /// <exception cref="ArgumentException">The text is too short.</exception>
    public static TextCorpus FromFile(string path)
    {
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"There is no file '{path}': give the path of a UTF-8 text file.", path);
        }

        string text;
        try
        {
            text = new UTF8Encoding(encoderShouldEmitUTF8Identifier: false, throwOnInvalidBytes: true).GetString(File.ReadAllBytes(path));
        }
        catch (DecoderFallbackException exception)
        {
            throw new InvalidDataException($"'{path}' is not UTF-8 text (byte {exception.Index:N0} cannot be decoded): convert it first.", exception);
        }

        var documents = new List<TextDocument>();
        var part = new StringBuilder();
        foreach (var line in text.TrimStart('\uFEFF').ReplaceLineEndings("\n").Split('\n'))
        {
            part.Append(line).Append('\n');
            if (part.Length >= PartCharacters)
            {
                AddPart();
            }
        }

        AddPart();
        return new TextCorpus(Path.GetFileName(path), documents);

        void AddPart()
        {
            var body = part.ToString().Trim('\n');
            part.Clear();
            if (!string.IsNullOrWhiteSpace(body))
            {
                documents.Add(new TextDocument($"part {documents.Count + 1}", body + "\n"));
            }
        }
    }
}
