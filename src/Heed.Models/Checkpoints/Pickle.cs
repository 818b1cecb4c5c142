using System.Buffers.Binary;
using System.Globalization;
using System.Numerics;
using System.Text;
using static TorchSharp.torch;

namespace Heed.Models.Checkpoints;

/// <summary>A tensor as a pickle describes it: a view of a storage.</summary>
internal sealed record PickledTensor(PickledStorage Storage, long Offset, long[] Shape, long[] Strides);

/// <summary>A storage: a file of the archive.</summary>
internal sealed record PickledStorage(ScalarType Type, string Key, long Count);

/// <summary>A dictionary of any keys, in order.</summary>
internal sealed class PickledDictionary
{
    public List<(object? Key, object? Value)> Items { get; } = [];

    /// <summary>The value of a name; null: none.</summary>
    public object? this[string name] => Items.LastOrDefault(item => item.Key is string key && key == name).Value;
}

/// <summary>The part of Python's pickle format that a PyTorch state dictionary is written in. What a pickle would have Python import is looked up in the short list below and never executed; anything not
/// in it is refused.</summary>
internal sealed class Pickle
{
    private static readonly Dictionary<string, ScalarType> s_storages = new(StringComparer.Ordinal)
    {
        ["torch.DoubleStorage"] = ScalarType.Float64, ["torch.FloatStorage"] = ScalarType.Float32, ["torch.HalfStorage"] = ScalarType.Float16, ["torch.BFloat16Storage"] = ScalarType.BFloat16,
        ["torch.LongStorage"] = ScalarType.Int64, ["torch.IntStorage"] = ScalarType.Int32, ["torch.ShortStorage"] = ScalarType.Int16, ["torch.CharStorage"] = ScalarType.Int8,
        ["torch.ByteStorage"] = ScalarType.Byte, ["torch.BoolStorage"] = ScalarType.Bool,
    };

    // What training scripts save beside the weights: kept as a name only, so that the weights can be had.
    private static readonly HashSet<string> s_passedOver = new(StringComparer.Ordinal)
    {
        "argparse.Namespace", "yacs.config.CfgNode", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode", "collections.defaultdict", "collections.Counter",
        "builtins.dict", "builtins.set", "builtins.slice", "torch.device", "pathlib.PosixPath",
    };

    private readonly byte[] _bytes;
    private readonly List<object?> _stack = [];
    private readonly Stack<int> _marks = new();
    private readonly Dictionary<long, object?> _memo = [];
    private int _at;

    private Pickle(byte[] bytes) => _bytes = bytes;

    /// <summary>Reads a pickle.</summary>
    /// <exception cref="InvalidDataException">It is malformed, or holds what is not read; the message is the end of a sentence.</exception>
    public static object? Read(byte[] bytes)
    {
        try
        {
            return new Pickle(bytes).Run();
        }
        catch (Exception error) when (error is ArgumentException or InvalidOperationException or InvalidCastException or OverflowException or IndexOutOfRangeException)
        {
            throw new InvalidDataException("its pickle is malformed", error);
        }
    }

    private object? Run()
    {
        while (true)
        {
            switch ((char)Byte())
            {
                case '\u0080': Byte(); break;
                case '\u0095': Take(8); break;
                case '.': return Pop();
                case '(': _marks.Push(_stack.Count); break;
                case '0': Pop(); break;
                case '1': PopToMark(); break;
                case '2': _stack.Add(_stack[^1]); break;
                case 'N': _stack.Add(null); break;
                case '\u0088': _stack.Add(true); break;
                case '\u0089': _stack.Add(false); break;
                case 'K': _stack.Add((long)Byte()); break;
                case 'M': _stack.Add((long)BinaryPrimitives.ReadUInt16LittleEndian(Take(2))); break;
                case 'J': _stack.Add((long)BinaryPrimitives.ReadInt32LittleEndian(Take(4))); break;
                case '\u008a': Long(Byte()); break;
                case '\u008b': Long(Length4()); break;
                case 'G': _stack.Add(BinaryPrimitives.ReadDoubleBigEndian(Take(8))); break;
                case 'X': Text(Length4()); break;
                case '\u008c': Text(Byte()); break;
                case '\u008d': Text(Length8()); break;
                case 'U': Text(Byte()); break;
                case 'T': Text(Length4()); break;
                case 'C': _stack.Add(Take(Byte()).ToArray()); break;
                case 'B': _stack.Add(Take(Length4()).ToArray()); break;
                case ')': _stack.Add(Array.Empty<object?>()); break;
                case '\u0085': Tuple(1); break;
                case '\u0086': Tuple(2); break;
                case '\u0087': Tuple(3); break;
                case 't': _stack.Add(PopToMark()); break;
                case ']': case '\u008f': _stack.Add(new List<object?>()); break;
                case 'l': _stack.Add(PopToMark().ToList()); break;
                case 'a': Append([Pop()]); break;
                case 'e': case '\u0090': Append(PopToMark()); break;
                case '}': _stack.Add(new PickledDictionary()); break;
                case 'd': { var items = PopToMark(); _stack.Add(new PickledDictionary()); SetItems(items); break; }
                case 's': { var value = Pop(); SetItems([Pop(), value]); break; }
                case 'u': SetItems(PopToMark()); break;
                case 'c': _stack.Add(Global(Line(), Line())); break;
                case '\u0093': { var name = (string)Pop()!; _stack.Add(Global((string)Pop()!, name)); break; }
                case 'q': _memo[Byte()] = _stack[^1]; break;
                case 'r': _memo[Length4()] = _stack[^1]; break;
                case '\u0094': _memo[_memo.Count] = _stack[^1]; break;
                case 'h': Recall(Byte()); break;
                case 'j': Recall(Length4()); break;
                case 'Q': _stack.Add(Storage(Pop())); break;
                case 'R': case '\u0081': { var arguments = (object?[])Pop()!; _stack.Add(Call((ImportedName)Pop()!, arguments)); break; }
                case 'b': Pop(); break; // The state of an object that is passed over, or an ordered dictionary's metadata.
                case var other: throw new InvalidDataException(string.Create(CultureInfo.InvariantCulture, $"its pickle has the operation 0x{(int)other:x2} at byte {_at - 1}, which no state dictionary needs"));
            }
        }
    }

