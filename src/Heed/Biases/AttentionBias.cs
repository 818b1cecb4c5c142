using TorchSharp;

namespace Heed.Biases;

/// <summary>Something added to the scores before the normaliser.</summary>
public abstract record AttentionBias;

/// <summary>A dense bias, broadcastable to <c>[B, H, Nq, Nk]</c>; minus infinity masks a pair. Gradient supported.</summary>
/// <param name="Values">The bias.</param>
public sealed record DenseBias(torch.Tensor Values) : AttentionBias;

/// <summary>One value per key, broadcastable to <c>[B, H, Nk]</c>. Gradient supported.</summary>
/// <param name="Values">The bias.</param>
public sealed record KeyBias(torch.Tensor Values) : AttentionBias;

/// <summary>ALiBi (arXiv 2108.12409): minus slope times the distance between the query's aligned position and the key. Gradient
/// supported.</summary>
/// <param name="Slopes">One slope per query head, <c>[H]</c>; positive for the usual penalty.</param>
public sealed record AlibiBias(torch.Tensor Slopes) : AttentionBias;

/// <summary>A bias of low rank, query factors times key factors, never multiplied out (arXiv 2505.12044, equation 4). Gradient
/// supported.</summary>
/// <param name="QueryFactors">Broadcastable to <c>[B, H, Nq, R]</c>.</param>
/// <param name="KeyFactors">Broadcastable to <c>[B, H, Nk, R]</c>.</param>
public sealed record LowRankBias(torch.Tensor QueryFactors, torch.Tensor KeyFactors) : AttentionBias;
