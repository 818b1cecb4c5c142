using System.Text.Json;
using Heed.Models;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Training;

/// <summary>
/// One file with all that a stopped run needs to go on to the same result: the weights, the optimizer's state, the history, and an identity that says of which run. Written whole or not
/// at all.
/// </summary>
internal static class TrainingCheckpoint
{
    private const string Magic = "heed-training-1";
    private const string StepsName = "steps=";

    public static void Save(string path, string identity, TrainingHistory history, nn.Module model, OptimizerHelper optimizer) => AtomicFile.Write(path, stream =>
    {
        using var writer = new BinaryWriter(stream, System.Text.Encoding.UTF8, leaveOpen: true);
        writer.Write(Magic);
        writer.Write(identity);
        writer.Write(JsonSerializer.Serialize(history));
        model.save(writer);
        optimizer.save_state_dict(writer);
        writer.Write(Magic);
    });

    /// <summary>Restores a run.</summary>
    /// <exception cref="InvalidDataException">The file is damaged or belongs to a run with other settings.</exception>
    public static TrainingHistory Load(string path, string identity, nn.Module model, OptimizerHelper optimizer)
    {
        using var reader = new BinaryReader(File.OpenRead(path));
        try
        {
            Require(reader.ReadString() == Magic);
            if (reader.ReadString() is var stored && stored != identity)
            {
                throw new ArgumentException(
                    $"'{path}' belongs to a run with other settings ({Difference(stored, identity)}): give the same options as before, or delete the file to start afresh.");
            }

            var history = JsonSerializer.Deserialize<TrainingHistory>(reader.ReadString());
            using (no_grad())
            {
                model.load(reader);
            }

            optimizer.load_state_dict(reader);
            Require(history is not null && reader.ReadString() == Magic);
            return history!;
        }
        catch (Exception exception) when (exception is EndOfStreamException or FormatException or JsonException or IOException and not FileNotFoundException)
        {
            throw Damaged(exception);
        }

        void Require(bool condition)
        {
            if (!condition)
            {
                throw Damaged(null);
            }
        }

        InvalidDataException Damaged(Exception? cause) => new($"'{path}' is not a whole training checkpoint: delete it to start afresh.", cause);
    }

    /// <summary>The line of an identity that says how long the run is.</summary>
    public static string StepsLine(long steps) => StepsName + steps;

    /// <summary>How long the run of a checkpoint is; null where its identity does not say, or the file is damaged.</summary>
    public static long? StepsOf(string path)
    {
        using var reader = new BinaryReader(File.OpenRead(path));
        try
        {
            reader.ReadString();
            var line = reader.ReadString().Split('\n').FirstOrDefault(line => line.StartsWith(StepsName, StringComparison.Ordinal));
            return long.TryParse(line?[StepsName.Length..], out var steps) ? steps : null;
        }
        catch (Exception exception) when (exception is EndOfStreamException or FormatException)
        {
            return null;
        }
    }

    // Identities are "name=value" lines; naming the first that differs says what to give again.
    private static string Difference(string stored, string wanted)
    {
        var wantedLines = wanted.Split('\n');
        return stored.Split('\n').Zip(wantedLines).Where(pair => pair.First != pair.Second).Select(pair => $"{pair.First} there, {pair.Second} now").FirstOrDefault() ?? "more settings";
    }
}
