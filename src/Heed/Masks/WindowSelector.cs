namespace Heed.Masks;

/// <summary>Narrows a causal call to a sliding window.</summary>
public sealed class WindowSelector : AttentionSelector
{
    private readonly long _width;

    /// <summary>Initializes the selector.</summary>
    /// <param name="width">Keys that a query sees, its own included, from 1.</param>
    /// <exception cref="ArgumentException">The width is less than 1.</exception>
    public WindowSelector(long width)
    {
        _width = width >= 1 ? width : throw new ArgumentException($"A window holds at least 1 token, not {width}.", nameof(width));
    }

    /// <inheritdoc/>
    public override void Apply(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        call.Options = call.Options with { WindowBefore = Math.Min(call.Options.WindowBefore ?? long.MaxValue, _width - 1) };
    }
}
