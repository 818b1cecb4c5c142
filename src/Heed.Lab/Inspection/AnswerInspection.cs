namespace Heed.Lab.Inspection;

/// <summary>A word that a model said of a picture, and where it looked when it chose it.</summary>
/// <param name="Text">The token's text.</param>
/// <param name="ImageMass">Share of the attention that lay on the picture, layer by layer and within it head by head.</param>
/// <param name="Weights">Weights of the picture's patches in that order, <c>layers x heads x patches</c> numbers.</param>
public sealed record AnswerWord(string Text, float[] ImageMass, float[] Weights);

/// <summary>What a model says of a picture.</summary>
/// <param name="Name">As it was trained, or with which edit.</param>
/// <param name="Text">All of it.</param>
/// <param name="Words">Word by word.</param>
/// <param name="TokensPerSecond">How fast.</param>
public sealed record AnswerText(string Name, string Text, IReadOnlyList<AnswerWord> Words, double TokensPerSecond);

/// <summary>The sinks that a layer's input shows (arXiv 2503.03321).</summary>
/// <param name="Layer">The layer.</param>
/// <param name="Patches">Sinks among the picture's patches.</param>
/// <param name="Text">Sinks among the text's tokens, by their position in the prompt.</param>
/// <param name="Largest">The largest sink value of a patch.</param>
public sealed record AnswerSinks(int Layer, IReadOnlyList<int> Patches, IReadOnlyList<int> Text, double Largest);

/// <summary>What a vision-language model does with a picture and a prompt.</summary>
/// <param name="Model">The model.</param>
/// <param name="Parameters">Number of parameters.</param>
/// <param name="Picture">The picture.</param>
/// <param name="Side">Its pixels of a side.</param>
/// <param name="Prompt">The prompt.</param>
/// <param name="Grid">Patches of a side.</param>
/// <param name="Layers">Layers of the decoder.</param>
/// <param name="Heads">Heads of a layer.</param>
/// <param name="Runs">What it says as it was trained, then with the edit where there is one.</param>
/// <param name="SinkDimensions">The hidden dimensions in which the begin token stands out.</param>
/// <param name="SinkThreshold">The value above which a token is a sink.</param>
/// <param name="Sinks">The sinks, layer by layer.</param>
/// <param name="ClassAttention">What the encoder's class token attends to, mean over heads: a map for each layer that was run.</param>
/// <param name="Seconds">Time that it took.</param>
public sealed record AnswerInspection(
    string Model, long Parameters, InspectedPicture Picture, int Side, string Prompt, int Grid, int Layers, int Heads, IReadOnlyList<AnswerText> Runs, IReadOnlyList<long> SinkDimensions, double SinkThreshold,
    IReadOnlyList<AnswerSinks> Sinks, IReadOnlyList<float[]> ClassAttention, double Seconds);
