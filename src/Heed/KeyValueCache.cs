using TorchSharp;

namespace Heed;

/// <summary>
/// The keys and values that a decoder has seen, layer by layer, so that each step of generation computes only the new tokens. Buffers grow
/// by doubling; with a window, tokens that no later query can reach are dropped and memory stays constant.
/// </summary>
/// <remarks>
/// <para>Keys are stored as the layer gives them (position codes such as rotary applied before). Alignment to the end
/// (<see cref="Heed.Kernels.Causality.AlignedToEnd"/>) makes a query see the right keys whether or not older ones were dropped.</para>
/// <para>Not differentiable, and not safe for use by two threads at once.</para>
/// </remarks>
public sealed class KeyValueCache : IDisposable
{
    private const long SmallestCapacity = 64;
    private readonly Layer[] _layers;
    private readonly torch.ScalarType _type;
    private readonly long _limit;
    private bool _disposed;

    /// <summary>Initializes an empty cache. Nothing is allocated before the first <see cref="Append"/>.</summary>
    /// <param name="layers">Number of attention layers.</param>
    /// <param name="type">Element type of the buffers: float32, float16, bfloat16 (half the memory; attention reads them directly) or
    /// float64.</param>
    /// <param name="limit">The most tokens that a layer may hold; null: as many as memory allows.</param>
    /// <param name="window">Tokens that a query sees including its own (<see cref="AttentionOptions.WindowBefore"/> + 1), for every layer;
    /// null: all.</param>
    /// <exception cref="ArgumentException">A number is less than 1, or the type is not a floating-point type that attention
    /// reads.</exception>
    public KeyValueCache(int layers, torch.ScalarType type = torch.ScalarType.Float32, long? limit = null, long? window = null)
        : this(layers, type, limit, _ => window)
    {
    }

    /// <summary>Initializes an empty cache whose layers have windows of their own.</summary>
    /// <param name="layers">Number of attention layers.</param>
    /// <param name="type">Element type of the buffers.</param>
    /// <param name="limit">The most tokens that a layer may hold; null: as many as memory allows.</param>
    /// <param name="windowOf">The window of each layer; null results: all tokens.</param>
    /// <exception cref="ArgumentException">As the other constructor.</exception>
    public KeyValueCache(int layers, torch.ScalarType type, long? limit, Func<int, long?> windowOf)
        : this(layers, type, limit, windowOf, _ => null)
    {
    }

    /// <summary>Initializes an empty cache some layers of which keep not the latest tokens but the most important ones (see <see cref="AppendRanked"/>).</summary>
    /// <param name="layers">Number of attention layers.</param>
    /// <param name="type">Element type of the buffers.</param>
    /// <param name="limit">The most tokens that a layer may hold; null: as many as memory allows.</param>
    /// <param name="windowOf">The window of each layer; null results: all tokens.</param>
    /// <param name="slotsOf">The ranked slots of each key/value head of a layer; null results: tokens are kept by their age. Not together with a window.</param>
    /// <exception cref="ArgumentException">As the other constructors.</exception>
    public KeyValueCache(int layers, torch.ScalarType type, long? limit, Func<int, long?> windowOf, Func<int, long?> slotsOf)
    {
        ArgumentNullException.ThrowIfNull(slotsOf);
        ArgumentNullException.ThrowIfNull(windowOf);
        if (layers < 1)
        {
            throw new ArgumentException($"A key-value cache needs at least one layer; {layers} were asked for.", nameof(layers));
        }

        if (type is not (torch.ScalarType.Float32 or torch.ScalarType.Float16 or torch.ScalarType.BFloat16 or torch.ScalarType.Float64))
        {
            throw new ArgumentException($"A key-value cache holds float32, float16, bfloat16 or float64, not {type}.", nameof(type));
        }

        if (limit < 1)
        {
            throw new ArgumentException($"The limit of a key-value cache is at least one token; {limit} was given.", nameof(limit));
        }

        _type = type;
        _limit = limit ?? long.MaxValue;
        _layers = new Layer[layers];
        for (var i = 0; i < layers; i++)
        {
            var window = windowOf(i);
            if (window < 1)
            {
                throw new ArgumentException(
                    $"The window of a key-value cache is at least one token; {window} was given for layer {i}.", nameof(windowOf));
            }

            var slots = slotsOf(i);
            if (slots < 1 || (slots is not null && window is not null))
            {
                throw new ArgumentException(
                    slots < 1 ? $"A ranked layer of a key-value cache has at least one slot; {slots} were given for layer {i}."
                    : $"Layer {i} of a key-value cache has either a window or ranked slots, not both.", nameof(slotsOf));
            }

            _layers[i] = new(window ?? long.MaxValue) { Ranked = slots is null ? null : new RankedSlots(slots.Value) };
        }
    }

