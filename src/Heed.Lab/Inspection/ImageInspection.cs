using Heed.Lab.Images;

namespace Heed.Lab.Inspection;

/// <summary>A picture to look at.</summary>
/// <param name="Source">Where it comes from, for the heading.</param>
/// <param name="Pixels"><c>[channels, size, size]</c>, 0 to 255.</param>
/// <param name="Label">Its class, where it is known.</param>
public sealed record InspectedPicture(string Source, byte[] Pixels, int? Label = null);

/// <summary>One map over the picture.</summary>
/// <param name="Site">The module that it comes from.</param>
/// <param name="Name">What is shown: gate, modulator, agent ...</param>
/// <param name="Label">Which one.</param>
/// <param name="Height">Rows.</param>
/// <param name="Width">Columns.</param>
/// <param name="Values">Row by row.</param>
public sealed record InspectedMap(string Site, string Name, string Label, int Height, int Width, float[] Values)
{
    /// <summary>The smallest value.</summary>
    public float Minimum => Values.Where(float.IsFinite).DefaultIfEmpty(0).Min();

    /// <summary>The largest value.</summary>
    public float Maximum => Values.Where(float.IsFinite).DefaultIfEmpty(0).Max();
}

/// <summary>What every position of the picture attends to, in one head.</summary>
/// <param name="Site">The attention call.</param>
/// <param name="Head">The head.</param>
/// <param name="Side">Positions along a side of the grid; a query's map has as many rows and columns.</param>
/// <param name="Weights"><c>[Side^2, Side^2]</c>: the weights of every position's row on the positions of the grid.</param>
/// <param name="MeanDistance">Mean distance between a position and what it attends to, in cells.</param>
public sealed record InspectedImageHead(string Site, int Head, int Side, float[] Weights, double MeanDistance);

/// <summary>Where in the picture the centre of the last features looks.</summary>
/// <param name="Side">Pixels of a side.</param>
/// <param name="Values">Mean magnitude of the gradient of each pixel (arXiv 1701.04128), the largest 1, row by row.</param>
/// <param name="HalfSide">Side in pixels of the smallest centred square that holds half of it.</param>
/// <param name="Pictures">Pictures that it is the mean of.</param>
public sealed record ReceptiveField(int Side, float[] Values, int HalfSide, int Pictures);

/// <summary>What a vision model does with a picture.</summary>
/// <param name="Model">The model, as its name and options.</param>
/// <param name="Parameters">Number of parameters.</param>
/// <param name="Accuracy">Share of held-out pictures that it recognises; null where it is not known.</param>
/// <param name="Task">The pictures it reads.</param>
/// <param name="ClassNames">What its classes are called.</param>
/// <param name="Picture">The picture.</param>
/// <param name="Probabilities">Of every class.</param>
/// <param name="ReceptiveField">See there.</param>
/// <param name="Maps">Maps of the mixers, in the order of the forward pass.</param>
/// <param name="Heads">Attention over the picture.</param>
/// <param name="Notices">What could not be shown, a sentence each.</param>
/// <param name="Seconds">Time that it took.</param>
public sealed record ImageInspection(
    string Model, long Parameters, double? Accuracy, ImageTask Task, IReadOnlyList<string> ClassNames, InspectedPicture Picture, IReadOnlyList<double> Probabilities, ReceptiveField ReceptiveField,
    IReadOnlyList<InspectedMap> Maps, IReadOnlyList<InspectedImageHead> Heads, IReadOnlyList<string> Notices, double Seconds)
{
    /// <summary>The edit that was put into the model, as it was written; null: none.</summary>
    public string? Edit { get; init; }

    /// <summary>The same picture in the model as it was trained; null where there is no edit.</summary>
    public ImageInspection? Before { get; init; }

    /// <summary>The most probable class.</summary>
    public int Predicted => Enumerable.Range(0, Probabilities.Count).MaxBy(index => Probabilities[index]);
}
