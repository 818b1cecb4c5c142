using static TorchSharp.torch;

namespace Heed.Lab.Images;

/// <summary>Labelled pictures in memory, a byte a pixel; tensors of them are made when they are asked for.</summary>
public sealed class ImageData
{
    private readonly byte[] _pixels;
    private readonly byte[] _labels;

    // Where the pictures lie in the arrays, which subsets share.
    private readonly int[] _places;

    /// <summary>Makes a set.</summary>
    /// <param name="task">Size, channels and number of classes.</param>
    /// <param name="classNames">What the classes are called.</param>
    /// <param name="pixels">The pictures one after another, each <c>[channels, size, size]</c>, 0 to 255.</param>
    /// <param name="labels">The class of each, from 0.</param>
    /// <param name="scale">How pixels become a model's input; null: from -1 to 1.</param>
    /// <exception cref="ArgumentException">The arrays do not fit the task, or a label is no class.</exception>
    public ImageData(ImageTask task, IReadOnlyList<string> classNames, byte[] pixels, byte[] labels, PixelScale? scale = null)
        : this(task, classNames, pixels, labels, scale ?? new(0.5, 0.5), [.. Enumerable.Range(0, labels?.Length ?? 0)])
    {
        ArgumentNullException.ThrowIfNull(pixels);
        ArgumentNullException.ThrowIfNull(labels);
        ArgumentNullException.ThrowIfNull(classNames);
        if (pixels.LongLength != labels.LongLength * PixelsOf(task) || classNames.Count != task.Classes || labels.Any(label => label >= task.Classes) || !(Scale.Deviation > 0))
        {
            throw new ArgumentException(
                $"{pixels.LongLength:N0} pixels, {labels.Length:N0} labels and {classNames.Count} names do not make pictures of {task.Channels} x {task.Size} x {task.Size} in {task.Classes} classes.", nameof(pixels));
        }
    }

    private ImageData(ImageTask task, IReadOnlyList<string> classNames, byte[] pixels, byte[] labels, PixelScale scale, int[] places) =>
        (Task, ClassNames, _pixels, _labels, Scale, _places) = (task, classNames, pixels, labels, scale, places);

    /// <summary>Size, channels and number of classes.</summary>
    public ImageTask Task { get; }

    /// <summary>What the classes are called.</summary>
    public IReadOnlyList<string> ClassNames { get; }

    /// <summary>How pixels become a model's input.</summary>
    public PixelScale Scale { get; }

    /// <summary>Number of pictures.</summary>
    public int Count => _places.Length;

    /// <summary>The class of a picture.</summary>
    public int LabelOf(int index) => _labels[_places[index]];

    /// <summary>The first pictures of an order that a seed decides.</summary>
    /// <param name="count">How many, 1 to <see cref="Count"/>.</param>
    /// <param name="seed">The seed; null: as they lie.</param>
    /// <exception cref="ArgumentOutOfRangeException">There are not as many.</exception>
    public ImageData Take(int count, int? seed = null)
    {
        if (count < 1 || count > Count)
        {
            throw new ArgumentOutOfRangeException(nameof(count), count, $"There are {Count:N0} pictures to take from, so take 1 to {Count:N0}.");
        }

        var places = seed is { } value ? Shuffled(_places, value) : _places;
        return new(Task, ClassNames, _pixels, _labels, Scale, places[..count]);
    }

    /// <summary>The pictures of some classes, which become the classes 0, 1, ... in the order given.</summary>
    /// <param name="classes">The classes, each once.</param>
    /// <exception cref="ArgumentException">There is no such class, or one is given twice.</exception>
    public ImageData OfClasses(params IReadOnlyList<int> classes)
    {
        ArgumentNullException.ThrowIfNull(classes);
        if (classes.Count == 0 || classes.Distinct().Count() != classes.Count || classes.Any(label => label < 0 || label >= Task.Classes))
        {
            throw new ArgumentException($"Classes are different numbers from 0 to {Task.Classes - 1}, not {string.Join(", ", classes)}.", nameof(classes));
        }

        int[] places = [.. _places.Where(place => classes.Contains(_labels[place]))];
        var size = PixelsOf(Task);
        var pixels = new byte[places.LongLength * size];
        for (var i = 0; i < places.Length; i++)
        {
            _pixels.AsSpan((int)(places[i] * size), (int)size).CopyTo(pixels.AsSpan((int)(i * size)));
        }

        byte[] labels = [.. places.Select(place => (byte)classes.ToList().IndexOf(_labels[place]))];
        return new(Task with { Classes = classes.Count }, [.. classes.Select(label => ClassNames[label])], pixels, labels, Scale);
    }

    /// <summary>The pixels of a picture, <c>[channels, size, size]</c>, 0 to 255.</summary>
    public ReadOnlySpan<byte> PixelsAt(int index) => _pixels.AsSpan((int)(_places[index] * PixelsOf(Task)), (int)PixelsOf(Task));

    /// <summary>Pictures as a model reads them.</summary>
    /// <param name="indices">Which.</param>
    /// <returns>Pictures float32 <c>[B, channels, size, size]</c>, normalised, and labels int64 <c>[B]</c>.</returns>
    public (Tensor Images, Tensor Labels) At(IReadOnlyList<int> indices)
    {
        ArgumentNullException.ThrowIfNull(indices);
        using var scope = NewDisposeScope();
        var size = (int)PixelsOf(Task);
        var bytes = new byte[indices.Count * size];
        var labels = new long[indices.Count];
        for (var i = 0; i < indices.Count; i++)
        {
            PixelsAt(indices[i]).CopyTo(bytes.AsSpan(i * size));
            labels[i] = LabelOf(indices[i]);
        }

        return (Scale.Apply(tensor(bytes).view(indices.Count, Task.Channels, Task.Size, Task.Size)).MoveToOuterDisposeScope(), tensor(labels).MoveToOuterDisposeScope());
    }

    /// <summary>Consecutive pictures.</summary>
    /// <param name="first">The first one.</param>
    /// <param name="count">How many.</param>
    /// <inheritdoc cref="At" path="/returns"/>
    public (Tensor Images, Tensor Labels) Range(int first, int count) => At([.. Enumerable.Range(first, count)]);

    /// <summary>Batches for training: every epoch all pictures once (but for a rest smaller than a batch) in an order of its own.</summary>
    /// <param name="size">Pictures of a batch; at most <see cref="Count"/> are used.</param>
    /// <param name="seed">Decides the orders.</param>
    /// <returns>The batch of a step, counted from 0, as <see cref="At"/> gives it: the same one whenever it is asked for.</returns>
    public Func<long, (Tensor Images, Tensor Labels)> Batches(int size, int seed)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(size, 1);
        size = Math.Min(size, Count);
        var perEpoch = Count / size;
        var (epoch, order) = (-1L, Array.Empty<int>());
        return step =>
        {
            if (step / perEpoch != epoch)
            {
                epoch = step / perEpoch;
                order = Shuffled([.. Enumerable.Range(0, Count)], unchecked((int)((seed * 1_000_003L) + epoch)));
            }

            return At(new ArraySegment<int>(order, (int)(step % perEpoch) * size, size));
        };
    }

    private static long PixelsOf(ImageTask task) => (long)task.Channels * task.Size * task.Size;

    private static int[] Shuffled(int[] items, int seed)
    {
        int[] shuffled = [.. items];
#pragma warning disable CA5394 // A repeatable order is the purpose; nothing is secret.
        new Random(seed).Shuffle(shuffled);
#pragma warning restore CA5394
        return shuffled;
    }
}
