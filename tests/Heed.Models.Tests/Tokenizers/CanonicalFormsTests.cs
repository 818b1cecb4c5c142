using System.Globalization;
using Heed.Models.Tokenizers;
using Xunit;

namespace Heed.Models.Tests.Tokenizers;

public class CanonicalFormsTests
{
    [Fact]
    public void FormsAreThoseOfAnotherImplementation()
    {
        var lines = File.ReadAllLines(Path.Combine(AppContext.BaseDirectory, "Tokenizers", "Data", "normalization.txt"));
        Assert.Equal(400, lines.Length);
        foreach (var line in lines)
        {
            var forms = line.Split(';').Select(Text).ToArray();
            Assert.Equal(forms[1], CanonicalForms.Compose(forms[0]));
            Assert.Equal(forms[2], CanonicalForms.Decompose(forms[0]));
            Assert.Equal(forms[1], CanonicalForms.Compose(forms[2]));
        }

        Assert.Equal("a\uD800b", CanonicalForms.Compose("a\uD800b"));
    }

    private static string Text(string points) =>
        string.Concat(points.Split(' ').Select(point => char.ConvertFromUtf32(int.Parse(point, NumberStyles.HexNumber, CultureInfo.InvariantCulture))));
}
