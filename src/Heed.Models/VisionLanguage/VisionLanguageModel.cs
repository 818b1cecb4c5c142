using Heed.Layers;
using Heed.Models.Decoders;
using Heed.Models.Generation;
using static TorchSharp.torch;

namespace Heed.Models.VisionLanguage;

/// <summary>A decoder that reads a picture among its tokens, as LLaVA does (arXiv 2304.08485, 2310.03744): a <see cref="ClipVisionEncoder"/>, a projector, and a <see cref="Decoder"/> in whose sequence the projected patches
/// take the place of the image token. Parameters have the transformers library's names: <c>vision_tower.*</c>, <c>multi_modal_projector.linear_1|2</c>, <c>language_model.*</c>.</summary>
public sealed class VisionLanguageModel : nn.Module<Tensor, Tensor, Tensor>
{
    private readonly ClipVisionEncoder vision_tower;
    private readonly Projector multi_modal_projector;
    private readonly Decoder language_model;

    /// <summary>Makes a model with random weights.</summary>
    /// <param name="configuration">Its shape.</param>
    /// <param name="seed">Seed of the decoder's weights; those of the encoder and the projector are drawn from libtorch's generator.</param>
    /// <exception cref="ArgumentException">The configuration makes no model.</exception>
    public VisionLanguageModel(VisionLanguageConfiguration configuration, long seed = 0)
        : this(configuration, seed, initialize: true)
    {
    }

    internal VisionLanguageModel(VisionLanguageConfiguration configuration, long seed, bool initialize)
        : base(nameof(VisionLanguageModel))
    {
        ArgumentNullException.ThrowIfNull(configuration);
        configuration.Validate();
        Configuration = configuration;
        vision_tower = new(configuration.Vision);
        multi_modal_projector = new(configuration);
        language_model = new(configuration.Text, seed, initialize);
        RegisterComponents();
    }

    /// <summary>The model's shape.</summary>
    public VisionLanguageConfiguration Configuration { get; }

    /// <summary>The decoder.</summary>
    public Decoder Language => language_model;

    /// <summary>The encoder of pictures.</summary>
    public ClipVisionEncoder Vision => vision_tower;

    /// <summary>The decoder's hooks, whose <see cref="AttentionHooks.Layout"/> says which tokens are the picture. The encoder has its own (<see cref="ClipVisionEncoder.Hooks"/>).</summary>
    public AttentionHooks Hooks => language_model.Hooks;

    /// <summary>The logits of every token of a text with a picture in it. Sets the layout of <see cref="Hooks"/>.</summary>
    /// <param name="images"><c>[B, channels, side, side]</c>.</param>
    /// <param name="ids">Token ids, int64 <c>[B, N]</c>, with the image token once (or as often as a picture has tokens, one after the other) at the same place of every row.</param>
    /// <returns><c>[B, M, V]</c>: M is N with the image token replaced by the picture's.</returns>
    /// <exception cref="ArgumentException">The pictures have another size, or the image token is missing or not at the same place.</exception>
    public override Tensor forward(Tensor images, Tensor ids)
    {
        using var scope = NewDisposeScope();
        var (embeddings, layout) = Embed(ids, EncodeImages(images));
        Hooks.Layout = layout;
        return language_model.ForwardEmbeddings(embeddings).MoveToOuterDisposeScope();
    }

    /// <summary>The tokens of pictures as the decoder reads them.</summary>
    /// <param name="images"><c>[B, channels, side, side]</c>.</param>
    /// <returns><c>[B, image tokens, C]</c>.</returns>
    /// <exception cref="ArgumentException">The pictures have another size.</exception>
    public Tensor EncodeImages(Tensor images)
    {
        using var scope = NewDisposeScope();
        var tokens = vision_tower.Tokens(images, Configuration.FeatureLayer);
        return Project(Configuration.KeepClassToken ? tokens : tokens.narrow(1, 1, tokens.shape[1] - 1)).MoveToOuterDisposeScope();
    }

    /// <summary>Takes tokens of the encoder to the decoder's width.</summary>
    /// <param name="tokens"><c>[..., vision width]</c>.</param>
    /// <returns><c>[..., C]</c>.</returns>
    public Tensor Project(Tensor tokens) => multi_modal_projector.forward(tokens);

