using Heed.Lab.Inspection;
using Heed.Onnx;

namespace Heed.Lab.Onnx;

/// <summary>A map in cells of one or more queries and keys: a cell holds the mass that its rows, on average, give to its columns.</summary>
/// <param name="Rows">Cells down.</param>
/// <param name="Columns">Cells across.</param>
/// <param name="Cells">The cells, row by row.</param>
public sealed record CellMap(int Rows, int Columns, float[] Cells)
{
    /// <summary>Puts a map into at most so many cells a side.</summary>
    public static CellMap Of(ReadOnlySpan<float> map, int queries, int keys, int mostSide)
    {
        var (tall, wide) = ((queries + mostSide - 1) / mostSide, (keys + mostSide - 1) / mostSide);
        var (rows, columns) = ((queries + tall - 1) / tall, (keys + wide - 1) / wide);
        var cells = new float[rows * columns];
        for (var row = 0; row < queries; row++)
        {
            var height = Math.Min(tall, queries - (row / tall * tall));
            for (var key = 0; key < keys; key++)
            {
                cells[(row / tall * columns) + (key / wide)] += map[(row * keys) + key] / height;
            }
        }

        return new(rows, columns, cells);
    }
}

/// <summary>One head, in one run.</summary>
/// <param name="Head">The head, from 0.</param>
/// <param name="Statistics">Its numbers.</param>
/// <param name="Map">Its map.</param>
public sealed record OnnxHead(int Head, HeadStatistics Statistics, CellMap Map)
{
    /// <summary>What it looks like.</summary>
    public HeadLook Look => HeadLooks.Of(Statistics);
}

/// <summary>One attention, in one run.</summary>
/// <param name="Attention">Which.</param>
/// <param name="Queries">Number of queries.</param>
/// <param name="Keys">Number of keys.</param>
/// <param name="IsCausal">Whether no row gives anything to a later key (queries are the last of the keys).</param>
/// <param name="Heads">Its heads.</param>
/// <param name="After">Its heads after the edits; null: there are none.</param>
public sealed record OnnxLayer(OnnxAttention Attention, int Queries, int Keys, bool IsCausal, IReadOnlyList<OnnxHead> Heads, IReadOnlyList<OnnxHead>? After);

/// <summary>Where a character of a line looks in one attention, mean over the character's steps.</summary>
/// <param name="Layer">The attention.</param>
/// <param name="Head">The head; null: the mean of all. Beside the mean stands the head that, over the whole line, keeps most to what is near.</param>
/// <param name="Weights">Weight of each step along the line.</param>
/// <param name="PeakFirst">First pixel column of the largest weight, in the file's picture.</param>
/// <param name="PeakLast">Last pixel column of it.</param>
/// <param name="OwnMass">Mass on the character's own columns and one step beside them.</param>
/// <param name="EqualMass">What equal weights would have there.</param>
public sealed record CharacterLook(int Layer, int? Head, float[] Weights, double PeakFirst, double PeakLast, double OwnMass, double EqualMass);

/// <summary>A character of a line, and where it looks.</summary>
/// <param name="Read">The character.</param>
/// <param name="First">First pixel column of its steps, in the file's picture.</param>
/// <param name="Last">Last pixel column.</param>
/// <param name="Looks">By attention.</param>
public sealed record InspectedCharacter(ReadCharacter Read, double First, double Last, IReadOnlyList<CharacterLook> Looks);

/// <summary>What an ONNX model attended to on an input.</summary>
public sealed record OnnxInspection
{
    /// <summary>The model's file name.</summary>
    public required string Model { get; init; }

    /// <summary>Weights in the file.</summary>
    public required long Parameters { get; init; }

    /// <summary>Version of the standard operators.</summary>
    public required int OperatorVersion { get; init; }

    /// <summary>What the model looked at.</summary>
    public required string Source { get; init; }

    /// <summary>The attentions.</summary>
    public required IReadOnlyList<OnnxLayer> Layers { get; init; }

    /// <summary>What the tokens stand for, where the input is text.</summary>
    public IReadOnlyList<string> Tokens { get; init; } = [];

    /// <summary>The picture, where the input is one.</summary>
    public OnnxPicture? Picture { get; init; }

    /// <summary>What the model read, where it reads lines of text.</summary>
    public IReadOnlyList<InspectedCharacter>? Characters { get; init; }

    /// <summary>What it read after the edits.</summary>
    public string? TextAfter { get; init; }

    /// <summary>The model's outputs.</summary>
    public required IReadOnlyDictionary<string, OnnxTensor> Outputs { get; init; }

    /// <summary>Its outputs after the edits; null: there are none.</summary>
    public IReadOnlyDictionary<string, OnnxTensor>? OutputsAfter { get; init; }

    /// <summary>The edits, as they were asked for.</summary>
    public IReadOnlyList<string> Edits { get; init; } = [];

    /// <summary>Sentences that the reader must know.</summary>
    public IReadOnlyList<string> Notices { get; init; } = [];

    /// <summary>Seconds that the runs took.</summary>
    public double Seconds { get; init; }

    /// <summary>What the model read, in one piece.</summary>
    public string? Text => Characters is null ? null : string.Concat(Characters.Select(character => character.Read.Text));

    /// <summary>Largest change of an output by the edits, for each.</summary>
    public IEnumerable<(string Name, double Change)> Changes => OutputsAfter is not { } after ? []
        : Outputs.Where(output => after.ContainsKey(output.Key) && after[output.Key].Shape.SequenceEqual(output.Value.Shape))
            .Select(output => (output.Key, output.Value.ToSingles().Zip(after[output.Key].ToSingles(), (a, b) => (double)Math.Abs(a - b)).DefaultIfEmpty(0).Max()));
}