    private static ImportedName Global(string module, string name)
    {
        var full = $"{module}.{name}";
        return s_storages.ContainsKey(full) || s_passedOver.Contains(full)
            || full is "collections.OrderedDict" or "torch._utils._rebuild_tensor_v2" or "torch._utils._rebuild_parameter" or "torch.Size"
            ? new ImportedName(full)
            : throw new InvalidDataException(
                $"it wants Python to import '{full}', and only dictionaries of tensors are read here, nothing in a file is executed: save its state dictionary alone, "
                + "for example torch.save(model.state_dict(), 'weights.pth'), or as safetensors");
    }

    private static object? Call(ImportedName function, object?[] arguments)
    {
        switch (function.Name)
        {
            case "collections.OrderedDict":
                var dictionary = new PickledDictionary();
                foreach (var item in arguments.Length > 0 ? (List<object?>)arguments[0]! : [])
                {
                    var (key, value) = item switch { object?[] { Length: 2 } pair => (pair[0], pair[1]), List<object?> { Count: 2 } pair => (pair[0], pair[1]), _ => throw new InvalidCastException() };
                    dictionary.Items.Add((key, value));
                }

                return dictionary;
            case "torch._utils._rebuild_parameter":
                return (PickledTensor)arguments[0]!;
            case "torch._utils._rebuild_tensor_v2":
                return new PickledTensor((PickledStorage)arguments[0]!, (long)arguments[1]!, Numbers(arguments[2]), Numbers(arguments[3]));
            case "torch.Size":
                return arguments[0];
            default:
                return s_passedOver.Contains(function.Name) ? function : throw new InvalidDataException($"it calls '{function.Name}'");
        }
    }

    private static PickledStorage Storage(object? identity) => identity is object?[] { Length: >= 5 } parts && parts[0] is "storage" && parts[1] is ImportedName type && parts[2] is string key && parts[4] is long count
        ? new PickledStorage(s_storages.TryGetValue(type.Name, out var known) ? known : throw new InvalidDataException($"it holds a storage of the type '{type.Name}'"), key, count)
        : throw new InvalidDataException("it refers to something that is not a storage");

    private static long[] Numbers(object? tuple) => ((object?[])tuple!).Select(number => (long)number!).ToArray();

    private byte Byte() => _at < _bytes.Length ? _bytes[_at++] : throw new InvalidDataException("its pickle ends too early");

    private ReadOnlySpan<byte> Take(int count)
    {
        if (count < 0 || count > _bytes.Length - _at)
        {
            throw new InvalidDataException("its pickle ends too early");
        }

        _at += count;
        return _bytes.AsSpan(_at - count, count);
    }

    private int Length4() => BinaryPrimitives.ReadInt32LittleEndian(Take(4));

    private int Length8() => checked((int)BinaryPrimitives.ReadInt64LittleEndian(Take(8)));

    private string Line()
    {
        var end = _bytes.AsSpan(_at).IndexOf((byte)'\n');
        var text = Encoding.UTF8.GetString(Take(end));
        _at++;
        return text;
    }

    private void Text(int length) => _stack.Add(Encoding.UTF8.GetString(Take(length)));

    private void Long(int length)
    {
        var number = new BigInteger(Take(length));
        _stack.Add(number >= long.MinValue && number <= long.MaxValue ? (long)number : number);
    }

    private void Tuple(int count)
    {
        var items = _stack.GetRange(_stack.Count - count, count).ToArray();
        _stack.RemoveRange(_stack.Count - count, count);
        _stack.Add(items);
    }

    private object? Pop()
    {
        var top = _stack[^1];
        _stack.RemoveAt(_stack.Count - 1);
        return top;
    }

    private object?[] PopToMark()
    {
        var mark = _marks.Pop();
        var items = _stack.GetRange(mark, _stack.Count - mark).ToArray();
        _stack.RemoveRange(mark, items.Length);
        return items;
    }

    private void Append(object?[] items)
    {
        if (_stack[^1] is not ImportedName)
        {
            ((List<object?>)_stack[^1]!).AddRange(items);
        }
    }

    private void SetItems(object?[] items)
    {
        if (_stack[^1] is ImportedName)
        {
            return;
        }

        var dictionary = (PickledDictionary)_stack[^1]!;
        for (var i = 0; i + 1 < items.Length; i += 2)
        {
            dictionary.Items.Add((items[i], items[i + 1]));
        }
    }

    private void Recall(long place) => _stack.Add(_memo.TryGetValue(place, out var value) ? value : throw new InvalidOperationException());

    /// <summary>Something that Python would import; once called, what it would have made.</summary>
    private sealed record ImportedName(string Name);
}
