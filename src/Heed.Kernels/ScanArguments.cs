namespace Heed.Kernels;

/// <summary>A view of float32 sequences <c>[batch, channels, time]</c> in memory that the caller keeps alive. Every dimension has a stride of its own, counted in elements; either channels or times may lie side by side,
/// and a stride of anything else costs a slower copy of the part at hand.</summary>
/// <param name="Data">The first element. Null stands for "not given".</param>
/// <param name="BatchStride">Elements from one batch item to the next.</param>
/// <param name="ChannelStride">Elements from one channel to the next.</param>
/// <param name="TimeStride">Elements from one time step to the next.</param>
public readonly unsafe record struct SequenceView(nint Data, long BatchStride, long ChannelStride, long TimeStride)
{
    /// <summary>A view of a dense row-major tensor <c>[batch, channels, length]</c>.</summary>
    public SequenceView(float* data, long channels, long length)
        : this((nint)data, channels * length, length, 1)
    {
    }

    /// <summary>Whether the view points to anything.</summary>
    public bool IsGiven => Data != 0;

    internal float* At(long batch, long channel, long time) => (float*)Data + (batch * BatchStride) + (channel * ChannelStride) + (time * TimeStride);
}

/// <summary>A view of the input or output maps of a scan, float32: <c>[batch, groups, states, time]</c>, or <c>[channels, states]</c> where they are constant. Maps whose states lie side by side are read where they are.</summary>
/// <param name="Data">The first element.</param>
/// <param name="Groups">Number of groups, a divisor of the channels: channel d uses group d / (channels / groups). 0: the maps are constant, one for each channel.</param>
/// <param name="BatchStride">Elements from one batch item to the next; not used of constant maps.</param>
/// <param name="GroupStride">Elements from one group (of constant maps: channel) to the next.</param>
/// <param name="StateStride">Elements from one state to the next.</param>
/// <param name="TimeStride">Elements from one time step to the next; not used of constant maps.</param>
public readonly unsafe record struct StateMapView(nint Data, int Groups, long BatchStride, long GroupStride, long StateStride, long TimeStride)
{
    /// <summary>A view of dense row-major maps <c>[batch, groups, states, length]</c>.</summary>
    public StateMapView(float* data, int groups, long states, long length)
        : this((nint)data, groups, groups * states * length, states * length, length, 1)
    {
    }

    /// <summary>A view of dense row-major constant maps <c>[channels, states]</c>.</summary>
    public StateMapView(float* data, long states)
        : this((nint)data, 0, 0, states, 1, 0)
    {
    }

    /// <summary>Whether the maps are constant, one for each channel.</summary>
    public bool IsConstant => Groups == 0;

    internal float* At(long batch, long group, long time) => (float*)Data + (batch * BatchStride) + (group * GroupStride) + (time * TimeStride);
}

/// <summary>What <see cref="FusedScan"/> computes: <c>h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t</c> for every state of every channel, <c>y_t = C_t h_t + D u_t</c>, times <c>SiLU(z_t)</c> where there is a gate.</summary>
public readonly unsafe struct ScanArguments
{
    /// <summary>Batch items.</summary>
    public required long Batch { get; init; }

    /// <summary>Channels D.</summary>
    public required long Channels { get; init; }

    /// <summary>Time steps T.</summary>
    public required long Length { get; init; }

    /// <summary>States N of every channel.</summary>
    public required int States { get; init; }

    /// <summary>The inputs u.</summary>
    public required SequenceView Input { get; init; }

    /// <summary>The steps, before bias and softplus.</summary>
    public required SequenceView Delta { get; init; }

    /// <summary>A, <c>[D, N]</c>, contiguous.</summary>
    public required float* A { get; init; }

    /// <summary>The input maps B.</summary>
    public required StateMapView B { get; init; }

    /// <summary>The output maps C.</summary>
    public required StateMapView C { get; init; }

    /// <summary>D of the recurrence, <c>[D]</c>; null: none.</summary>
    public float* Skip { get; init; }

    /// <summary>The gate z; not given: none.</summary>
    public SequenceView Gate { get; init; }

    /// <summary>Added to the steps, <c>[D]</c>; null: none.</summary>
    public float* DeltaBias { get; init; }

    /// <summary>Whether steps pass through softplus.</summary>
    public bool DeltaSoftplus { get; init; }

    /// <summary>States at the start of every chunk, <see cref="FusedScan.CheckpointFloats"/> floats: the forward pass writes them where the backward pass is to follow, which reads them. Null: not kept.</summary>
    public float* Checkpoints { get; init; }

    /// <summary>Number of threads; 0: one per processor. Does not change a bit of the result.</summary>
    public int Threads { get; init; }
}

/// <summary>What the backward pass of a scan reads and writes. Everything is written, nothing added to.</summary>
public readonly unsafe struct ScanGradients
{
    /// <summary>The gradient of the output.</summary>
    public required SequenceView Output { get; init; }

    /// <summary>Receives the gradient of the inputs.</summary>
    public required SequenceView Input { get; init; }

    /// <summary>Receives the gradient of the steps.</summary>
    public required SequenceView Delta { get; init; }

    /// <summary>Receives the gradient of the gate; needed where there is one.</summary>
    public SequenceView Gate { get; init; }

    /// <summary>Receives the gradient of A, <c>[D, N]</c>.</summary>
    public required float* A { get; init; }

    /// <summary>Receives the gradient of the input maps, <c>[batch, groups, time, N]</c> (states side by side), or <c>[D, N]</c> where they are constant.</summary>
    public required float* B { get; init; }

    /// <summary>Receives the gradient of the output maps, laid out as <see cref="B"/>.</summary>
    public required float* C { get; init; }

    /// <summary>Receives the gradient of the skip, <c>[D]</c>; null: not wanted.</summary>
    public float* Skip { get; init; }

    /// <summary>Receives the gradient of the steps' bias, <c>[D]</c>; null: not wanted.</summary>
    public float* DeltaBias { get; init; }
}