    /// <summary>Number of layers.</summary>
    public int Layers => _layers.Length;

    /// <summary>Element type of the buffers.</summary>
    public torch.ScalarType ElementType => _type;

    /// <summary>Tokens that every layer has seen, dropped ones included: the position of the next token.</summary>
    public long Length
    {
        get
        {
            var length = long.MaxValue;
            foreach (var layer in _layers)
            {
                length = Math.Min(length, layer.Seen);
            }

            return length;
        }
    }

    /// <summary>Bytes that the buffers take.</summary>
    public long Bytes
    {
        get
        {
            long bytes = 0;
            foreach (var layer in _layers)
            {
                bytes += layer.Ranked?.Bytes ?? 0;
                bytes += layer.Keys is null ? 0 : (layer.Keys.numel() * layer.Keys.ElementSize) + (layer.Values!.numel() * layer.Values.ElementSize);
            }

            return bytes;
        }
    }

    /// <summary>Tokens that a layer holds now (less than it has seen where a window dropped some).</summary>
    public long Held(int layer) => LayerAt(layer).Count;

    /// <summary>The ranked slots of a layer's key/value heads; null: it keeps tokens by their age.</summary>
    public long? Slots(int layer) => LayerAt(layer).Ranked?.Capacity;

    /// <summary>Appends the keys and values of new tokens to a layer.</summary>
    /// <param name="layer">The layer, from 0.</param>
    /// <param name="key"><c>[B, Hkv, n, D]</c>; converted to the cache's element type.</param>
    /// <param name="value"><c>[B, Hkv, n, Dv]</c>.</param>
    /// <returns>Views <c>[B, Hkv, m, D]</c> and <c>[B, Hkv, m, Dv]</c> of all tokens that the new ones may attend to. They are valid until
    /// the layer's next <see cref="Append"/>, <see cref="Truncate"/> or <see cref="Reset"/>, and belong to the caller's dispose
    /// scope.</returns>
    /// <exception cref="ArgumentException">The layer does not exist, or the shapes do not fit each other or what the layer
    /// holds.</exception>
    /// <exception cref="InvalidOperationException">The limit would be exceeded, or gradients would be lost.</exception>
    public (torch.Tensor Key, torch.Tensor Value) Append(int layer, torch.Tensor key, torch.Tensor value)
    {
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        var state = LayerAt(layer);
        CheckShapes(layer, state, key, value);
        CheckGradients(key, value);
        if (state.Ranked is not null)
        {
            throw new ArgumentException($"Layer {layer} of the key-value cache has ranked slots: give the importance of the tokens to {nameof(AppendRanked)}.", nameof(layer));
        }

        var added = key.size(2);
        // Queries of this call reach window - 1 tokens before the first of them; what lies further back goes now, not after the previous
        // call, which could not know.
        state.Drop(Math.Max(0, state.Count - (state.Window - 1)));
        if (state.Count + added > _limit)
        {
            throw new InvalidOperationException(
                $"The key-value cache is limited to {_limit} tokens and layer {layer} holds {state.Count}: {added} more do not fit. Reset it, truncate it, or give it a larger limit.");
        }

        using (torch.no_grad())
        {
            state.Reserve(added, _limit, key, value, _type);
            if (added > 0)
            {
                Write(state.Keys!, state.Start + state.Count, key);
                Write(state.Values!, state.Start + state.Count, value);
            }
        }

        state.Count += added;
        state.Seen += added;
        return (state.Keys!.narrow(2, state.Start, state.Count), state.Values!.narrow(2, state.Start, state.Count));
    }

