using Heed.Onnx;

namespace Heed.Lab.Onnx;

/// <summary>One character that a line reader read.</summary>
/// <param name="Text">The character.</param>
/// <param name="Probability">Mean probability of its steps.</param>
/// <param name="First">Its first step along the line.</param>
/// <param name="Last">Its last step.</param>
public sealed record ReadCharacter(string Text, double Probability, int First, int Last);

/// <summary>Reads what recognisers of text lines give: per step along the line a probability of every character and of the blank (connectionist temporal classification), decoded greedily.</summary>
public sealed class LineReader
{
    private const int Blank = 0;

    private readonly string[] _characters;

    private LineReader(string file, string[] characters)
    {
        File = file;
        _characters = characters;
    }

    /// <summary>The list of characters.</summary>
    public string File { get; }

    /// <summary>Finds the list of characters of a model: one a line, as many as its last output axis has classes, less the blank (class 0) and, where one more class is left, the space (the last).</summary>
    /// <param name="file">The list; null: a text file in the model's folder that fits.</param>
    /// <param name="modelPath">The model.</param>
    /// <param name="classes">Number of classes.</param>
    /// <returns>The reader; null where no file was named and none fits.</returns>
    /// <exception cref="FileNotFoundException">There is no such list.</exception>
    /// <exception cref="InvalidDataException">The list has another number of characters.</exception>
    public static LineReader? Find(string? file, string modelPath, long classes)
    {
        if (file is not null)
        {
            return !System.IO.File.Exists(file) ? throw new FileNotFoundException($"There is no list of characters '{file}'.", file)
                : Of(file, classes) ?? throw new InvalidDataException($"'{file}' lists {Lines(file).Length} characters, and the model tells {classes} classes apart: the blank, the characters, and perhaps the space.");
        }

        var folder = Path.GetDirectoryName(Path.GetFullPath(modelPath))!;
        return Directory.EnumerateFiles(folder, "*.txt").Order(StringComparer.Ordinal).Where(text => new FileInfo(text).Length < 1 << 22).Select(text => Of(text, classes)).FirstOrDefault(reader => reader is not null);
    }

    /// <summary>Decodes the output of one line.</summary>
    /// <param name="probabilities"><c>[1, steps, classes]</c>: probabilities, or what a softmax would make them.</param>
    public IReadOnlyList<ReadCharacter> Read(OnnxTensor probabilities)
    {
        ArgumentNullException.ThrowIfNull(probabilities);
        var values = probabilities.ToSingles();
        var classes = (int)probabilities.Shape[^1];
        var steps = (int)probabilities.Shape[^2];
        var read = new List<ReadCharacter>();
        var (open, start, sum) = (Blank, 0, 0.0);
        for (var step = 0; step <= steps; step++)
        {
            var row = step < steps ? values.AsSpan(step * classes, classes) : default;
            var best = step < steps ? System.Numerics.Tensors.TensorPrimitives.IndexOfMax(row) : Blank;
            if (best != open)
            {
                if (open != Blank)
                {
                    read.Add(new(_characters[open - 1], sum / (step - start), start, step - 1));
                }

                (open, start, sum) = (best, step, 0);
            }

            sum += step < steps ? Probability(row, best) : 0;
        }

        return read;
    }

    /// <summary>Some exporters leave the softmax to the caller.</summary>
    private static double Probability(ReadOnlySpan<float> row, int index)
    {
        var total = System.Numerics.Tensors.TensorPrimitives.Sum(row);
        if (row[index] <= 1.001f && total is > 0.99f and < 1.01f)
        {
            return row[index];
        }

        var sum = 0.0;
        foreach (var value in row)
        {
            sum += Math.Exp(value - row[index]);
        }

        return 1 / sum;
    }

    private static LineReader? Of(string file, long classes)
    {
        var lines = Lines(file);
        return lines.Length == classes - 1 ? new(file, lines) : lines.Length == classes - 2 ? new(file, [.. lines, " "]) : null;
    }

    private static string[] Lines(string file)
    {
        // A list ends with or without a line end; a line that holds only a space is the space.
        var text = System.IO.File.ReadAllText(file).Replace("\r\n", "\n", StringComparison.Ordinal);
        return (text.EndsWith('\n') ? text[..^1] : text).Split('\n');
    }
}
