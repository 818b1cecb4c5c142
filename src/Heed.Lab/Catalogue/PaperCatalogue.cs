using Heed.Lab.Reproductions;

namespace Heed.Lab.Catalogue;

/// <summary>All papers of Heed, each with where it stands. A mechanism that is added, verified or reproduced is recorded here.</summary>
public static class PaperCatalogue
{
    private const string NoFigure = "no figure of it could be sourced";

    private static readonly Paper[] Built =
    [
        new("acmil", "Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification", "2311.07125", 2023, Room.Heads,
            "Pools a bag of patches by several attention branches that must differ, and masks some of the strongest while training.",
            $"Attention pooling piles its mass on a handful of patches; several branches with random masking of the strongest spread it and classify slides better on three data sets ({NoFigure})."),
        new("active-dormant-heads", "Active-Dormant Attention Heads: Mechanistically Demystifying Extreme-Token Phenomena in LLMs", "2410.13835", 2024, Room.Probes,
            "Explains attention sinks, drained values and residual peaks with small transformers on a bigram-and-copy language.",
            "Training grows the sink: its share of attention goes from 0.02 to 0.81 in 10,000 steps of a one-layer model, and stays below 0.0005 with ReLU attention.")
        {
            State = PaperState.Verified, Location = "src/Heed.Models/Texts/BigramBackcopyTransformer.cs",
        },
        new("agent-attention", "Agent Attention: On the Integration of Softmax and Linear Attention", "2312.08874", 2023, Room.Mixers,
            "A few agent tokens collect from all keys and pass on to all queries: global attention at linear cost.",
            "ImageNet top-1 of DeiT-T rises from 72.2 to 74.9; Stable Diffusion runs 1.45 to 1.84 times faster with a better FID.")
        {
            State = PaperState.Verified, Location = "src/Heed/Mixers/AgentAttention.cs",
        },
        new("attention-calibration", "Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through Attention Calibration", "2406.15765", 2024, Room.Edits,
            "Finds columns that soak up attention beyond the first, scales them down in chosen heads and hands the mass to the rest.",
            "Accuracy of Llama-30B rises by up to 7.30 % without training.")
        {
            State = PaperState.Verified, Location = "src/Heed/Edits/AttentionCalibration.cs",
        },
        new("brain-encoders", "Transformer brain encoders explain human high-level visual responses", "2505.17329", 2025, Room.Heads,
            "One learned query per brain area picks, per image, the patches that predict its responses.",
            $"Routing by attention predicts high-level visual areas significantly better than ridge and factorised readouts ({NoFigure}).")
        {
            State = PaperState.Verified, Location = "src/Heed.Models/BrainEncoders/BrainEncoder.cs",
        },
        new("class-semantics-attention", "Class Semantics-based Attention for Action Detection", "2109.02613", 2021, Room.Heads,
            "Gates an encoder's channels and time steps by what a classifier saw, not by the features themselves.",
            "Mean average precision on THUMOS-14 rises by about 6.2 points over BMN, to 47.5."),
        new("consistedit", "ConsistEdit: Highly Consistent and Precise Training-free Visual Editing", "2510.17803", 2025, Room.Edits,
            "Edits images and videos of joint-attention diffusion models by controlling the queries, keys and values of vision tokens alone.",
            $"The first to edit at all steps and in all attention layers without choosing them by hand, at state-of-the-art quality ({NoFigure})."),
        new("cross-attention-saliency", "Cross-Attention is Half Explanation in Speech-to-Text Models", "2509.18010", 2025, Room.Probes,
            "Compares cross-attention maps with perturbation saliency in speech-to-text models.",
            "Cross-attention captures about 50 % of the relevance of the input, and 52 to 75 % of that of the encoder's output at best.")
        {
            State = PaperState.Verified, Location = "src/Heed/Explanations/SpesExplainer.cs",
        },
        new("ditctrl", "DiTCtrl: Exploring Attention Control in Multi-Modal Diffusion Transformer for Tuning-Free Multi-Prompt Longer Video Generation", "2412.18597", 2024, Room.Edits,
            "Makes one long video of several prompts by sharing keys and values, under masks, between neighbouring clips.",
            "Prompts change more smoothly than with the compared methods: CSCV 84.90 % against 84.37 % for FreeNoise, 78.74 % on the same model."),
        new("dynamic-mask-attention", "Trainable Dynamic Mask Sparse Attention", "2508.02124", 2025, Room.Masks,
            "Values say how important each key is; the most important survive, and their importance is added to the score.",
            "Lower perplexity than dense, windowed and latent attention from 80M to 1.7B parameters; the kernel is 49.8 times faster than masked SDPA at 32k keys.")
        {
            State = PaperState.Verified, Location = "src/Heed/Masks/DynamicMask.cs",
        },
        new("flashbias", "FlashBias: Fast Computation of Attention with Bias", "2505.12044", 2025, Room.Biases,
            "Replaces a dense bias by two thin factors appended to queries and keys: exact for ALiBi, by SVD or learned otherwise.",
            "Memory of attention with a bias falls 5 times in training and 10 times in inference at 16,384 tokens; SwinV2-B keeps its accuracy (87.186 % against 87.144 %).")
        {
            State = PaperState.Verified, Location = "src/Heed/Biases/LowRankBiases.cs",
        },
        new("focal-modulation", "Focal Modulation Networks", "2203.11926", 2022, Room.Mixers,
            "Aggregates the context of each position at several scales by convolutions, gates them, and multiplies the query by the result.",
            "ImageNet top-1 of the tiny model is 82.3 against 81.2 for Swin-T.")
        {
            State = PaperState.Verified, Location = "src/Heed/Mixers/FocalModulation.cs",
        },
        new("freeswim", "FreeSwim: Revisiting Sliding-Window Attention Mechanisms for Training-Free Ultra-High-Resolution Video Generation", "2511.14712", 2025, Room.Masks,
            "Windows of the training size, shifted inwards at borders, let a video model draw far larger frames; a second branch keeps the layout.",
            "Video in 4K without training, more than 2 times faster with cross-attention caching.")
        {
            State = PaperState.Verified, Location = "src/Heed.Models/VideoTransformers/FreeSwimEdit.cs",
        },
        new("gated-attention", "Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free", "2505.06708", 2025, Room.Heads,
            "Multiplies every head's output by a sigmoid gate of the layer's input.",
            "Perplexity of a 15B mixture model falls from 6.026 to 5.761, and the first token's share of attention from 46.7 % to 4.8 %.")
        {
            State = PaperState.Verified, Location = "src/Heed/Heads/GatedAttention.cs",
        },
        new("gaussian-adaptive-attention", "Gaussian Adaptive Attention is All You Need: Robust Contextual Representations Across Multiple Modalities", "2401.11143", 2024, Room.Mixers,
            "Weights features by learned Gaussians around their mean, without queries or keys.",
            "Accuracy over frozen encoders rises by up to about 20 %, for example from 61.7 to 80.6 on CIFAR-100 features.")
        {
            State = PaperState.Verified, Location = "src/Heed/Mixers/GaussianAdaptiveAttention.cs",
        },
        new("generalized-neighborhood-attention", "Generalized Neighborhood Attention: Multi-dimensional Sparse Attention at the Speed of Light", "2504.16922", 2025, Room.Masks,
            "Every query of a 1-, 2- or 3-D grid sees a box of keys; stride, dilation and causality per axis.",
            "Image and video generators run 28 to 46 % faster end to end without fine-tuning.")
        {
            State = PaperState.Verified, Location = "src/Heed/Heads/NeighborhoodAttention.cs",
        },
        new("headhunter", "Fine-Grained Perturbation Guidance via Attention Head Selection", "2506.10978", 2025, Room.Edits,
            "Guides diffusion away from a copy of the model in which chosen heads attend only to themselves.",
            "Heads chosen greedily lift PickScore from 19.66 to 20.70 on unseen prompts; the best 6 of 24 match or beat whole-layer guidance in FID."),
        new("hip-attention", "HiP Attention: Hierarchically Pruned Attention", "2406.09827", 2024, Room.Masks,
            "Finds the most relevant keys of a query block by a beam search down a tree of representative keys.",
            "Attention in O(T log T) time without training; decoding up to 6.83 times faster at 128k tokens.")
        {
            State = PaperState.Verified, Location = "src/Heed/Masks/HipSelector.cs",
        },
        new("imbalanced-attention", "Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model", "2501.12206", 2025, Room.Edits,
            "Raises the scores of informative and summary image tokens while a vision-language model writes.",
            "Sentences with hallucinations (CHAIR-S) fall from 46.2 to 17.6, F1 from 75.9 to 71.8.")
        {
            State = PaperState.Verified, Location = "src/Heed/Edits/InformedTokens.cs",
        },
        new("in-context-linear-regression",
            "In-Context Linear Regression Demystified: Training Dynamics and Mechanistic Interpretability of Multi-Head Softmax Attention", "2503.12734", 2025, Room.Lab,
            "Shows what one softmax layer learns from linear regression in context: heads of opposite sign that descend a gradient.",
            "With several heads the error is that of one debiased gradient step (0.2430 against 0.2431 at 40 examples), with one head 0.4048.")
        {
            State = PaperState.Verified, Location = "src/Heed.Models/Regression/IclAttention.cs",
        },
        new("mambaout", "MambaOut: Do We Really Need Mamba for Vision?", "2405.07992", 2024, Room.Mixers,
            "The Mamba block without its state-space model: a gated depth-wise convolution.",
            "Beats visual Mambas on ImageNet (84.1 against 83.7 for LocalVMamba-S) and loses to them on detection (45.1 against 46.5 for VMamba-T).")
        {
            State = PaperState.Verified, Location = "src/Heed/Mixers/GatedCnnBlock.cs",
        },
        new("minimal-transformer", "Reducing the Transformer Architecture to a Minimum", "2410.13732", 2024, Room.Heads,
            "Removes the feed-forward part, merges query and key, drops value and output, to see what a small vision transformer needs.",
            "Under 10 % of the parameters suffice with a slightly worse loss on MNIST and a better validation loss on CIFAR-10.")
        {
            State = PaperState.Verified, Location = "src/Heed/Heads/ReducedAttention.cs",
        },
        new("moh", "MoH: Multi-Head Attention as Mixture-of-Head Attention", "2410.11842", 2024, Room.Heads,
            "A router gives each token its own few heads; shared heads are always on; the sum of heads is weighted.",
            "Using 50 to 90 % of the heads mostly gains: LLaMA3-8B continued with 75 % rises from 61.6 to 64.0 over 14 tasks.")
        {
            State = PaperState.Verified, Location = "src/Heed/Heads/MixtureOfHeadAttention.cs",
        },
        new("motionclr", "MotionCLR: Motion Generation and Training-free Editing via Understanding Attention Mechanisms", "2410.18977", 2024, Room.Edits,
            "Edits generated human motion through the maps of its frames and words: emphasise, erase, replace, shift.",
            "The cross-attention of a verb overlaps the movement with an IoU of 74.3 % (17.5 % for a random map)."),
        new("nevaclip", "Contrastive Language-Image Pretrained Models are Zero-Shot Human Scanpath Predictors", "2305.12380", 2023, Room.Lab,
            "Finds fixations by descending the gradient from a foveated image's encoding to a caption's.",
            $"Scanpaths are more plausible than those of other unsupervised models; wrong captions give random ones ({NoFigure})."),
        new("ninformer", "NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function", "2403.02411", 2024, Room.Mixers,
            "An inner MLP-Mixer writes the gate that multiplies each token.",
            $"Better than ViT, MLP-Mixer and local ViT on CIFAR-10, CIFAR-100 and MNIST ({NoFigure}).")
        {
            State = PaperState.Verified, Location = "src/Heed/Mixers/MixerGatingUnit.cs",
        },
        new("oat", "OAT: Object-Level Attention Transformer for Gaze Scanpath Prediction", "2407.13335", 2024, Room.Models,
            "Predicts the order in which objects of a scene are looked at; objects are tokens, positions are coded by distance.",
            $"Closer to human scanpaths than pixel-level models, also for unseen layouts and targets ({NoFigure})."),
        new("overlock", "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels", "2502.20087", 2025, Room.Mixers,
            "An overview of the image steers, per position, the convolution kernels that look closely.",
            "ImageNet top-1 of 84.2 with 5.5 GFLOPs, against 83.8 with 15.4 for ConvNeXt-B.")
        {
            State = PaperState.Verified, Location = "src/Heed/Mixers/ContMix.cs",
        },
        new("psa", "PSA: Pyramid Sparse Attention for Efficient Video Understanding and Generation", "2512.04025", 2025, Room.Masks,
            "Each query block reads a key block in full, pooled by 2, 4 or 8, or not at all.",
            "CogVideoX-5B in 4 distilled steps at 85 % sparsity scores 0.826 on VBench; full attention in 50 steps has 0.819.")
        {
            State = PaperState.Verified, Location = "src/Heed/Masks/PyramidSelector.cs",
        },
        new("rcmha", "RCMHA: Relative Convolutional Multi-Head Attention for Natural Language Modelling", "2308.03429", 2023, Room.Heads,
            "Relative-position attention whose queries, keys and values pass a short causal convolution.",
            "Language-modelling accuracy of 0.572, above plain, convolutional and relative attention, with 2.98 GB against 3.5 GB of memory.")
        {
            State = PaperState.Verified, Location = "src/Heed/Heads/RelativeConvolutionalAttention.cs",
        },
        new("refam", "RefAM: Attention Magnets for Zero-Shot Referral Segmentation", "2509.22650", 2025, Room.Probes,
            "Points at what a phrase refers to by the maps of a diffusion transformer; appended stop words draw the noise away.",
            $"Best training-free results on image and video referral segmentation ({NoFigure})."),
        new("secondary-sinks", "On the Existence and Behaviour of Secondary Attention Sinks", "2512.22213", 2025, Room.Probes,
            "Finds tokens that become sinks in the middle layers, and the layers where they live.",
            "They exist in 11 model families; QwQ-32B has 3 levels of them, Qwen3-14B has 6.")
        {
            State = PaperState.Verified, Location = "src/Heed/Probes/SinkDetector.cs",
        },
        new("superlinear-attention", "Superlinear Multi-Step Attention", "2601.18401", 2026, Room.Masks,
            "Scores a few anchor keys at growing distances, then attends within spans around the best.",
            "Attention in O(L^1.5) with two steps; a 30B hybrid model decodes 114 tokens a second at a million tokens.")
        {
            State = PaperState.Verified, Location = "src/Heed/Heads/SuperlinearAttention.cs",
        },
        new("tangnn",
            "TANGNN: a Concise, Scalable and Effective Graph Neural Networks with Top-m Attention Mechanism for Graph Representation Learning", "2411.15458", 2024, Room.Mixers,
            "Each vertex attends to the m most similar vertices and aggregates its neighbours.",
            $"Better than graph networks and graph transformers on four kinds of task, at less cost on large graphs ({NoFigure})."),
        new("topviewrs", "TopViewRS: Vision-Language Models as Top-View Spatial Reasoners", "2406.02537", 2024, Room.Lab,
            "Four-way questions about maps of rooms in four degrees of difficulty.",
            "Models fall more than 50 points behind people on average: GPT-4V answers 14.7 % of the static questions, people 77.5 %."),
        new("ulsam", "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks", "2006.15102", 2020, Room.Mixers,
            "Splits channels into groups and gives each one spatial attention map, at almost no cost.",
            "Replacing blocks of MobileNet-V2 takes about 13 % of its parameters and operations away and adds 0.27 to its ImageNet top-1.")
        {
            State = PaperState.Verified, Location = "src/Heed/Mixers/SubspaceAttention.cs",
        },
        new("v2p", "V2P: From Background Suppression to Center Peaking for Robust GUI Grounding Task", "2508.13634", 2025, Room.Lab,
            "Teaches a pointer token to leave the background and peak at an element's centre, by a penalty and Gaussian labels.",
            "Accuracy on ScreenSpot-Pro rises from 44.6 to 50.5, on ScreenSpot-v2 from 92.1 to 92.3."),
        new("v2p-calibration", "V2P: Visual Attention Calibration for GUI Grounding via Background Suppression and Center Peaking", "2601.06899", 2026, Room.Lab,
            "The second write-up of V2P: the same mechanism as calibration of attention, with new results.",
            "Accuracy on ScreenSpot-Pro rises from 44.6 to 52.5, on ScreenSpot-v2 from 92.1 to 92.4."),
        new("visual-attention-sink", "See What You Are Told: Visual Attention Sink in Large Multimodal Models", "2503.03321", 2025, Room.Edits,
            "Moves attention from image tokens that are sinks to the other image tokens, in heads that look at the image.",
            "LLaVA-1.5-7B gains without training: GQA from 62.0 to 63.5, VizWiz from 50.0 to 53.7.")
        {
            State = PaperState.Verified, Location = "src/Heed/Edits/VisualAttentionRedistribution.cs",
        },
        new("visual-mamba", "A Survey on Visual Mamba", "2404.15956", 2024, Room.Mixers,
            "Selective scans over images: bidirectional, crossed, serpentine, windowed, atrous and zigzag orders.",
            "The scan is linear in the number of tokens; among the surveyed, VMamba-T reaches 82.6 on ImageNet where Swin-T has 81.2.")
        {
            State = PaperState.Verified, Location = "src/Heed/Mixers/ScanOrder.cs",
        },
        new("vl-sam", "Training-Free Open-Ended Object Detection and Segmentation via Attention as Prompts", "2410.05963", 2024, Room.Probes,
            "Follows the attention behind each object word of a vision-language model back to points that prompt a segmenter.",
            "Regularised attention flow is needed: 8.5 mAR on CODA, 10.1 with head weights, 2.2 for the plain map and 0.1 for plain flow."),
        new("vmoba", "VMoBA: Mixture-of-Block Attention for Video Diffusion Models", "2506.23858", 2025, Room.Masks,
            "Queries choose key blocks cut along time, space or both, from one pool per head, up to a share of similarity.",
            "Training at 55K tokens takes 2.83 times fewer operations and 1.48 times less time at equal quality (68.34 against 68.25 on VBench).")
        {
            State = PaperState.Verified, Location = "src/Heed/Masks/MixtureOfBlocks.cs",
        },
    ];

