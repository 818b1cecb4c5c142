namespace Heed.Lab.Verification;

/// <summary>Runs the product's code on the cases of one operation.</summary>
public abstract class GoldenOperation
{
    /// <summary>The operation's name, <c>paper/Name</c>.</summary>
    public abstract string Name { get; }

    /// <summary>Whether its cases need float64: chains of layers whose gradients carry more of float32's rounding than the tolerances of their cases leave room for.</summary>
    public virtual bool NeedsDouble => false;

    /// <summary>Computes everything that a case of this operation expects, and hands it over. Called within a dispose scope.</summary>
    /// <exception cref="InvalidDataException">The case cannot be run; the message says why.</exception>
    public abstract void Run(GoldenRun run);
}
