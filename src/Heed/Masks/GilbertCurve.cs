namespace Heed.Masks;

/// <summary>A space-filling curve through a box of any size (the generalised Hilbert curve), so that consecutive tokens lie close together in space and time.</summary>
/// <remarks>The box is cut recursively, in halves of even length where that can be, along one, two or three of its axes; the parts are walked in an order whose ends meet. Where sides are even, every step goes to a neighbour; where they are odd, single steps go further.</remarks>
public static class GilbertCurve
{
    /// <summary>The order of a grid's tokens along the curve.</summary>
    /// <param name="width">Columns, from 1; token index <c>x + width * (y + height * z)</c>.</param>
    /// <param name="height">Rows, from 1.</param>
    /// <param name="depth">Frames, from 1.</param>
    /// <param name="textBefore">Text tokens before the grid's: they are moved to the end.</param>
    /// <param name="textAfter">Text tokens after the grid's: they stay there.</param>
    /// <exception cref="ArgumentException">A length is less than 1, or a number of text tokens negative.</exception>
    public static TokenOrder Order(int width, int height, int depth, int textBefore = 0, int textAfter = 0)
    {
        if (width < 1 || height < 1 || depth < 1 || textBefore < 0 || textAfter < 0)
        {
            throw new ArgumentException(
                $"A curve goes through a grid of at least 1 x 1 x 1 with text of 0 tokens or more; {width} x {height} x {depth} with {textBefore} and {textAfter} were given.", nameof(width));
        }

        var tokens = checked((long)width * height * depth);
        var order = new List<long>(checked((int)(tokens + textBefore + textAfter)));
        var (x, y, z) = (new Step(width, 0, 0), new Step(0, height, 0), new Step(0, 0, depth));
        void Visit(Step place) => order.Add(textBefore + place.X + ((long)width * (place.Y + ((long)height * place.Z))));

        // The longest axis comes first: the curve runs along it.
        if (width >= height && width >= depth)
        {
            Walk(default, x, y, z, Visit);
        }
        else if (height >= width && height >= depth)
        {
            Walk(default, y, x, z, Visit);
        }
        else
        {
            Walk(default, z, x, y, Visit);
        }

        for (var text = 0; text < textBefore; text++)
        {
            order.Add(text);
        }

        for (var text = 0; text < textAfter; text++)
        {
            order.Add(textBefore + tokens + text);
        }

        return new([.. order], tokens + textBefore + textAfter);
    }

    /// <summary>The order of a plane's tokens along the two-dimensional curve. It differs from <see cref="Order"/> with one frame where sides halve to odd lengths: in a plane only the side across is rounded to even steps.</summary>
    /// <param name="width">Columns, from 1; token index <c>x + width * y</c>.</param>
    /// <param name="height">Rows, from 1.</param>
    /// <exception cref="ArgumentException">A length is less than 1.</exception>
    public static TokenOrder PlaneOrder(int width, int height)
    {
        if (width < 1 || height < 1)
        {
            throw new ArgumentException($"A curve goes through a plane of at least 1 x 1; {width} x {height} were given.", nameof(width));
        }

        var tokens = checked((long)width * height);
        var order = new List<long>(checked((int)tokens));
        var (x, y) = (new Step(width, 0, 0), new Step(0, height, 0));
        WalkPlane(default, width >= height ? x : y, width >= height ? y : x, place => order.Add(place.X + ((long)width * place.Y)));
        return new([.. order], tokens);
    }

    private static void WalkPlane(Step at, Step first, Step second, Action<Step> visit)
    {
        var (along, across) = (first.Unit, second.Unit);
        if (first.Length == 1 || second.Length == 1)
        {
            var (step, count) = second.Length == 1 ? (along, first.Length) : (across, second.Length);
            for (var i = 0; i < count; i++, at += step)
            {
                visit(at);
            }

            return;
        }

        if (2 * first.Length > 3 * second.Length)
        {
            var front = Half(first);
            WalkPlane(at, front, second, visit);
            WalkPlane(at + front, first - front, second, visit);
            return;
        }

        var (half, halfSecond) = (new Step(first.X >> 1, first.Y >> 1, 0), Half(second));
        WalkPlane(at, halfSecond, half, visit);
        WalkPlane(at + halfSecond, first, second - halfSecond, visit);
        WalkPlane(at + (first - along) + (halfSecond - across), -halfSecond, -(first - half), visit);
    }

    /// <summary>Walks a box from a corner: along its first side, beginning next to its second and third.</summary>
    private static void Walk(Step at, Step first, Step second, Step third, Action<Step> visit)
    {
        var (length, height, depth) = (first.Length, second.Length, third.Length);
        var (along, across, over) = (first.Unit, second.Unit, third.Unit);
        if ((height == 1 && depth == 1) || (length == 1 && depth == 1) || (length == 1 && height == 1))
        {
            var (step, count) = height == 1 && depth == 1 ? (along, length) : length == 1 && depth == 1 ? (across, height) : (over, depth);
            for (var i = 0; i < count; i++, at += step)
            {
                visit(at);
            }

            return;
        }

        var (half, halfSecond, halfThird) = (Half(first), Half(second), Half(third));
        if (2 * length > 3 * height && 2 * length > 3 * depth)
        {
            // Long: two boxes one behind the other.
            Walk(at, half, second, third, visit);
            Walk(at + half, first - half, second, third, visit);
        }
        else if (3 * height > 4 * depth)
        {
            // Flat: up, along, down; the third side stays whole.
            Walk(at, halfSecond, third, half, visit);
            Walk(at + halfSecond, first, second - halfSecond, third, visit);
            Walk(at + (first - along) + (halfSecond - across), -halfSecond, third, -(first - half), visit);
        }
        else if (3 * depth > 4 * height)
        {
            Walk(at, halfThird, half, second, visit);
            Walk(at + halfThird, first, second, third - halfThird, visit);
            Walk(at + (first - along) + (halfThird - over), -halfThird, -(first - half), second, visit);
        }
        else
        {
            Walk(at, halfSecond, halfThird, half, visit);
            Walk(at + halfSecond, third, half, second - halfSecond, visit);
            Walk(at + (halfSecond - across) + (third - over), first, -halfSecond, -(third - halfThird), visit);
            Walk(at + (first - along) + halfSecond + (third - over), -third, -(first - half), second - halfSecond, visit);
            Walk(at + (first - along) + (halfSecond - across), -halfSecond, halfThird, -(first - half), visit);
        }
    }

    /// <summary>Half of a side, rounded to an even number of steps where the side is longer than two.</summary>
    private static Step Half(Step side)
    {
        var half = new Step(side.X >> 1, side.Y >> 1, side.Z >> 1);
        return half.Length % 2 != 0 && side.Length > 2 ? half + side.Unit : half;
    }

    /// <summary>A place, or a side of a box along one axis in either direction.</summary>
    private readonly record struct Step(int X, int Y, int Z)
    {
        public int Length => Math.Abs(X + Y + Z);

        public Step Unit => new(Math.Sign(X), Math.Sign(Y), Math.Sign(Z));

        public static Step operator +(Step a, Step b) => new(a.X + b.X, a.Y + b.Y, a.Z + b.Z);

        public static Step operator -(Step a, Step b) => new(a.X - b.X, a.Y - b.Y, a.Z - b.Z);

        public static Step operator -(Step a) => new(-a.X, -a.Y, -a.Z);
    }
}