    /// <summary>Appends new tokens to a layer with ranked slots: each key/value head then holds the tokens of largest importance that it has seen, at most as many as it has slots; of
    /// equal ones the later stay. For attention over a running top w (arXiv 2508.02124) that is everything that later tokens can still choose, exactly.</summary>
    /// <param name="layer">The layer, from 0.</param>
    /// <param name="key"><c>[B, Hkv, n, D]</c>; converted to the cache's element type.</param>
    /// <param name="value"><c>[B, Hkv, n, Dv]</c>.</param>
    /// <param name="importance"><c>[B, Hkv, n]</c>; kept in its own type, so that choices are those of the uncached computation.</param>
    /// <returns>What the new tokens choose from, <c>[B, Hkv, m, D]</c>, <c>[B, Hkv, m, Dv]</c> and <c>[B, Hkv, m]</c>: several new tokens, the held ones before them, in order of
    /// position; one new token, the tokens it keeps, in any order (itself not among them where others are more important). Valid as long as those of <see cref="Append"/>.</returns>
    /// <exception cref="ArgumentException">The layer does not exist or has no ranked slots, the shapes do not fit each other or what the layer holds, or an importance is not a
    /// number.</exception>
    /// <exception cref="InvalidOperationException">The limit would be exceeded, or gradients would be lost.</exception>
    public (torch.Tensor Key, torch.Tensor Value, torch.Tensor Importance) AppendRanked(int layer, torch.Tensor key, torch.Tensor value, torch.Tensor importance)
    {
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        ArgumentNullException.ThrowIfNull(importance);
        var state = LayerAt(layer);
        var ranked = state.Ranked ?? throw new ArgumentException($"Layer {layer} of the key-value cache has no ranked slots: give it some when the cache is made.", nameof(layer));
        CheckShapes(layer, state, key, value);
        CheckGradients(key, value);
        if (importance.dim() != 3 || importance.size(0) != key.size(0) || importance.size(1) != key.size(1) || importance.size(2) != key.size(2))
        {
            throw new ArgumentException($"The importance of keys {AttentionShape.Text(key)} is [B, Hkv, n]; {AttentionShape.Text(importance)} was given.", nameof(importance));
        }

        var held = Math.Min(ranked.Capacity, state.Count + key.size(2));
        if (held > _limit)
        {
            throw new InvalidOperationException($"The key-value cache is limited to {_limit} tokens and layer {layer} would hold {held}. Reset it, truncate it, or give it a larger limit.");
        }

        using var quiet = torch.no_grad();
        var result = ranked.Append(key, value, importance, state.Count, state.Seen, _type);
        state.Count = held;
        state.Seen += key.size(2);
        return result;
    }

    /// <summary>Forgets every token after the first <paramref name="length"/>, in every layer (to try another continuation, or after an
    /// interrupted step).</summary>
    /// <param name="length">Tokens to keep, counted from the first ever seen.</param>
    /// <exception cref="ArgumentException">The length is negative or more than <see cref="Length"/>.</exception>
    /// <exception cref="InvalidOperationException">A window has dropped tokens that the next query would reach.</exception>
    public void Truncate(long length)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        if (length < 0 || length > Length)
        {
            throw new ArgumentException(
                $"A key-value cache of {Length} tokens cannot be cut to {length}: give 0 to {Length}.", nameof(length));
        }

        for (var i = 0; i < _layers.Length; i++)
        {
            var (first, needed) = (_layers[i].Seen - _layers[i].Count, Math.Max(0, length - (_layers[i].Window - 1)));
            if (first > needed && !(_layers[i].Ranked is not null && length == _layers[i].Seen))
            {
                throw new InvalidOperationException(
                    $"Layer {i} of the key-value cache has dropped the tokens before {first}; cutting to {length} would need those from {needed} on. Reset the cache and run the prompt again.");
            }
        }

