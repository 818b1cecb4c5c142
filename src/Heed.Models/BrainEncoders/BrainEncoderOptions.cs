namespace Heed.Models.BrainEncoders;

/// <summary>Which responses are read from which token.</summary>
public enum BrainReadout
{
    /// <summary><c>rois_all</c>: a query per region, half of them of the left hemisphere; every region's token predicts every vertex of its hemisphere, and masks say which of them count.</summary>
    Regions,

    /// <summary><c>voxels</c>: a query per vertex, which is read by that vertex' own weights.</summary>
    Vertices,

    /// <summary><c>hemis</c>: a query per hemisphere.</summary>
    Hemispheres,
}

/// <summary>How places of the feature map are told to the keys.</summary>
public enum MapPosition
{
    /// <summary>Sines of row and column, rows first.</summary>
    Sine,

    /// <summary>A learned table of columns and one of rows, columns first; at most 50 of each.</summary>
    Learned,
}

/// <summary>The shape of a brain encoder's readout, whatever makes its tokens.</summary>
public record BrainReadoutOptions
{
    /// <summary>Number R of queries: even for <see cref="BrainReadout.Regions"/>, one per vertex for <see cref="BrainReadout.Vertices"/>, 2 for <see cref="BrainReadout.Hemispheres"/>.</summary>
    public int Queries { get; init; } = 16;

    /// <summary>Which responses are read from which token.</summary>
    public BrainReadout Readout { get; init; }

    /// <summary>Vertices of the left hemisphere.</summary>
    public required int LeftVertices { get; init; }

    /// <summary>Vertices of the right hemisphere.</summary>
    public required int RightVertices { get; init; }

    /// <summary>Channels C of the feature map.</summary>
    public int Channels { get; init; } = 768;

    /// <summary>Refuses what cannot be.</summary>
    /// <exception cref="ArgumentException">A size is not positive, or the queries do not fit the readout.</exception>
    internal virtual void Validate()
    {
        if (Queries < 1 || LeftVertices < 1 || RightVertices < 1 || Channels < 1)
        {
            throw new ArgumentException($"Queries, vertices of both hemispheres and channels must be positive, not {Queries}, {LeftVertices}, {RightVertices} and {Channels}.");
        }

        switch (Readout)
        {
            case BrainReadout.Regions when Queries % 2 != 0:
                throw new ArgumentException($"Half of the queries belong to each hemisphere: give an even number, not {Queries}.");
            case BrainReadout.Vertices when Queries != LeftVertices + RightVertices:
                throw new ArgumentException($"Every vertex has a query: {LeftVertices} + {RightVertices} vertices need {LeftVertices + RightVertices} queries, not {Queries}.");
            case BrainReadout.Hemispheres when Queries != 2:
                throw new ArgumentException($"Every hemisphere has one query: give 2, not {Queries}.");
        }
    }
}

/// <summary>The shape of a <see cref="BrainEncoder"/>; the defaults are the paper's for DINOv2 ViT-B/14.</summary>
public sealed record BrainEncoderOptions : BrainReadoutOptions
{
    /// <summary>Width D of tokens and queries.</summary>
    public int Width { get; init; } = 768;

    /// <summary>Attention heads.</summary>
    public int Heads { get; init; } = 16;

    /// <summary>Hidden width of the feed-forward parts.</summary>
    public int FeedForwardWidth { get; init; } = 1024;

    /// <summary>Layers of self-attention over the map before it is read.</summary>
    public int EncoderLayers { get; init; }

    /// <summary>Which encoder layer's output is read, from 0, or counted from the end where it is negative. Later layers are part of checkpoints; they change nothing and are not computed.</summary>
    public int EncoderOutputLayer { get; init; } = -1;

    /// <summary>Layers in which the queries read the map.</summary>
    public int DecoderLayers { get; init; } = 1;

    /// <summary>Whether norms stand before attention and feed-forward, or after them.</summary>
    public bool PreNorm { get; init; } = true;

    /// <summary>How places are told to the keys.</summary>
    public MapPosition Position { get; init; }

    /// <summary>Whether the map comes from a convolutional network and is projected to the width (<c>input_proj</c>); otherwise its channels are the width.</summary>
    public bool ProjectsInput { get; init; }

    /// <summary>Share of attention weights, hidden activations and what is added to the residual stream that is dropped in training.</summary>
    public double Dropout { get; init; } = 0.1;

    /// <summary>Encoder layers that are computed.</summary>
    internal int LayersBeforeOutput => EncoderLayers == 0 ? 0 : (EncoderOutputLayer < 0 ? EncoderLayers : 0) + EncoderOutputLayer + 1;

    internal override void Validate()
    {
        base.Validate();
        if (Width < 1 || Heads < 1 || Width % Heads != 0 || FeedForwardWidth < 1)
        {
            throw new ArgumentException($"The heads must divide the width, and the feed-forward width must be positive: a width of {Width}, {Heads} heads and {FeedForwardWidth} were given.");
        }

        if (EncoderLayers < 0 || DecoderLayers < 1 || !(Dropout >= 0 && Dropout < 1))
        {
            throw new ArgumentException($"There are 0 or more encoder layers, 1 or more decoder layers and a dropout from 0 to below 1, not {EncoderLayers}, {DecoderLayers} and {Dropout}.");
        }

        if (EncoderLayers > 0 && (LayersBeforeOutput < 1 || LayersBeforeOutput > EncoderLayers))
        {
            throw new ArgumentException($"The encoder has layers 0 to {EncoderLayers - 1}; the output of layer {EncoderOutputLayer} is asked for.");
        }

        if (!ProjectsInput && Channels != Width)
        {
            throw new ArgumentException($"A map of {Channels} channels does not fit a width of {Width}: make the width {Channels}, or project the input.");
        }

        if (Width % 2 != 0 || (Position == MapPosition.Sine && Width % 4 != 0))
        {
            throw new ArgumentException(
                Position == MapPosition.Sine ? $"Sine positions come in pairs of sine and cosine for rows and for columns: the width must be a multiple of 4, not {Width}." : $"Rows and columns share the width of learned positions: it must be even, not {Width}.");
        }
    }
}
