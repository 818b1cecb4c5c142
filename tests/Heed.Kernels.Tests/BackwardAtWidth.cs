using System.Runtime.Intrinsics;

namespace Heed.Kernels.Tests;

/// <summary>The backward pass at a chosen width of vectors; 0: that of the hardware.</summary>
internal sealed class BackwardAtWidth(int bits) : IProblemCall<bool>
{
    public bool Run<TScore, TMask>(AttentionProblem problem, TScore modifier, TMask predicate)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate
    {
        switch (bits)
        {
            case 128:
                BackwardAttention.Compute<Vector128<float>, Vector128Operations, TScore, TMask>(problem.Arguments, problem.Gradients,
                    modifier, predicate);
                break;
            case 256:
                BackwardAttention.Compute<Vector256<float>, Vector256Operations, TScore, TMask>(problem.Arguments, problem.Gradients,
                    modifier, predicate);
                break;
            case 512:
                BackwardAttention.Compute<Vector512<float>, Vector512Operations, TScore, TMask>(problem.Arguments, problem.Gradients,
                    modifier, predicate);
                break;
            default:
                FusedAttention.Backward(problem.Arguments, problem.Gradients, modifier, predicate);
                break;
        }

        return true;
    }
}
