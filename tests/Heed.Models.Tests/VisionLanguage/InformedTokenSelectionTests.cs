using Heed.Edits;
using Heed.Models.VisionLanguage;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.VisionLanguage;

public class InformedTokenSelectionTests
{
    [Fact]
    public void TokensAreCountedFromTheClassTokenWhereTheDecoderReadsIt()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        InformedTokens Chosen(bool keepClassToken)
        {
            using var model = TinyVisionLanguage.Make(TinyVisionLanguage.Configuration with { KeepClassToken = keepClassToken });
            var edit = new InformedTokenEdit([new([], [])]);
            using var installed = InformedTokenSelection.Install(model, edit, localRatio: 0.5, spatialRatio: 0.3, outlierFactor: 0);
            model.EncodeImages(TinyVisionLanguage.Images(1));
            return Assert.Single(edit.Tokens);
        }

        var (patches, tokens) = (Chosen(false), Chosen(true));
        Assert.NotEmpty(patches.Local);
        Assert.NotEmpty(patches.Summary);
        Assert.Equal(patches.Local.Select(patch => patch + 1), tokens.Local);
        Assert.Equal(patches.Summary.Select(patch => patch + 1), tokens.Summary);
    }
}
