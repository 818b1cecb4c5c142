using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Every 16-bit pattern widens to the value it stands for.</summary>
public unsafe class ElementsTests
{
    [Fact]
    public void Float16_widens_every_pattern() => VectorWidths.ForEach(new EveryPattern());

    private sealed class EveryPattern : IWidthAction
    {
        public void Run<TVector, TOps>()
            where TVector : struct
            where TOps : struct, IVectorOperations<TVector>
        {
            var lanes = stackalloc float[16];
            var bits = stackalloc ushort[16];
            for (var first = 0; first < 65536; first += TOps.Lanes)
            {
                for (var i = 0; i < TOps.Lanes; i++)
                {
                    bits[i] = (ushort)(first + i);
                }

                TOps.Store(Float16Element.Load<TVector, TOps>((byte*)bits), lanes);
                for (var i = 0; i < TOps.Lanes; i++)
                {
                    var expected = (float)BitConverter.UInt16BitsToHalf(bits[i]);
                    Assert.Equal(expected, lanes[i]);
                    Assert.Equal(expected, Float16Element.Read((byte*)(bits + i)));
                }

                TOps.Store(BFloat16Element.Load<TVector, TOps>((byte*)bits), lanes);
                for (var i = 0; i < TOps.Lanes; i++)
                {
                    var expected = BitConverter.UInt32BitsToSingle((uint)bits[i] << 16);
                    Assert.Equal(expected, lanes[i]);
                    Assert.Equal(expected, BFloat16Element.Read((byte*)(bits + i)));
                }
            }
        }
    }
}
