using TorchSharp;

namespace Heed.Explanations;

/// <summary>Superpixels of a picture of one channel: simple linear iterative clustering (SLIC, doi 10.1109/TPAMI.2012.120). Cells that are near each other and alike become one segment.</summary>
/// <remarks>Seeds on a regular grid of step s, about <c>sqrt(cells / count)</c>; a cell joins the seed within <c>2 s</c> along either axis with the smallest <c>d^2 / s^2 + (difference of values / compactness)^2</c>; means are
/// recomputed, ten times in all; then every segment becomes connected, and pieces smaller than half the mean size join a neighbour. So the number of segments may differ from the one asked for.
/// Left out: several channels, and an upper limit of a segment's size.</remarks>
public static class Slic
{
    private const int Rounds = 10;

    // The tails of a Gaussian beyond as many deviations are left out.
    private const double Truncation = 4;

    /// <summary>Segments a picture.</summary>
    /// <param name="image">Values <c>[H, W]</c>, finite; usually scaled to 0..1, which is what <paramref name="compactness"/> is measured against.</param>
    /// <param name="count">Number of segments asked for, from 1.</param>
    /// <param name="compactness">How much a difference of values weighs against distance: the smaller, the more the segments follow the values. Above 0.</param>
    /// <param name="sigma">Deviation of the Gaussian that smooths the picture first, in cells; 0: it is not smoothed.</param>
    /// <returns>Labels from 1 without gap, int64 <c>[H, W]</c>; each label's cells hang together by their sides.</returns>
    /// <exception cref="ArgumentException">The picture is not <c>[H, W]</c> or not finite, or a number is out of range.</exception>
    public static torch.Tensor Segment(torch.Tensor image, int count, double compactness = 0.1, double sigma = 1)
    {
        ArgumentNullException.ThrowIfNull(image);
        if (image.dim() != 2 || image.numel() == 0)
        {
            throw new ArgumentException($"The picture must be [height, width] and not empty, not {AttentionShape.Text(image)}.", nameof(image));
        }

        if (count < 1 || !(compactness > 0) || !(sigma >= 0) || double.IsInfinity(sigma))
        {
            throw new ArgumentException($"A segmentation needs at least 1 segment, a compactness above 0 and a sigma of 0 or more, not {count}, {compactness} and {sigma}.", nameof(count));
        }

        using var scope = torch.NewDisposeScope();
        var (height, width) = ((int)image.shape[0], (int)image.shape[1]);
        var values = image.detach().to(torch.ScalarType.Float64).cpu().contiguous().data<double>().ToArray();
        if (values.Any(value => !double.IsFinite(value)))
        {
            throw new ArgumentException("The picture must be finite, and it holds a value that is not.", nameof(image));
        }

        if (sigma > 0)
        {
            values = Smooth(Smooth(values, height, width, sigma, alongRows: true), height, width, sigma, alongRows: false);
        }

        var labels = Cluster(values, height, width, count, compactness, out var seeds);
        var connected = Connect(labels, height, width, (double)values.Length / seeds / 2);
        return torch.tensor(connected).reshape(height, width).MoveToOuterDisposeScope();
    }

    // A Gaussian along one axis; beyond an edge the picture is mirrored, the edge's cell included.
    private static double[] Smooth(double[] values, int height, int width, double sigma, bool alongRows)
    {
        var radius = (int)((Truncation * sigma) + 0.5);
        var kernel = Enumerable.Range(-radius, (2 * radius) + 1).Select(offset => Math.Exp(-0.5 * offset * offset / (sigma * sigma))).ToArray();
        var sum = kernel.Sum();
        var (length, lines) = alongRows ? (width, height) : (height, width);
        var (step, jump) = alongRows ? (1, width) : (width, 1);
        var smooth = new double[values.Length];
        for (var line = 0; line < lines; line++)
        {
            for (var at = 0; at < length; at++)
            {
                double total = 0;
                for (var offset = -radius; offset <= radius; offset++)
                {
                    var place = Mirror(at + offset, length);
                    total += kernel[offset + radius] * values[(line * jump) + (place * step)];
                }

                smooth[(line * jump) + (at * step)] = total / sum;
            }
        }

        return smooth;
    }

    private static int Mirror(int place, int length)
    {
        var period = 2 * length;
        place = ((place % period) + period) % period;
        return place < length ? place : period - 1 - place;
    }