        foreach (var layer in _layers)
        {
            layer.Count -= layer.Seen - length;
            layer.Seen = length;
        }
    }

    /// <summary>Forgets every token; keeps the buffers.</summary>
    public void Reset()
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        foreach (var layer in _layers)
        {
            layer.Start = layer.Count = layer.Seen = 0;
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _disposed = true;
        foreach (var layer in _layers)
        {
            layer.Free();
        }
    }

    private static void CheckGradients(torch.Tensor key, torch.Tensor value)
    {
        if ((key.requires_grad || value.requires_grad) && torch.is_grad_enabled())
        {
            throw new InvalidOperationException(
                "A key-value cache keeps no gradients: call the model under torch.no_grad(), or train without a cache.");
        }
    }

    private static void Write(torch.Tensor buffer, long at, torch.Tensor tokens)
    {
        using var place = buffer.narrow(2, at, tokens.size(2));
        using var written = place.copy_(tokens);
    }

    private static void CheckShapes(int layer, Layer state, torch.Tensor key, torch.Tensor value)
    {
        if (key.dim() != 4 || value.dim() != 4 || key.size(0) != value.size(0) || key.size(1) != value.size(1) || key.size(2) != value.size(2))
        {
            throw new ArgumentException(
                $"Keys [B, Hkv, n, D] and values [B, Hkv, n, Dv] of one batch, head count and length were expected, not {AttentionShape.Text(key)} and {AttentionShape.Text(value)}.", nameof(key));
        }

        if ((state.Ranked?.Keys ?? state.Keys) is { } held && state.Count > 0 && (state.Ranked?.Values ?? state.Values) is { } heldValues
            && (held.size(0) != key.size(0) || held.size(1) != key.size(1) || held.size(3) != key.size(3) || heldValues.size(3) != value.size(3)
                || held.device_type != key.device_type))
        {
            throw new ArgumentException(
                $"Layer {layer} of the key-value cache holds keys {AttentionShape.Text(held)} and values {AttentionShape.Text(heldValues)} on {held.device}; "
                + $"{AttentionShape.Text(key)} and {AttentionShape.Text(value)} on {key.device} do not continue them: only the length may differ. Reset the cache for another batch.",
                nameof(key));
        }
    }

    private Layer LayerAt(int layer)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        return (uint)layer < (uint)_layers.Length
            ? _layers[layer]
            : throw new ArgumentException(
                $"The key-value cache has layers 0 to {_layers.Length - 1}; layer {layer} was asked for.", nameof(layer));
    }

    private sealed class Layer(long window)
    {
        public long Window => window;

        /// <summary>The slots where tokens are kept by their importance; null: by their age.</summary>
        public RankedSlots? Ranked { get; init; }

        public torch.Tensor? Keys { get; private set; }

        public torch.Tensor? Values { get; private set; }

        /// <summary>First held token in the buffers.</summary>
        public long Start { get; set; }

        public long Count { get; set; }

        public long Seen { get; set; }

        public void Drop(long tokens)
        {
            Start += tokens;
            Count -= tokens;
        }

        /// <summary>Makes room behind the held tokens, by growing or, where a window left room in front, by moving them there.</summary>
        public void Reserve(long added, long limit, torch.Tensor key, torch.Tensor value, torch.ScalarType type)
        {
            var capacity = Keys?.size(2) ?? 0;
            var fits = Keys is not null && (Count > 0 || (Matches(Keys, key) && Matches(Values!, value)));
            if (fits && Start + Count + added <= capacity)
            {
                return;
            }

            // Moving costs the held tokens and frees what lies in front: worth it only when that is at least as much.
            var grow = !fits || Count + added > capacity || Start < Count;
            if (grow)
            {
                capacity = Math.Min(limit, Math.Max(fits ? 2 * (Count + added) : Count + added, Math.Min(SmallestCapacity, limit)));
            }

            (Keys, Values) = (Moved(Keys, key, capacity, type, grow), Moved(Values, value, capacity, type, grow));
            Start = 0;
        }

        public void Free()
        {
            Ranked?.Free();
            Keys?.Dispose();
            Values?.Dispose();
            Keys = Values = null;
        }

        private static bool Matches(torch.Tensor buffer, torch.Tensor tokens) =>
            buffer.size(0) == tokens.size(0) && buffer.size(1) == tokens.size(1) && buffer.size(3) == tokens.size(3) && buffer.device_type == tokens.device_type;

        private torch.Tensor Moved(torch.Tensor? old, torch.Tensor like, long capacity, torch.ScalarType type, bool grow)
        {
            var target = grow
                ? torch.empty([like.size(0), like.size(1), capacity, like.size(3)], type, like.device).DetachFromDisposeScope()
                : old!;
            if (Count > 0)
            {
                using var held = old!.narrow(2, Start, Count);
                Write(target, 0, held);
            }

            if (grow)
            {
                old?.Dispose();
            }

            return target;
        }
    }
}
