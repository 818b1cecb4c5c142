using System.Runtime.Intrinsics;

namespace Heed.Kernels.Tests;

/// <summary>The tiled forward pass at a chosen width of vectors, whatever the hardware prefers.</summary>
internal sealed class ForwardAtWidth(int bits) : IProblemCall<bool>
{
    public bool Run<TScore, TMask>(AttentionProblem problem, TScore modifier, TMask predicate)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        var checkedProblem = new CheckedProblem(problem.Arguments);
        checkedProblem.CheckOutput();
        switch (bits)
        {
            case 128:
                FusedAttention.Forward<Vector128<float>, Vector128Operations, TScore, TMask>(checkedProblem, modifier, predicate);
                break;
            case 256:
                FusedAttention.Forward<Vector256<float>, Vector256Operations, TScore, TMask>(checkedProblem, modifier, predicate);
                break;
            default:
                FusedAttention.Forward<Vector512<float>, Vector512Operations, TScore, TMask>(checkedProblem, modifier, predicate);
                break;
        }

        return true;
    }
}
