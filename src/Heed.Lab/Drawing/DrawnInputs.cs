using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Drawing;

/// <summary>Queries, keys and values for a mechanism to choose among, <c>[B, H, N, D]</c>. They belong to the current dispose scope.</summary>
/// <param name="Query">Queries.</param>
/// <param name="Key">Keys.</param>
/// <param name="Value">Values.</param>
public sealed record DrawnInputs(Tensor Query, Tensor Key, Tensor Value)
{
    private const int Width = 64;

    // Neighbouring keys of real texts and images are alike: a mechanism that chooses by content has nothing to find among independent ones.
    private const double Memory = 0.95;

    // Queries look for what keys are, sharply enough that choices differ from chance.
    private const double Likeness = 0.7;
    private const double Sharpness = 2;

    /// <summary>Random inputs: keys drift (an AR(1) process along the tokens), and every query is like the key of its own token or of one far away, half of the tokens each.</summary>
    /// <param name="tokens">Number of tokens.</param>
    /// <param name="heads">Number of heads.</param>
    /// <param name="seed">The same seed gives the same inputs.</param>
    public static DrawnInputs Random(int tokens, int heads, int seed = 1)
    {
        var random = new Random(seed);
        var keys = new float[heads * tokens * Width];
        var queries = new float[keys.Length];
        for (var head = 0; head < heads; head++)
        {
            var first = head * tokens * Width;
            for (var at = first; at < first + (tokens * Width); at++)
            {
                keys[at] = (float)(at < first + Width ? Normal(random) : (Memory * keys[at - Width]) + (Math.Sqrt(1 - (Memory * Memory)) * Normal(random)));
            }

            for (var token = 0; token < tokens; token++)
            {
                var like = random.Next(2) == 0 ? token : random.Next(token + 1);
                for (var i = 0; i < Width; i++)
                {
                    queries[first + (token * Width) + i] = (float)(Sharpness * ((Likeness * keys[first + (like * Width) + i]) + (Math.Sqrt(1 - (Likeness * Likeness)) * Normal(random))));
                }
            }
        }

        var key = tensor(keys, [1, heads, tokens, Width]);
        return new(tensor(queries, [1, heads, tokens, Width]), key, key);
    }

    /// <summary>The tensors <c>query</c>, <c>key</c> and, where it is there, <c>value</c> of a safetensors file, each <c>[B, H, N, D]</c>, <c>[H, N, D]</c> or <c>[N, D]</c>.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="ArgumentException">A tensor is missing or of another shape.</exception>
    public static DrawnInputs FromFile(string path)
    {
        using var reader = new SafetensorsReader(path);
        var (query, key) = (Read("query"), Read("key"));
        return new(query, key, reader.Entries.ContainsKey("value") ? Read("value") : key);

        Tensor Read(string name)
        {
            if (!reader.Entries.ContainsKey(name))
            {
                throw new ArgumentException($"'{path}' has no tensor '{name}': give query and key, and value where it counts, each [B, H, N, D].");
            }

            var values = reader.Read(name);
            if (values.dim() is < 2 or > 4 || !values.is_floating_point())
            {
                throw new ArgumentException($"The tensor '{name}' of '{path}' is {values.dtype} [{string.Join(", ", values.shape)}]: give floating-point numbers [B, H, N, D], [H, N, D] or [N, D].");
            }

            while (values.dim() < 4)
            {
                values = values.unsqueeze(0);
            }

            return values.to(ScalarType.Float32);
        }
    }

    private static double Normal(Random random) => Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble());
}
