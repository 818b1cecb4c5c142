using Heed.Lab.Backcopy;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Backcopy;

public sealed class BigramBackcopyTests
{
    [Fact]
    public void The_table_that_ships_is_the_authors()
    {
        using var scope = NewDisposeScope();
        using var golden = new SafetensorsReader(Path.Combine(AppContext.BaseDirectory, "golden", "active-dormant-heads", "bb_sequence.safetensors"));
        var table = BigramTable.Shakespeare;

        Assert.Equal((67, 65), (table.Vocabulary, table.Begin));
        // Divisions of whole numbers, rounded once there and once here.
        Assert.True((golden.Read("in.cond") - table.Conditional()).abs().max().item<double>() <= double.BitIncrement(1) - 1);
        Assert.True((golden.Read("in.marginal") - table.Marginal()).abs().max().item<double>() <= double.BitIncrement(1) - 1);
        Assert.Equal([' ', 'e', 't'], new BigramBackcopy(table).Triggers.Select(trigger => table.Characters[trigger]));
    }

    [Fact]
    public void What_follows_a_trigger_is_what_the_rule_says()
    {
        using var scope = NewDisposeScope();
        foreach (var (rule, share) in new[] { (BackcopyRule.Copy, 1.0), (BackcopyRule.Copy, 0.4), (BackcopyRule.SkipTrigger, 1), (BackcopyRule.SkipTrigger, 0.4), (BackcopyRule.None, 1) })
        {
            var language = new BigramBackcopy(BigramTable.Shakespeare, 5, rule, share);
            var texts = language.Sample(300, 40, seed: 3);
            var tokens = texts.data<long>().ToArray();
            var mask = language.TriggerMask(texts).data<bool>().ToArray();
            Assert.Equal([300, 41], texts.shape);
            var (copies, triggers) = (0, 0);
            for (var i = 0; i < tokens.Length; i++)
            {
                Assert.Equal(i % 41 == 0, tokens[i] == language.Begin);
                Assert.Equal(rule != BackcopyRule.None && language.Triggers.Contains((int)tokens[i]), mask[i]);
                if (mask[i] && i % 41 is > 1 and < 40)
                {
                    triggers++;
                    copies += tokens[i + 1] == tokens[i - 1] ? 1 : 0;
                }

                if (rule == BackcopyRule.Copy && i % 41 == 1)
                {
                    Assert.False(mask[i]);
                }
            }

            if (rule == BackcopyRule.Copy)
            {
                // Letters repeat by chance, too: the share is a lower bound, within five standard errors.
                Assert.True(copies >= triggers * share - (5 * Math.Sqrt(triggers * share * (1 - share))), $"{copies} of {triggers}");
                Assert.True(share == 1 ? copies == triggers : copies < 0.6 * triggers);
            }
        }
    }

    [Fact]
    public void The_oracle_is_how_often_tokens_follow()
    {
        using var scope = NewDisposeScope();
        // Small enough that every history of two tokens is seen often.
        var conditional = tensor(new[] { 0.1, 0.6, 0.3, 0, 0.5, 0.25, 0.25, 0, 0.2, 0.2, 0.6, 0, 0.3, 0.3, 0.4, 0 }).view(4, 4);
        var marginal = tensor(new[] { 0.3, 0.3, 0.4, 0 });
        foreach (var (rule, share) in new[] { (BackcopyRule.Copy, 1.0), (BackcopyRule.Copy, 0.5), (BackcopyRule.SkipTrigger, 1), (BackcopyRule.SkipTrigger, 0.5), (BackcopyRule.None, 1) })
        {
            var language = new BigramBackcopy(conditional, marginal, begin: 3, triggers: 1, rule, share);
            Assert.Equal([2], language.Triggers);
            var texts = language.Sample(400, 60, seed: 4);
            var oracle = language.Oracle(texts);
            Assert.True((oracle.sum(-1) - 1).abs().max().item<double>() < 1e-12);
            var (tokens, expected) = (texts.data<long>().ToArray(), oracle.data<double>().ToArray());
            var seen = new Dictionary<(long Before, long Token), (double[] Counts, double[] Truth)>();
            for (var i = 0; i < tokens.Length; i++)
            {
                if (i % 61 is >= 2 and < 60)
                {
                    var entry = seen.TryGetValue((tokens[i - 1], tokens[i]), out var known) ? known : seen[(tokens[i - 1], tokens[i])] = (new double[4], expected[(i * 4)..((i + 1) * 4)]);
                    entry.Counts[tokens[i + 1]]++;
                }
            }

            foreach (var (counts, truth) in seen.Values)
            {
                var total = counts.Sum();
                Assert.All(counts.Zip(truth), pair => Assert.True(Math.Abs((pair.First / total) - pair.Second) <= 5 * Math.Sqrt(pair.Second * (1 - pair.Second) / total)));
            }
        }
    }

