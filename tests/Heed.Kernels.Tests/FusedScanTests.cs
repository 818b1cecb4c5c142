using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

public unsafe class FusedScanTests
{
    [Fact]
    public void Outputs_states_and_gradients_are_those_of_the_definition_at_every_width_of_vectors() => ScanSpec.Any(70).Sample(
        spec => VectorWidths.ForEach(new Matches(spec)),
        iter: 40,
        threads: 1);

    [Fact]
    public void Any_number_of_threads_gives_the_same_bits() => Gen.Select(Gen.Int[0, 2], Gen.Int[0, 2], Gen.Bool, Gen.Int).Sample(
        (groupsB, groupsC, gate, seed) =>
        {
            // 2 x 80 channels: several units of several vectors, so that sums over units exist.
            var spec = new ScanSpec(2, 80, 1100, 5, groupsB, groupsC, true, gate, true, true, ScanLayout.ChannelsSideBySide, false, 1, seed);
            using var one = new ScanProblem(spec);
            using var three = new ScanProblem(spec);
            one.Compute(1);
            three.Compute(3);
            foreach (var ((name, first), (_, second)) in one.Results.Zip(three.Results))
            {
                Assert.True(first.Span.SequenceEqual(second.Span), name);
            }
        },
        iter: 4,
        threads: 1);

    [Fact]
    public void A_scan_that_nothing_fits_is_refused()
    {
        var values = new float[64];
        fixed (float* data = values)
        {
            var sequence = new SequenceView(data, 4, 2);
            var at = (nint)data;
            ScanArguments Make(long channels = 4, long length = 2, int groups = 1, nint a = -1) => new()
            {
                Batch = 1, Channels = channels, Length = length, States = 2, Input = sequence, Delta = sequence, A = (float*)(a == -1 ? at : a), B = new((float*)at, groups, 2, 2), C = new((float*)at, groups, 2, 2),
            };
            Assert.Contains("time steps", Assert.Throws<ArgumentException>(() => FusedScan.Forward(Make(length: 0), sequence)).Message, StringComparison.Ordinal);
            Assert.Contains("groups of B and C (3 and 3) must divide 4 channels", Assert.Throws<ArgumentException>(() => FusedScan.Forward(Make(groups: 3), sequence)).Message, StringComparison.Ordinal);
            Assert.Contains("needs inputs", Assert.Throws<ArgumentException>(() => FusedScan.CheckpointFloats(Make(a: 0))).Message, StringComparison.Ordinal);
            Assert.Contains("place for its output", Assert.Throws<ArgumentException>(() => FusedScan.Forward(Make(), default)).Message, StringComparison.Ordinal);
            Assert.Contains("the same Checkpoints", Assert.Throws<ArgumentException>(() => FusedScan.Backward(Make(), default)).Message, StringComparison.Ordinal);
        }
    }

    private sealed class Matches(ScanSpec spec) : IWidthAction
    {
        public void Run<TVector, TOps>()
            where TVector : struct
            where TOps : struct, IVectorOperations<TVector>
        {
            using var problem = new ScanProblem(spec);
            problem.Compute<TVector, TOps>(2);
            problem.AssertMatches();
        }
    }
}
