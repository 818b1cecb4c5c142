using Heed.Masks;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed;

/// <summary>The tokens of largest importance that each key/value head of a layer has seen: a fixed number of slots, the least important of which is overwritten.</summary>
internal sealed class RankedSlots(long capacity)
{
    private Tensor? _importance;
    private Tensor? _positions;

    /// <summary>Slots of every head.</summary>
    public long Capacity => capacity;

    public Tensor? Keys { get; private set; }

    public Tensor? Values { get; private set; }

    public long Bytes => new[] { Keys, Values, _importance, _positions }.Sum(buffer => buffer is null ? 0 : buffer.numel() * buffer.ElementSize);

    /// <summary>Takes new tokens in.</summary>
    /// <param name="key"><c>[B, Hkv, n, D]</c>.</param>
    /// <param name="value"><c>[B, Hkv, n, Dv]</c>.</param>
    /// <param name="importance"><c>[B, Hkv, n]</c>.</param>
    /// <param name="count">Tokens held.</param>
    /// <param name="seen">Tokens seen: the position of the first new one.</param>
    /// <param name="type">Type of the buffers of keys and values.</param>
    /// <returns>What the new tokens choose from.</returns>
    public (Tensor Key, Tensor Value, Tensor Importance) Append(Tensor key, Tensor value, Tensor importance, long count, long seen, ScalarType type)
    {
        using (var broken = importance.isnan())
        {
            if (broken.any().item<bool>())
            {
                throw DynamicMask.NotANumber();
            }
        }

        using var scope = NewDisposeScope();
        var added = key.shape[2];
        Reserve(key, value, importance, count + added, type);
        if (count + added <= capacity)
        {
            Write(count, key, value, importance, Positions(key, seen, added));
            return View(count + added);
        }

        if (added == 1)
        {
            Replace(key.to(type), value.to(type), importance, seen);
            return View(capacity);
        }

        // The slots are in order of position only until the first is overwritten.
        var all = (Key: key.to(type), Value: value.to(type), Importance: importance, Positions: Positions(key, seen, added));
        if (count > 0)
        {
            var order = _positions!.narrow(2, 0, count).argsort(-1);
            all = (
                cat([GatherRows(Keys!, order), all.Key], 2), cat([GatherRows(Values!, order), all.Value], 2), cat([_importance!.gather(2, order), all.Importance], 2),
                cat([_positions!.gather(2, order), all.Positions], 2));
        }

        // Stable and from the end: of equal importances the later come first. The chosen ones go back in order of position.
        using Scalar last = count + added - 1;
        var best = sort(all.Importance.flip(-1), -1, descending: true, stable: true).indices.narrow(-1, 0, capacity).neg().add(last);
        best = sort(best, -1).values;
        Write(0, GatherRows(all.Key, best), GatherRows(all.Value, best), all.Importance.gather(2, best), all.Positions.gather(2, best));
        return (all.Key.alias().MoveToOuterDisposeScope(), all.Value.alias().MoveToOuterDisposeScope(), all.Importance.alias().MoveToOuterDisposeScope());
    }

    public void Free()
    {
        foreach (var buffer in new[] { Keys, Values, _importance, _positions })
        {
            buffer?.Dispose();
        }

        Keys = Values = _importance = _positions = null;
    }

    private static Tensor GatherRows(Tensor rows, Tensor order) => rows.gather(2, order.unsqueeze(-1).expand(-1, -1, -1, rows.shape[3]));

    private static Tensor Positions(Tensor key, long first, long count)
    {
        using Scalar start = first, end = first + count;
        return arange(start, end, dtype: ScalarType.Int64, device: key.device).expand(key.shape[0], key.shape[1], count);
    }

    private (Tensor Key, Tensor Value, Tensor Importance) View(long count) => (
        Keys!.narrow(2, 0, count).MoveToOuterDisposeScope(), Values!.narrow(2, 0, count).MoveToOuterDisposeScope(), _importance!.narrow(2, 0, count).MoveToOuterDisposeScope());

    private void Write(long at, Tensor key, Tensor value, Tensor importance, Tensor positions)
    {
        foreach (var (buffer, tokens) in new[] { (Keys!, key), (Values!, value), (_importance!, importance), (_positions!, positions) })
        {
            buffer.narrow(2, at, tokens.shape[2]).copy_(tokens);
        }
    }

    /// <summary>One new token against the least important slot of every head.</summary>
    private void Replace(Tensor key, Tensor value, Tensor importance, long position)
    {
        var lowest = _importance!.amin([-1L], keepdim: true);
        // Of the least important the earliest goes; the new token, later than all, goes only where it is less important than every slot.
        using Scalar never = long.MaxValue;
        var positions = _positions!;
        var slot = positions.masked_fill(_importance.ne(lowest), never).argmin(-1, keepdim: true);
        var wins = importance.ge(lowest);
        void Put(Tensor buffer, Tensor token)
        {
            var (index, condition) = buffer.dim() == 4 ? (slot.unsqueeze(-1).expand(-1, -1, -1, buffer.shape[3]), wins.unsqueeze(-1)) : (slot, wins);
            buffer.scatter_(2, index, where(condition, token, buffer.gather(2, index)));
        }

        Put(Keys!, key);
        Put(Values!, value);
        using Scalar at = position;
        Put(positions, full_like(positions.narrow(2, 0, 1), at));
        Put(_importance, importance);
    }

    private void Reserve(Tensor key, Tensor value, Tensor importance, long needed, ScalarType type)
    {
        if (needed > capacity)
        {
            needed = capacity;
        }

        var fits = Keys is not null && Keys.shape[2] >= needed && Keys.shape[0] == key.shape[0] && Keys.shape[1] == key.shape[1] && Keys.shape[3] == key.shape[3]
            && Values!.shape[3] == value.shape[3] && _importance!.dtype == importance.dtype && Keys.device_type == key.device_type;
        if (fits)
        {
            return;
        }

        // Full size at once only where it is soon needed: a window may be far longer than most texts.
        var (batch, heads) = (key.shape[0], key.shape[1]);
        var room = Math.Min(capacity, Math.Max(64, 2 * needed));
        Tensor Grown(Tensor? old, long[] shape, ScalarType kind)
        {
            var grown = empty(shape, kind, key.device).DetachFromDisposeScope();
            if (old is not null && old.dim() == shape.Length && old.shape[0] == batch && old.shape[1] == heads && old.shape[^1] == (shape.Length == 4 ? shape[3] : old.shape[^1]))
            {
                grown.narrow(2, 0, old.shape[2]).copy_(old);
            }

            old?.Dispose();
            return grown;
        }

        Keys = Grown(Keys, [batch, heads, room, key.shape[3]], type);
        Values = Grown(Values, [batch, heads, room, value.shape[3]], type);
        _importance = Grown(_importance, [batch, heads, room], importance.dtype);
        _positions = Grown(_positions, [batch, heads, room], ScalarType.Int64);
    }
}
