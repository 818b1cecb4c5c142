using CsCheck;

namespace Heed.Tests;

/// <summary>Generators that CsCheck lacks.</summary>
internal static class Choices
{
    /// <summary>One of some values, the first being the simplest.</summary>
    public static Gen<T> OneOf<T>(params T[] values) => Gen.Int[0, values.Length - 1].Select(i => values[i]);
}
