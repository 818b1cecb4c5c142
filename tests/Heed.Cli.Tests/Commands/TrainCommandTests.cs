using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed class TrainCommandTests
{
    [Fact]
    public async Task Without_a_recipe_the_recipes_are_listed()
    {
        var result = await Shell.RunAsync("train");

        Assert.Equal(0, result.Code);
        Assert.StartsWith("reader  ", result.Out, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(1, "there are: reader", "painter")]
    [InlineData(1, "There is no file 'none.txt'", "reader", "--text", "none.txt", "--out", "none")]
    [InlineData(2, "give one of them", "reader", "--steps", "5", "--minutes", "1")]
    [InlineData(2, "--steps must be at least 1", "reader", "--steps", "0")]
    public async Task Mistakes_are_one_sentence(int code, string sentence, params string[] arguments)
    {
        var result = await Shell.RunAsync(["train", .. arguments]);

        Assert.Equal(code, result.Code);
        Assert.Contains(sentence, result.Error, StringComparison.Ordinal);
        Assert.False(Directory.Exists("none"));
    }
}
