using Heed.Explanations;
using TorchSharp;

namespace Heed.Probes;

/// <summary>Reads times off cross-attention: which frame a token, or the end of a block of tokens (a word, a subtitle), belongs to.</summary>
/// <remarks>Two methods: blocks by the largest attended area (SBAAM, "speech block boundaries by area of attention maximisation", ACL 2024), and dynamic time warping after a median filter, as Whisper's timestamps are made.
/// Attention is standardised over the tokens, frame by frame, first. Frames are those of the encoder, counted from 0.</remarks>
public static class BlockAligner
{
    /// <summary>What attention below the mean of its frame counts in <see cref="Sbaam"/>.</summary>
    public const double DefaultNegative = -0.01;

    /// <summary>Width of the median filter of <see cref="Dtw"/>, in frames.</summary>
    public const int DefaultMedianWidth = 7;

    /// <summary>Attention as <see cref="Sbaam"/> reads it: standardised over the tokens, what is below 0 replaced by a small negative number, so that useless area costs a little.</summary>
    /// <param name="attention"><c>[I, T']</c>.</param>
    /// <param name="negative">That number, at most 0.</param>
    /// <exception cref="ArgumentException">The attention has another shape, or the number is above 0.</exception>
    public static torch.Tensor NormalizeForSbaam(torch.Tensor attention, double negative = DefaultNegative)
    {
        if (!(negative <= 0))
        {
            throw new ArgumentException($"Attention below its mean counts 0 or less, not {negative}.", nameof(negative));
        }

        using var scope = torch.NewDisposeScope();
        using Scalar nothing = 0, small = negative;
        var standard = AttentionSaliency.StandardizeOverTokens(attention);
        return standard.masked_fill(standard.lt(nothing), small).MoveToOuterDisposeScope();
    }

    /// <summary>Attention as <see cref="Dtw"/> reads it: standardised over the tokens, then a running median over the frames, mirrored at the ends without repeating them. Where there are no more frames than half the width, it is not filtered.</summary>
    /// <param name="attention"><c>[I, T']</c>.</param>
    /// <param name="medianWidth">Frames of the median, an odd number.</param>
    /// <exception cref="ArgumentException">The attention has another shape, or the width is even or below 1.</exception>
    public static torch.Tensor NormalizeForDtw(torch.Tensor attention, int medianWidth = DefaultMedianWidth)
    {
        if (medianWidth < 1 || medianWidth % 2 == 0)
        {
            throw new ArgumentException($"The median filter has an odd width, not {medianWidth}: give for example 7.", nameof(medianWidth));
        }

        using var scope = torch.NewDisposeScope();
        var standard = AttentionSaliency.StandardizeOverTokens(attention);
        var (half, tokens, frames) = (medianWidth / 2, standard.shape[0], standard.shape[1]);
        if (frames <= half)
        {
            return standard.MoveToOuterDisposeScope();
        }

        long[] places = [.. Enumerable.Range(-half, (int)frames + (2 * half)).Select(place => Math.Abs(place)).Select(place => (long)(place < frames ? place : (2 * (frames - 1)) - place))];
        var windows = standard.index_select(1, torch.tensor(places, device: standard.device)).unfold(1, medianWidth, 1);
        return windows.sort(-1).Values.select(-1, half).contiguous().view(tokens, frames).MoveToOuterDisposeScope();
    }

    /// <summary>Where blocks of tokens end, by the largest attended area: boundary by boundary, the frame at which what the block attends to before it and what the rest attends to after it is the most.</summary>
    /// <param name="attention">Weights <c>[I, T']</c>, usually the mean of several heads.</param>
    /// <param name="boundaries">The last token of each block, ascending.</param>
    /// <param name="forceEnd">Whether the last block ends with the audio, whatever its attention.</param>
    /// <param name="negative">What attention below its mean counts.</param>
    /// <returns>The first frame after each block: ascending, at most T'. Where there are as many blocks as frames, the first is 0, as published.</returns>
    /// <exception cref="ArgumentException">Boundaries are not ascending tokens, there are more of them than frames, or the attention has another shape.</exception>
    public static IReadOnlyList<long> Sbaam(torch.Tensor attention, IReadOnlyList<int> boundaries, bool forceEnd = true, double negative = DefaultNegative)
    {
        Check(attention, boundaries);
        using var scope = torch.NewDisposeScope();
        var (tokens, frames) = ((int)attention.shape[0], (int)attention.shape[1]);
        var weights = Elements(NormalizeForSbaam(attention, negative));
        double Column(int first, int end, int frame)
        {
            double sum = 0;
            for (var token = first; token < end; token++)
            {
                sum += weights[(token * frames) + frame];
            }

            return sum;
        }

        var found = new long[boundaries.Count];
        var (firstToken, firstFrame) = (0, 0);
        for (var block = 0; block < boundaries.Count; block++)
        {
            var (end, last) = (boundaries[block] + 1, frames - (boundaries.Count - block));
            var best = last;
            if (firstFrame + 1 < last)
            {
                // Moving the split by a frame moves that frame's column from the rest to the block.
                double score = Column(firstToken, end, firstFrame), highest = double.NegativeInfinity;
                for (var frame = firstFrame + 1; frame < last; frame++)
                {
                    score += frame == firstFrame + 1 ? Enumerable.Range(frame, last - frame).Sum(rest => Column(end, tokens, rest)) : Column(firstToken, end, frame - 1) - Column(end, tokens, frame - 1);
                    if (score > highest)
                    {
                        (highest, best) = (score, frame);
                    }
                }
            }

            found[block] = best;

            // The boundary's own row counts again in the next block, as published.
            (firstToken, firstFrame) = (boundaries[block], best);
        }

        if (forceEnd && found.Length > 0)
        {
            found[^1] = frames;
        }

        return found;
    }