    private static int[] Cluster(double[] values, int height, int width, int count, double compactness, out int seeds)
    {
        var (downwards, across) = Grid(height, width, Math.Min(count, values.Length));
        var (rows, columns) = (Axis(height, downwards), Axis(width, across));
        var step = Math.Max((double)height / downwards, (double)width / across);
        var (y, x, value) = (new double[rows.Length * columns.Length], new double[rows.Length * columns.Length], new double[rows.Length * columns.Length]);
        for (var seed = 0; seed < y.Length; seed++)
        {
            (y[seed], x[seed]) = (rows[seed / columns.Length], columns[seed % columns.Length]);
            value[seed] = values[((int)y[seed] * width) + (int)x[seed]];
        }

        seeds = y.Length;
        var labels = new int[values.Length];
        var nearest = new double[values.Length];
        for (var round = 0; round < Rounds; round++)
        {
            Array.Fill(nearest, double.PositiveInfinity);
            var changed = Assign(values, height, width, step, compactness, (y, x, value), labels, nearest);
            if (!changed && round > 0)
            {
                break;
            }

            Means(values, width, labels, (y, x, value));
        }

        return labels;
    }

    // As many seeds along the shorter axis as fit with an equal step along both, and along the longer one what is left: a long strip has a single row of them.
    private static (int Rows, int Columns) Grid(int height, int width, int count)
    {
        var (shorter, longer) = (Math.Min(height, width), Math.Max(height, width));
        var few = Math.Clamp((int)Math.Round(shorter / Math.Sqrt((double)height * width / count)), 1, shorter);
        var many = Math.Clamp((int)Math.Round((double)count / few), 1, longer);
        return height < width ? (few, many) : (many, few);
    }

    private static double[] Axis(int length, int number) => [.. Enumerable.Range(0, number).Select(index => Math.Floor((index + 0.5) * length / number))];

    private static bool Assign(double[] values, int height, int width, double step, double compactness, (double[] Y, double[] X, double[] Value) seeds, int[] labels, double[] nearest)
    {
        var changed = false;
        var (nearness, likeness, reach) = (1 / (step * step), 1 / (compactness * compactness), 2 * step);
        for (var seed = 0; seed < seeds.Y.Length; seed++)
        {
            var (top, bottom) = (Math.Max(0, (int)Math.Ceiling(seeds.Y[seed] - reach)), Math.Min(height - 1, (int)Math.Floor(seeds.Y[seed] + reach)));
            var (left, right) = (Math.Max(0, (int)Math.Ceiling(seeds.X[seed] - reach)), Math.Min(width - 1, (int)Math.Floor(seeds.X[seed] + reach)));
            for (var row = top; row <= bottom; row++)
            {
                var (dy, cell) = (row - seeds.Y[seed], (row * width) + left);
                for (var column = left; column <= right; column++, cell++)
                {
                    var (dx, dv) = (column - seeds.X[seed], values[cell] - seeds.Value[seed]);
                    var distance = (((dy * dy) + (dx * dx)) * nearness) + (dv * dv * likeness);
                    if (distance < nearest[cell])
                    {
                        changed |= labels[cell] != seed;
                        (nearest[cell], labels[cell]) = (distance, seed);
                    }
                }
            }
        }

        return changed;
    }

    private static void Means(double[] values, int width, int[] labels, (double[] Y, double[] X, double[] Value) seeds)
    {
        var counts = new int[seeds.Y.Length];
        var (y, x, value) = (new double[counts.Length], new double[counts.Length], new double[counts.Length]);
        for (var cell = 0; cell < labels.Length; cell++)
        {
            var label = labels[cell];
            counts[label]++;
            y[label] += cell / width;
            x[label] += cell % width;
            value[label] += values[cell];
        }

        for (var seed = 0; seed < counts.Length; seed++)
        {
            // A seed that lost all its cells stays where it is.
            if (counts[seed] > 0)
            {
                (seeds.Y[seed], seeds.X[seed], seeds.Value[seed]) = (y[seed] / counts[seed], x[seed] / counts[seed], value[seed] / counts[seed]);
            }
        }
    }

    // Every connected piece becomes a label of its own; a small one takes the label of the piece found before it that it touches.
    private static long[] Connect(int[] labels, int height, int width, double smallest)
    {
        var connected = new long[labels.Length];
        var piece = new List<int>();
        long next = 1;
        for (var start = 0; start < labels.Length; start++)
        {
            if (connected[start] != 0)
            {
                continue;
            }

            piece.Clear();
            piece.Add(start);
            connected[start] = next;
            long neighbour = 0;
            for (var at = 0; at < piece.Count; at++)
            {
                var (row, column) = (piece[at] / width, piece[at] % width);
                Visit(row - 1, column);
                Visit(row + 1, column);
                Visit(row, column - 1);
                Visit(row, column + 1);

                void Visit(int r, int c)
                {
                    if (r < 0 || r >= height || c < 0 || c >= width)
                    {
                        return;
                    }

                    var cell = (r * width) + c;
                    if (connected[cell] == 0 && labels[cell] == labels[start])
                    {
                        connected[cell] = next;
                        piece.Add(cell);
                    }
                    else if (connected[cell] != 0 && connected[cell] != next)
                    {
                        neighbour = connected[cell];
                    }
                }
            }

            if (piece.Count < smallest && neighbour != 0)
            {
                piece.ForEach(cell => connected[cell] = neighbour);
            }
            else
            {
                next++;
            }
        }

        return connected;
    }
}
