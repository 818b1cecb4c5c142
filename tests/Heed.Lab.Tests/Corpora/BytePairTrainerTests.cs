using System.Text;
using Heed.Lab.Corpora;
using Xunit;

namespace Heed.Lab.Tests.Corpora;

public sealed class BytePairTrainerTests
{
    [Fact]
    public void The_most_frequent_pair_is_merged_first_and_ties_go_to_the_smaller_tokens()
    {
        // "low" five times, "lower" twice, "newest" six times, "widest" three times: the example of arXiv 1508.07909, figure 1.
        var text = string.Join('\n', Enumerable.Repeat("low", 5).Concat(Enumerable.Repeat("lower", 2)).Concat(Enumerable.Repeat("newest", 6)).Concat(Enumerable.Repeat("widest", 3)));

        var merges = BytePairTrainer.Merges(text, 3);

        // e-s and s-t both occur nine times.
        Assert.Equal((Byte('e'), Byte('s')), merges[0]);
        Assert.Equal((257, Byte('t')), merges[1]);
        Assert.Equal((Byte('l'), Byte('o')), merges[2]);
    }

    [Fact]
    public void Incremental_counts_give_the_merges_of_counting_anew()
    {
        var random = new Random(3);
        var text = string.Concat(Enumerable.Range(0, 3_000).Select(_ => "aabbcd ee"[random.Next(9)]));

        Assert.Equal(NaiveMerges(text, 60), BytePairTrainer.Merges(text, 60));
    }

    [Fact]
    public void A_text_with_too_few_pairs_gives_fewer_merges() => Assert.Single(BytePairTrainer.Merges("ab ab\nab", 50), merge => merge == (Byte('a'), Byte('b')));

    [Fact]
    public void The_file_lists_begin_token_bytes_and_merges_by_id()
    {
        var json = BytePairTrainer.Train("the cat and the hat and the bat", 262);

        var vocabulary = json["model"]!["vocab"]!.AsObject();
        Assert.Equal(262, vocabulary.Count);
        Assert.Equal(Enumerable.Range(0, 262), vocabulary.Select(entry => (int)entry.Value!));
        Assert.Equal(0, (int)vocabulary[BytePairTrainer.BeginToken]!);
        Assert.Equal(1 + 'A', (int)vocabulary["A"]!);
        Assert.Equal(1 + ' ', (int)vocabulary["\u0120"]!);
        Assert.Equal(1 + '\n', (int)vocabulary["\u010A"]!);
        Assert.Equal(1 + 0xAD, (int)vocabulary["\u0143"]!);
        Assert.Equal(5, json["model"]!["merges"]!.AsArray().Count);
        Assert.Equal(256, vocabulary.Skip(1).Take(256).Select(entry => entry.Key).Distinct().Count());
    }

    [Fact]
    public void A_vocabulary_without_room_for_the_bytes_is_refused() =>
        Assert.Contains("257", Assert.Throws<ArgumentException>(() => BytePairTrainer.Train("text", 256)).Message, StringComparison.Ordinal);

    private static int Byte(char character) => 1 + character;

    private static List<(int, int)> NaiveMerges(string text, int count)
    {
        var words = System.Text.RegularExpressions.Regex.Matches(text, BytePairTrainer.WordPattern).Select(match => Encoding.UTF8.GetBytes(match.Value).Select(value => 1 + value).ToList()).ToList();
        var merges = new List<(int, int)>();
        while (merges.Count < count)
        {
            var best = words.SelectMany(word => word.Zip(word.Skip(1))).GroupBy(pair => pair).OrderByDescending(group => group.Count()).ThenBy(group => group.Key).FirstOrDefault();
            if (best is null || best.Count() < 2)
            {
                break;
            }

            merges.Add(best.Key);
            foreach (var word in words)
            {
                for (var i = 0; i + 1 < word.Count; i++)
                {
                    if ((word[i], word[i + 1]) == best.Key)
                    {
                        word[i] = 256 + merges.Count;
                        word.RemoveAt(i + 1);
                    }
                }
            }
        }

        return merges;
    }
}