    /// <summary>Where blocks of tokens end, by dynamic time warping: the frame at which the path reaches each boundary's token, with at least a frame for each block.</summary>
    /// <param name="attention">Weights <c>[I, T']</c>.</param>
    /// <param name="boundaries">The last token of each block, ascending.</param>
    /// <param name="medianWidth">Frames of the median filter, an odd number.</param>
    /// <returns>The frames, as many as boundaries.</returns>
    /// <remarks>As the published code has it, also where it surprises: a block that ends with token 0 puts frames before the first token, which shifts what is reported by one token.</remarks>
    /// <exception cref="ArgumentException">Boundaries are not ascending tokens, there are more of them than frames, the width is even, or the attention has another shape.</exception>
    public static IReadOnlyList<long> Dtw(torch.Tensor attention, IReadOnlyList<int> boundaries, int medianWidth = DefaultMedianWidth)
    {
        Check(attention, boundaries);
        var reached = Warp(attention, boundaries, medianWidth);
        return [.. boundaries.Select(boundary => reached[boundary])];
    }

    /// <summary>The frame at which the path of dynamic time warping first reaches each token: where the token starts.</summary>
    /// <param name="attention">Weights <c>[I, T']</c>.</param>
    /// <param name="medianWidth">Frames of the median filter, an odd number.</param>
    /// <returns>As many frames as tokens, not descending.</returns>
    /// <exception cref="ArgumentException">The width is even, or the attention has another shape.</exception>
    public static IReadOnlyList<long> DtwStarts(torch.Tensor attention, int medianWidth = DefaultMedianWidth)
    {
        Check(attention, []);
        return Warp(attention, [], medianWidth);
    }

    private static void Check(torch.Tensor attention, IReadOnlyList<int> boundaries)
    {
        ArgumentNullException.ThrowIfNull(attention);
        ArgumentNullException.ThrowIfNull(boundaries);
        if (attention.dim() != 2 || attention.numel() == 0)
        {
            throw new ArgumentException($"Attention must be [tokens, frames] and not empty, not {AttentionShape.Text(attention)}.", nameof(attention));
        }

        for (var i = 0; i < boundaries.Count; i++)
        {
            if (boundaries[i] < 0 || boundaries[i] >= attention.shape[0] || (i > 0 && boundaries[i] <= boundaries[i - 1]))
            {
                throw new ArgumentException($"Boundaries are ascending tokens from 0 to {attention.shape[0] - 1}, and {string.Join(", ", boundaries)} are not.", nameof(boundaries));
            }
        }

        if (boundaries.Count > attention.shape[1])
        {
            throw new ArgumentException($"{boundaries.Count} blocks do not fit {attention.shape[1]} frames: every block takes one at least.", nameof(boundaries));
        }
    }

    // The frames at which the path enters each of its tokens, in the path's order.
    private static List<long> Warp(torch.Tensor attention, IReadOnlyList<int> boundaries, int medianWidth)
    {
        const byte diagonal = 0, up = 1, left = 2;
        using var scope = torch.NewDisposeScope();
        var (tokens, frames) = ((int)attention.shape[0], (int)attention.shape[1]);
        var weights = Elements(NormalizeForDtw(attention, medianWidth));
        var stride = frames + 1;
        var trace = new byte[(tokens + 1) * stride];

        // Single precision, as published: near ties depend on it.
        var (before, now) = (new float[tokens + 1], new float[tokens + 1]);
        Array.Fill(before, float.PositiveInfinity);
        before[0] = 0;
        for (var frame = 1; frame <= frames; frame++)
        {
            now[0] = float.PositiveInfinity;
            for (var token = 1; token <= tokens; token++)
            {
                var (both, textOnly, timeOnly) = (before[token - 1], now[token - 1], before[token]);
                var (cost, move) = both < textOnly && both < timeOnly ? (both, diagonal) : textOnly < both && textOnly < timeOnly ? (textOnly, up) : (timeOnly, left);
                now[token] = (float)(cost - weights[((token - 1) * frames) + frame - 1]);
                trace[(token * stride) + frame] = move;
            }

            (before, now) = (now, before);
        }

        for (var token = 2; token <= tokens; token++)
        {
            trace[(token * stride) + 1] = up;
        }

        for (var block = 0; block < boundaries.Count; block++)
        {
            for (var token = boundaries[block] + 1; token <= tokens && block + 2 <= frames; token++)
            {
                trace[(token * stride) + block + 2] = up;
            }

            // All diagonal, whose number is 0.
            trace.AsSpan((boundaries[block] + 1) * stride, stride).Clear();
        }

        trace.AsSpan(0, stride).Fill(left);
        for (var token = 0; token <= tokens; token++)
        {
            trace[token * stride] = up;
        }

        var path = new List<(int Token, int Frame)>();
        for (var (token, frame) = (tokens, frames); token > 0 || frame > 0;)
        {
            path.Add((token - 1, frame - 1));
            var move = trace[(token * stride) + frame];
            (token, frame) = (move == left ? token : token - 1, move == up ? frame : frame - 1);
        }

        path.Reverse();
        return [.. path.Where((place, index) => index == 0 || place.Token != path[index - 1].Token).Select(place => (long)place.Frame)];
    }

    private static double[] Elements(torch.Tensor map) => map.detach().to(torch.ScalarType.Float64).cpu().contiguous().data<double>().ToArray();
}
