using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Lab.Verification;

/// <summary>One case being run: hands an operation its inputs, takes what it computes, and compares. Everything computed must be in the case's own words, and everything
/// that the case expects must be computed.</summary>
public sealed class GoldenRun : IDisposable
{
    private readonly Dictionary<string, Tensor> _gradients = new(StringComparer.Ordinal);
    private readonly Dictionary<string, Tensor> _outputs = new(StringComparer.Ordinal);
    private readonly HashSet<string> _checked = new(StringComparer.Ordinal);

    private readonly List<nn.Module> _modules = [];

    internal GoldenRun(GoldenCase golden, ScalarType type)
    {
        Case = golden;
        Type = type;
    }

    /// <summary>The case.</summary>
    public GoldenCase Case { get; }

    /// <summary>The floating-point type that the operation runs in.</summary>
    public ScalarType Type { get; }

    /// <summary>The error that comes nearest to, or goes furthest beyond, its tolerance.</summary>
    internal Deviation Worst { get; private set; } = new("", 0, 0);

    /// <summary>An input: floating-point ones in the run's type, tracked where the case has their gradient.</summary>
    public Tensor Input(string name)
    {
        var stored = Case.Read($"in.{name}");
        if (!is_floating_point(stored))
        {
            return stored;
        }

        var input = stored.to(Type);
        if (Case.Has($"grad.in.{name}"))
        {
            input.requires_grad_(true);
            _gradients[$"grad.in.{name}"] = input;
        }

        return input;
    }

    /// <summary>Loads the case's parameters into a module of the same parameter (and buffer) names. The run disposes the module, after gradients went through it.</summary>
    /// <param name="module">The module.</param>
    /// <param name="names">Names of the case that are other names in the module, or repeat a parameter that has one already, with the module's name; null: none.</param>
    /// <param name="mayLack">Parameters of the module that nothing is computed with, which a case need not have; null: there are none.</param>
    /// <exception cref="InvalidDataException">A parameter is missing, superfluous or of another shape.</exception>
    public void Load(nn.Module module, IReadOnlyDictionary<string, string>? names = null, Func<string, bool>? mayLack = null)
    {
        ArgumentNullException.ThrowIfNull(module);
        const string Prefix = "param.";
        _modules.Add(module);
        module.to(Type);
        var wanted = module.named_parameters().Select(entry => (entry.name, value: (Tensor)entry.parameter))
            .Concat(module.named_buffers().Where(entry => IsStored(entry.name)).Select(entry => (entry.name, value: entry.buffer)))
            .ToDictionary(entry => entry.name, entry => entry.value, StringComparer.Ordinal);
        var given = Case.Names.Where(name => name.StartsWith(Prefix, StringComparison.Ordinal)).Select(name => name[Prefix.Length..]).ToHashSet(StringComparer.Ordinal);
        var named = given.Select(name => names?.GetValueOrDefault(name) ?? name).ToHashSet(StringComparer.Ordinal);
        if (wanted.Keys.FirstOrDefault(name => !named.Contains(name) && mayLack?.Invoke(name) != true) is { } missing)
        {
            throw new InvalidDataException($"The case lacks the parameter '{missing}'.");
        }

        using var quiet = no_grad();
        foreach (var name in given)
        {
            if (!wanted.TryGetValue(names?.GetValueOrDefault(name) ?? name, out var parameter))
            {
                throw new InvalidDataException($"The module has no parameter '{name}'.");
            }

            using var value = Case.Read(Prefix + name);
            if (!value.shape.SequenceEqual(parameter.shape))
            {
                throw new InvalidDataException($"The parameter '{name}' is [{string.Join(", ", value.shape)}] in the case and [{string.Join(", ", parameter.shape)}] in the module.");
            }

            parameter.copy_(value);
            _gradients[$"grad.{Prefix}{name}"] = parameter;
        }
    }

    /// <summary>An output that the operation computed. Ignored where the case does not expect it.</summary>
    /// <param name="name">Its name in the case, without <c>out.</c>.</param>
    /// <param name="value">Its value, in the graph of the inputs and parameters where gradients are expected through it.</param>
    public void Output(string name, Tensor value)
    {
        ArgumentNullException.ThrowIfNull(value);
        _outputs[name] = value;
        if (Case.Has($"out.{name}"))
        {
            Compare($"out.{name}", value);
        }
    }

    /// <summary>An output that is a plain number.</summary>
    public void Output(string name, double value) => Output(name, tensor(value, dtype: float64));

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var module in _modules)
        {
            module.Dispose();
        }
    }

    /// <summary>Sends the case's gradients back through the outputs, compares what arrives, and fails for anything expected that was not computed.</summary>
    /// <exception cref="InvalidDataException">Something expected was not computed.</exception>
    internal void Finish()
    {
        const string Incoming = "gradout.";
        Tensor? total = null;
        foreach (var name in Case.Names.Where(name => name.StartsWith(Incoming, StringComparison.Ordinal)))
        {
            var output = _outputs.GetValueOrDefault(name[Incoming.Length..]) ?? throw new InvalidDataException($"The output of '{name}' was not computed.");
            var part = (output * Case.Read(name).to(output.dtype)).sum();
            total = total is null ? part : total + part;
        }

        // Cases of a loss have the gradients of the loss itself.
        total ??= Case.Names.Any(name => name.StartsWith("grad.", StringComparison.Ordinal)) ? _outputs.GetValueOrDefault("loss") : null;
        if (total is not null)
        {
            total.backward();
            foreach (var (name, leaf) in _gradients.Where(entry => Case.Has(entry.Key)))
            {
                Compare(name, leaf.grad ?? zeros_like(leaf));
            }
        }

        var forgotten = Case.Names.FirstOrDefault(name =>
            (name.StartsWith("out.", StringComparison.Ordinal) || name.StartsWith("grad.", StringComparison.Ordinal)) && !_checked.Contains(name));
        if (forgotten is not null)
        {
            throw new InvalidDataException($"'{forgotten}' was not computed.");
        }
    }

    // What a module computes for itself (its name begins with an underscore) is in no checkpoint, and the count of batches in no formula.
    private static bool IsStored(string buffer) =>
        !buffer.EndsWith("num_batches_tracked", StringComparison.Ordinal) && !buffer[(buffer.LastIndexOf('.') + 1)..].StartsWith('_');

    private void Compare(string name, Tensor value)
    {
        using var scope = NewDisposeScope();
        _checked.Add(name);
        var expected = Case.Read(name);
        if (!expected.shape.SequenceEqual(value.shape))
        {
            throw new InvalidDataException($"'{name}' has the shape [{string.Join(", ", value.shape)}], and [{string.Join(", ", expected.shape)}] was expected.");
        }

        var deviation = Deviation.Between(name, value, expected, Case.AbsoluteTolerance, Case.RelativeTolerance);
        if (deviation.Excess > Worst.Excess || Worst.Name.Length == 0)
        {
            Worst = deviation;
        }
    }
}
