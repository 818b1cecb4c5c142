using SkiaSharp;

namespace Heed.Lab.Images;

/// <summary>Reads pictures from files as models read them.</summary>
public static class PictureFile
{
    private const int MostPixelsOfSide = 16384;

    /// <summary>The pixels of a picture: its middle square, scaled to the task's size; brightness where the task has one channel.</summary>
    /// <param name="path">A PNG, JPEG, WebP, GIF or BMP file.</param>
    /// <param name="task">Size and channels (1 or 3).</param>
    /// <returns><c>[channels, size, size]</c>, 0 to 255.</returns>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">It is no picture, or too large.</exception>
    /// <exception cref="ArgumentException">The task has neither one channel nor three.</exception>
    public static byte[] Read(string path, ImageTask task)
    {
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"There is no picture '{path}'.", path);
        }

        if (task.Channels is not (1 or 3))
        {
            throw new ArgumentException($"Pictures of a file have one channel or three, and the model reads {task.Channels}.", nameof(task));
        }

        using var stream = File.OpenRead(path);
        using var codec = SKCodec.Create(stream) ?? throw new InvalidDataException($"'{path}' is not a picture that can be read: give a PNG, JPEG, WebP, GIF or BMP file.");
        if (codec.Info.Width > MostPixelsOfSide || codec.Info.Height > MostPixelsOfSide || codec.Info.Width < 1 || codec.Info.Height < 1)
        {
            throw new InvalidDataException($"'{path}' has {codec.Info.Width} x {codec.Info.Height} pixels, and at most {MostPixelsOfSide} a side are read.");
        }

        using var decoded = new SKBitmap(new SKImageInfo(codec.Info.Width, codec.Info.Height, SKColorType.Rgba8888, SKAlphaType.Premul));
        if (codec.GetPixels(decoded.Info, decoded.GetPixels()) is not SKCodecResult.Success)
        {
            throw new InvalidDataException($"'{path}' is a damaged picture.");
        }

        using var scaled = new SKBitmap(new SKImageInfo(task.Size, task.Size, SKColorType.Rgba8888, SKAlphaType.Premul));
        using var image = SKImage.FromBitmap(decoded);
        using (var canvas = new SKCanvas(scaled))
        {
            var side = Math.Min(decoded.Width, decoded.Height);
            var middle = SKRect.Create((decoded.Width - side) / 2f, (decoded.Height - side) / 2f, side, side);
            canvas.Clear(SKColors.Black);
            canvas.DrawImage(image, middle, SKRect.Create(task.Size, task.Size), new SKSamplingOptions(SKFilterMode.Linear, SKMipmapMode.Linear));
        }

        var pixels = new byte[task.Channels * task.Size * task.Size];
        var area = task.Size * task.Size;
        for (var i = 0; i < area; i++)
        {
            var colour = scaled.GetPixel(i % task.Size, i / task.Size);
            if (task.Channels == 1)
            {
                pixels[i] = (byte)Math.Round((0.299 * colour.Red) + (0.587 * colour.Green) + (0.114 * colour.Blue));
            }
            else
            {
                (pixels[i], pixels[area + i], pixels[(2 * area) + i]) = (colour.Red, colour.Green, colour.Blue);
            }
        }

        return pixels;
    }

    /// <summary>A picture as PNG.</summary>
    /// <param name="pixels"><c>[channels, size, size]</c>, 0 to 255.</param>
    /// <param name="task">Size and channels.</param>
    public static byte[] Png(ReadOnlySpan<byte> pixels, ImageTask task)
    {
        using var bitmap = new SKBitmap(new SKImageInfo(task.Size, task.Size, SKColorType.Rgba8888, SKAlphaType.Opaque));
        var area = task.Size * task.Size;
        var (green, blue) = task.Channels >= 3 ? (area, 2 * area) : (0, 0);
        for (var i = 0; i < area; i++)
        {
            bitmap.SetPixel(i % task.Size, i / task.Size, new SKColor(pixels[i], pixels[green + i], pixels[blue + i]));
        }

        using var data = bitmap.Encode(SKEncodedImageFormat.Png, 100);
        return data.ToArray();
    }
}
