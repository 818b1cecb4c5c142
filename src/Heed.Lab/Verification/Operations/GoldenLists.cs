using System.Globalization;

namespace Heed.Lab.Verification.Operations;

/// <summary>Lists that cases write as text, <c>4,9,9,9</c>.</summary>
internal static class GoldenLists
{
    public static int[] Integers(GoldenCase golden, string key) =>
        [.. golden.Text(key).Split(',').Select(part => int.TryParse(part, NumberStyles.AllowLeadingSign | NumberStyles.AllowLeadingWhite | NumberStyles.AllowTrailingWhite, CultureInfo.InvariantCulture, out var value)
            ? value : throw new InvalidDataException($"The case's {key} is '{golden.Text(key)}'; whole numbers with commas between them were expected."))];
}
