namespace Heed.Kernels;

/// <summary>A view of float32 maps <c>[batch, channels, height, width]</c> in any memory order; strides in elements.</summary>
/// <param name="Data">Address of the first element.</param>
/// <param name="Batch">Number of maps of every channel.</param>
/// <param name="Channels">Number of channels.</param>
/// <param name="Height">Rows.</param>
/// <param name="Width">Columns.</param>
/// <param name="BatchStride">From one map of a channel to the next.</param>
/// <param name="ChannelStride">From one channel to the next; 1 where maps lie channels-last.</param>
/// <param name="RowStride">From one row to the next.</param>
/// <param name="ColumnStride">From one column to the next; 1 where rows are contiguous.</param>
public readonly record struct MapView(
    nint Data, long Batch, long Channels, long Height, long Width, long BatchStride, long ChannelStride, long RowStride, long ColumnStride)
{
    /// <summary>Whether rows follow each other without a gap, each contiguous.</summary>
    internal bool HasContiguousPlanes => (ColumnStride == 1 || Width == 1) && (RowStride == Width || Height == 1);

    /// <summary>Whether the channels of a position lie side by side.</summary>
    internal bool IsChannelsLast => ChannelStride == 1 || Channels == 1;

    /// <summary>The first element of a channel's map.</summary>
    internal unsafe float* Plane(long batch, long channel) => (float*)Data + (batch * BatchStride) + (channel * ChannelStride);

    internal bool HasShapeOf(in MapView other) => Batch == other.Batch && Channels == other.Channels && Height == other.Height && Width == other.Width;
}
