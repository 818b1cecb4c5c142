using Xunit;

namespace Heed.Tests;

public sealed class TokenLayoutTests
{
    [Fact]
    public void The_only_span_of_a_kind_is_found()
    {
        var layout = new TokenLayout(new TokenSpan(TokenKind.Text, 0, 3), new TokenSpan(TokenKind.Image, 3, 12, 3, 4), new TokenSpan(TokenKind.Text, 15, 2));
        Assert.Equal((3, 15), (layout.Only(TokenKind.Image).Start, layout.Only(TokenKind.Image).End));
        Assert.Equal(17, layout.Length);
        Assert.Contains("more than one", Assert.Throws<InvalidOperationException>(() => layout.Only(TokenKind.Text)).Message);
        Assert.Contains("no span", Assert.Throws<InvalidOperationException>(() => layout.Only(TokenKind.Audio)).Message);
    }

    [Fact]
    public void Gaps_overlaps_and_wrong_grids_are_refused()
    {
        Assert.Throws<ArgumentException>(() => new TokenLayout(new TokenSpan(TokenKind.Text, 1, 3)));
        Assert.Throws<ArgumentException>(() => new TokenLayout(new TokenSpan(TokenKind.Text, 0, 3), new TokenSpan(TokenKind.Image, 2, 4)));
        Assert.Throws<ArgumentException>(() => new TokenLayout(new TokenSpan(TokenKind.Text, 0, 0)));
        Assert.Throws<ArgumentException>(() => new TokenLayout(new TokenSpan(TokenKind.Image, 0, 12, 3, 3)));
    }
}