    /// <summary>The embeddings of a text with the picture's tokens in the place of the image token, and what stands where.</summary>
    /// <param name="ids">As for <see cref="forward(Tensor, Tensor)"/>.</param>
    /// <param name="imageTokens">What <see cref="EncodeImages"/> gave, <c>[B, image tokens, C]</c>.</param>
    /// <returns><c>[B, M, C]</c> and its layout: text, image, text, without the empty ones.</returns>
    /// <exception cref="ArgumentException">The image token is missing or not at the same place of every row, or there are not as many pictures as texts.</exception>
    public (Tensor Embeddings, TokenLayout Layout) Embed(Tensor ids, Tensor imageTokens)
    {
        ArgumentNullException.ThrowIfNull(ids);
        ArgumentNullException.ThrowIfNull(imageTokens);
        var patches = Configuration.ImageTokens;
        if (ids.dim() != 2 || ids.dtype != ScalarType.Int64 || imageTokens.dim() != 3 || imageTokens.shape[0] != ids.shape[0] || imageTokens.shape[1] != patches)
        {
            throw new ArgumentException(
                $"Token ids must be int64 [batch, tokens] and come with [batch, {patches}, width] tokens of as many pictures, not {ids.dtype} [{string.Join(", ", ids.shape)}] with [{string.Join(", ", imageTokens.shape)}].", nameof(ids));
        }

        using var scope = NewDisposeScope();
        var (start, length) = ImagePlace(ids);
        var parts = new List<Tensor>();
        var spans = new List<TokenSpan>();
        var (after, count) = (start + length, ids.shape[1] - start - length);
        if (start > 0)
        {
            parts.Add(language_model.Embed(ids.narrow(1, 0, start)));
            spans.Add(new(TokenKind.Text, 0, start));
        }

        parts.Add(imageTokens);
        var grid = Configuration.KeepClassToken ? 0 : Configuration.Vision.Grid;
        spans.Add(new(TokenKind.Image, start, patches, grid, grid));
        if (count > 0)
        {
            parts.Add(language_model.Embed(ids.narrow(1, after, count)));
            spans.Add(new(TokenKind.Text, start + patches, count));
        }

        return (cat(parts, 1).MoveToOuterDisposeScope(), new TokenLayout(spans));
    }

    /// <summary>A prompt for the generator: a text with a picture in it.</summary>
    /// <param name="image"><c>[1, channels, side, side]</c>.</param>
    /// <param name="ids">The text's tokens, with the image token in them.</param>
    /// <returns>The prompt; the caller disposes it.</returns>
    /// <exception cref="ArgumentException">The picture has another size, or the image token is missing.</exception>
    public EmbeddedPrompt Prompt(Tensor image, IEnumerable<long> ids)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (embeddings, layout) = Embed(tensor(ids.ToArray(), dtype: int64).unsqueeze(0), EncodeImages(image));
        return new(embeddings, layout);
    }

    // Where the image token stands, and how often: once, or (as newer processors write prompts) once for each token of the picture.
    private (long Start, long Length) ImagePlace(Tensor ids)
    {
        var (rows, columns) = (ids.shape[0], ids.shape[1]);
        var values = ids.contiguous().cpu().data<long>().ToArray();
        var places = Enumerable.Range(0, (int)columns).Where(column => values[column] == Configuration.ImageTokenId).ToArray();
        var fits = (places.Length == 1 || places.Length == Configuration.ImageTokens) && places[^1] - places[0] == places.Length - 1;
        if (!fits)
        {
            throw new ArgumentException(
                $"A prompt holds the image token (id {Configuration.ImageTokenId}) once, or {Configuration.ImageTokens} times in a row; {(places.Length == 0 ? "this one has no image in it" : $"this one has it {places.Length} times")}.", nameof(ids));
        }

        for (var row = 1L; row < rows; row++)
        {
            for (var column = 0L; column < columns; column++)
            {
                if (values[(row * columns) + column] == Configuration.ImageTokenId != (column >= places[0] && column <= places[^1]))
                {
                    throw new ArgumentException($"Texts of one batch have their image at the same place; that of row {row} is elsewhere than in row 0.", nameof(ids));
                }
            }
        }

        return (places[0], places.Length);
    }

    private sealed class Projector : nn.Module<Tensor, Tensor>
    {
        private readonly Projection linear_1;
        private readonly Projection? linear_2;

        public Projector(VisionLanguageConfiguration configuration)
            : base(nameof(Projector))
        {
            linear_1 = new(configuration.Vision.HiddenSize, configuration.Text.HiddenSize, configuration.ProjectorBias);
            linear_2 = configuration.LinearProjector ? null : new(configuration.Text.HiddenSize, configuration.Text.HiddenSize, configuration.ProjectorBias);
            RegisterComponents();
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            var first = linear_1.forward(input);
            return (linear_2?.forward(nn.functional.gelu(first)) ?? first).MoveToOuterDisposeScope();
        }
    }
}