    [Fact]
    public void Draws_decide_the_text_and_their_number_is_bounded()
    {
        using var scope = NewDisposeScope();
        Assert.Equal(40, new BigramBackcopy(BigramTable.Shakespeare).Draws(40));
        foreach (var (rule, share) in new[] { (BackcopyRule.Copy, 1.0), (BackcopyRule.Copy, 0.5), (BackcopyRule.SkipTrigger, 1), (BackcopyRule.SkipTrigger, 0.5), (BackcopyRule.None, 1) })
        {
            var language = new BigramBackcopy(BigramTable.Shakespeare, 3, rule, share);
            var uniforms = rand([2, language.Draws(30)], dtype: float64);
            Assert.True(language.Sample(uniforms, 30).equal(language.Sample(uniforms, 30)).all().item<bool>());
            Assert.Contains($"{language.Draws(31)} draws", Assert.Throws<ArgumentException>(() => language.Sample(uniforms, 31)).Message);
        }

        // The first place whose cumulative share is above the number: a draw that falls on a boundary goes to the next token.
        var even = new BigramBackcopy(tensor(new[] { 0.5, 0.5, 0, 0.5, 0.5, 0, 0.5, 0.5, 0 }).view(3, 3), tensor(new[] { 0.5, 0.5, 0 }), begin: 2, triggers: 0);
        Assert.Equal([2, 0, 1, 1], even.Sample(tensor(new[] { 0.4999, 0.5, 0.9999 }).view(1, 3)).data<long>().ToArray());
    }

    [Fact]
    public void A_text_of_ones_own_is_counted()
    {
        using var scope = NewDisposeScope();
        var text = string.Concat(Enumerable.Repeat("abcdefghijklmnop", 3)) + "aa";
        var table = BigramTable.Of("letters", text);
        Assert.Equal(18, table.Vocabulary);
        var conditional = table.Conditional();
        // Behind a come b three times and a once.
        Assert.Equal(0.75, conditional[0, 1].item<double>(), 12);
        Assert.Equal(0.25, conditional[0, 0].item<double>(), 12);
        Assert.Equal(5 / 50.0, table.Marginal()[0].item<double>(), 12);
        Assert.Contains("3 different characters", Assert.Throws<ArgumentException>(() => BigramTable.Of("short", "abc")).Message);
    }

    [Fact]
    public void What_makes_no_language_is_refused_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        static void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        var (conditional, marginal) = (tensor(new[] { 0.5, 0.5, 0, 0.5, 0.5, 0, 0.5, 0.5, 0 }).view(3, 3), tensor(new[] { 0.5, 0.5, 0 }));
        Refused("behind token 1 sum to", () => _ = new BigramBackcopy(conditional + tensor(new[] { 0, 0.1, 0 }).view(3, 1), marginal, 2));
        Refused("none may be negative", () => _ = new BigramBackcopy(conditional - tensor(new[] { 0.6, 0, 0 }), marginal, 2));
        Refused("marginal probability is 0", () => _ = new BigramBackcopy(conditional, marginal, 1));
        Refused("behind token 0 is 0", () => _ = new BigramBackcopy(conditional.flip(1), marginal, 2));
        Refused("one of 0 to 2", () => _ = new BigramBackcopy(conditional, marginal, 3));
        Refused("0 to 1 can be triggers", () => _ = new BigramBackcopy(conditional, marginal, 2, triggers: 2));
        Refused("[V, V] beside [V]", () => _ = new BigramBackcopy(conditional.narrow(0, 0, 2), marginal, 2));
        Refused("0 to 1, not 1.5", () => _ = new BigramBackcopy(conditional, marginal, 2, 1, share: 1.5));
        var language = new BigramBackcopy(conditional, marginal, 2, 1);
        Refused("below 1, not 1", () => language.Sample(ones([1, 4], dtype: float64)));
        Refused("from 0 to 2", () => language.Oracle(full([1, 2], 3, dtype: int64)));
        Refused("from 0 to 2", () => language.TriggerMask(full([1, 2], -1, dtype: int64)));
    }
}
