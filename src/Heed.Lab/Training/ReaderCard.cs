using System.Globalization;
using Heed.Models.Decoders;

namespace Heed.Lab.Training;

/// <summary>The card of a trained reader: what it is made of and what it can do, with the numbers of its run.</summary>
internal static class ReaderCard
{
    public static string Write(ReaderRun run, DecoderConfiguration configuration, bool isKingJames)
    {
        var invariant = CultureInfo.InvariantCulture;
        var data = isKingJames
            ? $"""
               The King James Bible as printed by the program `bible` of the Debian package `bible-kjv`: {run.TrainingTexts + run.HeldOutTexts:N0} chapters, one verse a line, without references.
               The text is in the public domain; the package's copyright note says that the copyright "is expired since the translation was done in 1611". (In the United Kingdom printing it is a
               privilege of the Crown.) The program is under the GPL 2 and is no part of this model.
               """
            : $"The text `{run.Text}`, cut into {run.TrainingTexts + run.HeldOutTexts:N0} parts. Whoever ships this model answers for the right to use that text.";
        return string.Create(invariant, $"""
            # reader

            A small decoder that reads {(isKingJames ? "the English of the King James Bible" : $"like `{run.Text}`")}. It is trained from scratch by `heed train reader`, small enough to train on two
            processor cores in half an hour and to look into every head.

            | | |
            |---|---|
            | held-out bits per byte | **{run.HeldOutBitsPerByte:F3}** as shipped ({run.WeightType}), {run.HeldOutBitsPerByteBeforeRounding:F3} before rounding |
            | parameters | {run.Parameters:N0} |
            | trained on | {run.Tokens:N0} tokens ({(double)run.Tokens / run.TrainingTokens:F1} times the training text) in {run.Steps:N0} steps |
            | time | {run.Minutes:F0} minutes on {run.Threads} threads |
            | command | `{run.Command}` |

            ![loss](loss.png)

            ## Data

            {data}

            Every 20th {(isKingJames ? "chapter" : "part")} is held out whole: {run.HeldOutTexts:N0} texts, {run.HeldOutBytes:N0} bytes; {run.TrainingBytes:N0} bytes are trained on. The vocabulary is learned from the
            training texts alone. `page.txt` is one of the held-out texts ({run.Page}). {(isKingJames ? "Books of this text quote and retell each other, so that some held-out verses have near twins in training. " : "")}SHA-256 of all
            texts: `{run.TextSha256}`.

            ## Model

            Llama block: width {configuration.HiddenSize}, {configuration.Layers} layers, {configuration.Heads} query heads of {configuration.HeadWidth}, {configuration.KeyValueHeads} key/value heads, feed-forward width {configuration.IntermediateSize}, rotary positions,
            {configuration.VocabularySize:N0} byte-level byte-pair tokens (about {(double)run.TrainingBytes / run.TrainingTokens:F1} bytes each), output tied to the embedding, context {configuration.ContextLength:N0} tokens.{(run.Attention is null ? "" : $" It was trained and measured with `--attention {run.Attention}`: give the same to `heed generate` and `heed inspect`.")} Every text begins with `<|begin|>`. The folder is in the
            format of Hugging Face: `config.json`, `model.safetensors`, `tokenizer.json`.

            ## Training

            AdamW (beta2 {run.Plan.Beta2}, weight decay {run.Plan.WeightDecay} on matrices), learning rate {run.Plan.LearningRate} after {run.Plan.WarmupSteps} steps of warm-up, cosine to {run.Plan.FinalShare:P0} of it, gradients clipped to norm {run.Plan.ClipNorm}; {run.TokensPerStep:N0}
            tokens a step (one window where it is longer); windows of {string.Join(", ", run.Windows)}; seed {run.Seed}. The loss of every step, averaged into points, is in `training.json`.

            Bits per byte are measured on every held-out text on its own, from its first byte, with the weights as they are shipped; a text longer than the context is read in pieces.

            ## What it can and cannot do

            It continues text in the manner of what it read. It knows no facts, follows no instructions, and does not read other kinds of English, other languages or code well. It is meant for looking into
            attention, for tests and for demonstrations. What its heads do is for `heed inspect` to show; after so short a training, do not expect everything that heads of large decoders do (parking on the
            first token, induction).

            """).Replace("\r\n", "\n", StringComparison.Ordinal);
    }
}
