using Heed.Lab.Reproductions;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Reproductions;

public sealed class KeyValueTaskTests
{
    [Theory]
    [InlineData(3)]
    [InlineData(KeyValueTask.Keys)]
    public void Every_question_is_answered_by_the_pair_with_its_key(int pairs)
    {
        using var scope = NewDisposeScope();
        var (tokens, answers) = KeyValueTask.Draw(20, pairs, seed: 3);
        var (length, asked) = (KeyValueTask.Length(pairs), KeyValueTask.Asked(pairs));
        Assert.Equal([20, length], tokens.shape);
        var (text, right) = (tokens.data<long>().ToArray(), answers.data<long>().ToArray());
        for (var prompt = 0; prompt < 20; prompt++)
        {
            var at = text[(prompt * length)..((prompt + 1) * length)];
            Assert.All(at, token => Assert.InRange(token, 0, KeyValueTask.Vocabulary - 1));
            var values = Enumerable.Range(0, pairs).ToDictionary(pair => at[1 + (3 * pair)], pair => at[2 + (3 * pair)]);
            Assert.Equal(pairs, values.Count);
            for (var question = 0; question < KeyValueTask.Questions; question++)
            {
                Assert.Equal(values[at[asked[question]]], right[(prompt * KeyValueTask.Questions) + question]);
                Assert.Equal(values[at[asked[question]]], at[asked[question] + 1]);
            }
        }

        Assert.True(KeyValueTask.Draw(20, pairs, seed: 3).Tokens.equal(tokens).all().item<bool>());
    }
}