    /// <summary>The papers, by slug. What was measured comes from the last full runs of <c>heed reproduce</c> that this build knows.</summary>
    public static IReadOnlyList<Paper> All { get; } = Array.ConvertAll(
        Built, paper => ReproductionLog.Recorded.TryGetValue(paper.Slug, out var record) ? paper with { State = PaperState.Reproduced, Verdict = record.Summary } : paper);

    /// <summary>The paper of a slug.</summary>
    /// <exception cref="ArgumentException">There is none; the message names the nearest.</exception>
    public static Paper Find(string slug)
    {
        var paper = All.FirstOrDefault(paper => string.Equals(paper.Slug, slug, StringComparison.OrdinalIgnoreCase));
        return paper ?? throw new ArgumentException($"There is no paper '{slug}': did you mean '{Nearest(slug)}'? `heed papers` lists all.", nameof(slug));
    }

    private static string Nearest(string slug)
    {
        var wanted = slug.ToLowerInvariant();
        return All.MinBy(paper => (paper.Slug.Contains(wanted, StringComparison.Ordinal) && wanted.Length > 2 ? 0 : 1, EditDistance(paper.Slug, wanted)))!.Slug;
    }

    private static int EditDistance(string a, string b)
    {
        var row = Enumerable.Range(0, b.Length + 1).ToArray();
        for (var i = 1; i <= a.Length; i++)
        {
            var diagonal = row[0];
            row[0] = i;
            for (var j = 1; j <= b.Length; j++)
            {
                var above = row[j];
                row[j] = Math.Min(Math.Min(row[j], row[j - 1]) + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1));
                diagonal = above;
            }
        }

        return row[^1];
    }
}
