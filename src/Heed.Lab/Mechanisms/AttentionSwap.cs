using System.Globalization;
using Heed.Edits;
using Heed.Lab.Inspection;
using Heed.Masks;
using Heed.Models.Decoders;
using static TorchSharp.torch;

namespace Heed.Lab.Mechanisms;

/// <summary>What <c>--attention NAME:option=value,...</c> does to a decoder: it puts a mechanism that chooses keys (<see cref="AttentionMechanism"/>) in place of its attention, or makes it a mixture of heads.</summary>
public abstract class AttentionSwap
{
    /// <summary>What there is: names, how they are written, what they are, and their papers.</summary>
    public static IReadOnlyList<(string Name, string Usage, string Summary, string? Slug)> Known { get; } =
    [
        .. AttentionMechanism.All.Select(known => (known.Name, known.Usage, known.Summary, known.Slug)),
        (MixtureOfHeadSwap.Name, MixtureOfHeadSwap.Usage, MixtureOfHeadSwap.Summary, MixtureOfHeadSwap.Slug),
    ];

    /// <summary>What the reader of an inspection must know of it; null: nothing.</summary>
    public virtual string? Notice => null;

    /// <summary>Reads a swap. Every one also takes <c>dense=N</c>: the first N layers stay as they are.</summary>
    /// <param name="text">For example <c>window:w=64</c> or <c>moh:shared=0.5,active=0.75</c>.</param>
    /// <exception cref="ArgumentException">There is no such mechanism, or an option is wrong.</exception>
    public static AttentionSwap Parse(string text)
    {
        var specification = Specification.Parse(text);
        return specification.Name == MixtureOfHeadSwap.Name ? new MixtureOfHeadSwap(specification)
            : Known.Any(known => known.Name == specification.Name) ? new SelectorSwap(text)
            : throw new ArgumentException(
                $"There is no attention mechanism '{specification.Name}'; there are: {string.Join(", ", Known.Select(known => known.Name))} (`heed attention` tells their options).");
    }

    /// <summary>Changes a decoder until the result is disposed.</summary>
    /// <param name="decoder">The decoder.</param>
    /// <exception cref="ArgumentException">The decoder has too few heads for it.</exception>
    /// <exception cref="InvalidOperationException">It cannot stand in place of this decoder's attention.</exception>
    public abstract IDisposable Apply(Decoder decoder);

    /// <summary>Counts, in a decoder that is changed, which share of its pairs every head computes, until the result is disposed.</summary>
    /// <param name="decoder">The decoder.</param>
    /// <param name="shares">Receives the share of the pairs of each head, by layer: above 1 where more pairs are computed than the layer has.</param>
    internal abstract IDisposable Count(Decoder decoder, Dictionary<int, double[]> shares);

    /// <summary>A mechanism that chooses keys.</summary>
    private sealed class SelectorSwap(string text) : AttentionSwap
    {
        private readonly Func<AttentionSite, AttentionSelector?> _selectors = AttentionMechanism.Selectors(text);

        public override IDisposable Apply(Decoder decoder)
        {
            ArgumentNullException.ThrowIfNull(decoder);
            return decoder.Hooks.Install(new SelectorEdit(_selectors));
        }

        // Selectors of its own, so that those in use see every call once.
        internal override IDisposable Count(Decoder decoder, Dictionary<int, double[]> shares) =>
            decoder.Hooks.Install(new ComputedShareProbe(AttentionMechanism.Selectors(text), decoder.Configuration.WindowOf, shares));
    }
}

/// <summary>A mixture of heads by the lengths of the queries (arXiv 2410.11842, section 3.3).</summary>
internal sealed class MixtureOfHeadSwap : AttentionSwap
{
    public const string Name = "moh";
    public const string Usage = "moh:shared=0.5,active=0.75,balance=0.01";
    public const string Summary =
        "a mixture of heads: the first heads, the share 'shared', are used by every token, and of the others those with its longest queries, up to the share 'active'; balance weighs the load-balance loss in training";

    public const string Slug = "moh";
    private readonly double _shared;
    private readonly double _active;
    private readonly double _balance;
    private readonly int _dense;

    public MixtureOfHeadSwap(Specification specification)
    {
        (_shared, _active, _balance) = (specification.Number("shared", 0.5), specification.Number("active", 0.75), specification.Number("balance", 0.01));
        _dense = specification.Integer("dense", 0, 0);
        specification.RefuseUnread();
        if (!(_shared is >= 0 and <= 1) || !(_active is > 0 and <= 1) || _active < _shared || !(_balance >= 0))
        {
            throw new ArgumentException(string.Create(
                CultureInfo.InvariantCulture,
                $"'{Name}' takes shares of the heads between 0 and 1, active at least shared, and a balance of at least 0; shared={_shared}, active={_active}, balance={_balance} were given."));
        }
    }

    public override string Notice => "Maps and numbers of a head are of all tokens, also of those that do not use it.";

    public override IDisposable Apply(Decoder decoder)
    {
        ArgumentNullException.ThrowIfNull(decoder);
        var before = decoder.Layers.Select(layer => layer.SelfAttention?.Router).ToArray();
        decoder.ConvertToMoH(_shared, _active, _balance);
        foreach (var (layer, router) in decoder.Layers.Zip(before).Take(_dense))
        {
            layer.SelfAttention!.Router = router;
        }

        return new Undone(() =>
        {
            foreach (var (layer, router) in decoder.Layers.Zip(before))
            {
                layer.SelfAttention!.Router = router;
            }
        });
    }

    internal override IDisposable Count(Decoder decoder, Dictionary<int, double[]> shares)
    {
        var routers = decoder.Layers.Index().Select(entry => (Layer: entry.Index, entry.Item.SelfAttention!.Router)).ToList();
        foreach (var (layer, router) in routers)
        {
            if (router is null)
            {
                shares[layer] = [.. Enumerable.Repeat(1.0, decoder.Configuration.Heads)];
            }
            else
            {
                router.Observer = routing => shares[layer] = Shares(routing.Chosen, decoder.Configuration.WindowOf(layer));
            }
        }

        return new Undone(() => routers.ForEach(entry => entry.Router?.Observer = null));
    }

    /// <summary>The pairs of the tokens that use a head, of those of all tokens.</summary>
    private static double[] Shares(Tensor chosen, int? window)
    {
        using var scope = NewDisposeScope();
        var (heads, tokens) = (chosen.size(2), chosen.size(1));
        var used = chosen.any(0).cpu().contiguous().data<bool>().ToArray();
        var (pairs, all) = (new double[heads], 0.0);
        for (long token = 0; token < tokens; token++)
        {
            var seen = Math.Min(token + 1, window ?? tokens);
            all += seen;
            for (var head = 0; head < heads; head++)
            {
                pairs[head] += used[(token * heads) + head] ? seen : 0;
            }
        }

        return [.. pairs.Select(count => count / all)];
    }

    private sealed class Undone(Action undo) : IDisposable
    {
        public void Dispose() => undo();
    }
}
