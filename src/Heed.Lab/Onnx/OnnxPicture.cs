using Heed.Onnx;
using SkiaSharp;

namespace Heed.Lab.Onnx;

/// <summary>How bytes of a picture become the numbers that a model reads.</summary>
/// <param name="Mean">What is taken from each channel, of 0 to 1, in the order red, green, blue.</param>
/// <param name="Deviation">What each channel is then divided by.</param>
/// <param name="BlueFirst">Whether blue comes first, as OpenCV's users train.</param>
public sealed record OnnxPixels(IReadOnlyList<float> Mean, IReadOnlyList<float> Deviation, bool BlueFirst)
{
    /// <summary>Names for the usual ways; <c>:bgr</c> behind one puts blue first.</summary>
    public const string Names = "half (-1 to 1), unit (0 to 1), imagenet; with :bgr blue first";

    /// <summary>Reads a name.</summary>
    /// <exception cref="ArgumentException">There is no such way.</exception>
    public static OnnxPixels Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        var parts = text.Split(':');
        var blue = parts.Length == 2 && parts[1] == "bgr";
        return parts.Length == 1 || blue
            ? parts[0] switch
            {
                "half" => new([0.5f, 0.5f, 0.5f], [0.5f, 0.5f, 0.5f], blue),
                "unit" => new([0, 0, 0], [1, 1, 1], blue),
                "imagenet" => new([0.485f, 0.456f, 0.406f], [0.229f, 0.224f, 0.225f], blue),
                _ => throw new ArgumentException($"There is no way '{text}' to read pixels; there are: {Names}."),
            }
            : throw new ArgumentException($"There is no way '{text}' to read pixels; there are: {Names}.");
    }
}

/// <summary>A picture as a model reads it.</summary>
/// <param name="Tensor">What the model is given.</param>
/// <param name="Png">The same picture for people, of the model's size.</param>
/// <param name="Width">Its width in pixels, without what was added at the right.</param>
/// <param name="PaddedWidth">Its width as the model sees it.</param>
/// <param name="Height">Its height in pixels.</param>
/// <param name="SourceWidth">Width of the file's picture, in pixels.</param>
public sealed record OnnxPicture(OnnxTensor Tensor, byte[] Png, int Width, int PaddedWidth, int Height, int SourceWidth)
{
    private const int MostPixelsOfSide = 16384;
    private const int MostLineWidth = 8192;

    /// <summary>Sides of pictures where a model leaves them free.</summary>
    private const int UsualSide = 224;

    /// <summary>Whether an input takes pictures: four axes, one of them of one or three channels.</summary>
    public static bool Fits(OnnxPort input) => input?.Shape is [_, 1 or 3 or null, _, _] or [_, _, _, 1 or 3] && input.Type is OnnxElementType.Float32 or OnnxElementType.Float16 or OnnxElementType.Float64 or OnnxElementType.UInt8;

    /// <summary>Whether an input takes lines of text: a given height, any width.</summary>
    public static bool IsLine(OnnxPort input) => Fits(input) && input.Shape is [_, 1 or 3, <= 128, null];

    /// <summary>Reads a picture for an input.</summary>
    /// <param name="path">A PNG, JPEG, WebP, GIF or BMP file.</param>
    /// <param name="input">The input. Where it leaves its width free (a line of text), the picture keeps its proportions; otherwise it is stretched to the input's size.</param>
    /// <param name="pixels">How bytes become numbers.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">It is no picture, or too large.</exception>
    public static OnnxPicture Read(string path, OnnxPort input, OnnxPixels pixels)
    {
        ArgumentNullException.ThrowIfNull(input);
        ArgumentNullException.ThrowIfNull(pixels);
        using var decoded = Decode(path);
        var channelsLast = input.Shape is [_, not (1 or 3), _, 1 or 3];
        long? channels = channelsLast ? input.Shape![3] : input.Shape![1];
        var (high, wide) = channelsLast ? (input.Shape[1], input.Shape[2]) : (input.Shape[2], input.Shape[3]);
        var height = (int)(high ?? UsualSide);
        var width = IsLine(input) ? (int)Math.Clamp(Math.Round((double)decoded.Width * height / decoded.Height), 1, MostLineWidth) : (int)(wide ?? UsualSide);
        // Networks halve a line's width several times; what is added is empty.
        var padded = IsLine(input) ? (width + 7) / 8 * 8 : width;
        using var scaled = new SKBitmap(new SKImageInfo(padded, height, SKColorType.Rgba8888, SKAlphaType.Opaque));
        using (var canvas = new SKCanvas(scaled))
        using (var image = SKImage.FromBitmap(decoded))
        {
            canvas.Clear(new SKColor(128, 128, 128));
            using var white = new SKPaint { Color = SKColors.White };
            canvas.DrawRect(SKRect.Create(width, height), white);
            canvas.DrawImage(image, SKRect.Create(decoded.Width, decoded.Height), SKRect.Create(width, height), new SKSamplingOptions(SKFilterMode.Linear, SKMipmapMode.Linear));
        }

        var count = (int)(channels ?? 3);
        var values = new float[count * height * padded];
        for (var y = 0; y < height; y++)
        {
            for (var x = 0; x < padded; x++)
            {
                var colour = scaled.GetPixel(x, y);
                float[] parts = pixels.BlueFirst ? [colour.Blue, colour.Green, colour.Red] : [colour.Red, colour.Green, colour.Blue];
                parts = count == 1 ? [(0.299f * colour.Red) + (0.587f * colour.Green) + (0.114f * colour.Blue)] : parts;
                for (var channel = 0; channel < count; channel++)
                {
                    var of = pixels.BlueFirst && count == 3 ? 2 - channel : channel;
                    var value = x >= width ? 0 : ((parts[channel] / 255) - pixels.Mean[of]) / pixels.Deviation[of];
                    values[channelsLast ? (((y * padded) + x) * count) + channel : (((channel * height) + y) * padded) + x] = input.Type == OnnxElementType.UInt8 ? parts[channel] : value;
                }
            }
        }

        using var png = scaled.Encode(SKEncodedImageFormat.Png, 100);
        return new(OnnxTensor.Of(values, channelsLast ? [1, height, padded, count] : [1, count, height, padded]), png.ToArray(), width, padded, height, decoded.Width);
    }

    private static SKBitmap Decode(string path)
    {
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"There is no picture '{path}'.", path);
        }

        using var stream = File.OpenRead(path);
        using var codec = SKCodec.Create(stream) ?? throw new InvalidDataException($"'{path}' is not a picture that can be read: give a PNG, JPEG, WebP, GIF or BMP file.");
        if (codec.Info.Width is < 1 or > MostPixelsOfSide || codec.Info.Height is < 1 or > MostPixelsOfSide)
        {
            throw new InvalidDataException($"'{path}' has {codec.Info.Width} x {codec.Info.Height} pixels, and at most {MostPixelsOfSide} a side are read.");
        }

        var decoded = new SKBitmap(new SKImageInfo(codec.Info.Width, codec.Info.Height, SKColorType.Rgba8888, SKAlphaType.Premul));
        if (codec.GetPixels(decoded.Info, decoded.GetPixels()) is SKCodecResult.Success)
        {
            return decoded;
        }

        decoded.Dispose();
        throw new InvalidDataException($"'{path}' is a damaged picture.");
    }
}
