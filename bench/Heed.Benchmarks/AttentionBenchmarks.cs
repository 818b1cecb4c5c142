using BenchmarkDotNet.Attributes;
using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Toolchains.InProcess.Emit;
using static TorchSharp.torch;
using static TorchSharp.torch.nn.functional;

namespace Heed.Benchmarks;

/// <summary>Forward and backward of one causal attention call, ours and libtorch's.</summary>
[Config(typeof(InProcess))]
[MemoryDiagnoser]
public class AttentionBenchmarks : IDisposable
{
    private Tensor _query = null!;
    private Tensor _key = null!;
    private Tensor _value = null!;
    private Tensor _gradient = null!;

    /// <summary>Tokens.</summary>
    [Params(512, 4096)]
    public int Length { get; set; }

    /// <summary>Head dimension.</summary>
    [Params(64, 128)]
    public int Width { get; set; }

    /// <summary>Threads on both sides.</summary>
    [Params(1, 2)]
    public int Threads { get; set; }

    [GlobalSetup]
    public void Setup()
    {
        set_num_threads(Threads);
        Tensor Make() => randn(1, 8, Length, Width).requires_grad_();
        (_query, _key, _value) = (Make(), Make(), Make());
        _gradient = randn(1, 8, Length, Width);
    }

    [Benchmark]
    public void HeedForward()
    {
        using var quiet = no_grad();
        Attention.Compute(_query, _key, _value, AttentionOptions.CausalSelf).Dispose();
    }

    [Benchmark]
    public void LibTorchForward()
    {
        using var quiet = no_grad();
        scaled_dot_product_attention(_query, _key, _value, null, 0, true).Dispose();
    }

    [Benchmark]
    public void HeedForwardAndBackward()
    {
        using var scope = NewDisposeScope();
        autograd.grad([Attention.Compute(_query, _key, _value, AttentionOptions.CausalSelf)], [_query, _key, _value], [_gradient]);
    }

    [Benchmark]
    public void LibTorchForwardAndBackward()
    {
        using var scope = NewDisposeScope();
        autograd.grad([scaled_dot_product_attention(_query, _key, _value, null, 0, true)], [_query, _key, _value], [_gradient]);
    }

    [GlobalCleanup]
    public void Dispose()
    {
        _query.Dispose();
        _key.Dispose();
        _value.Dispose();
        _gradient.Dispose();
        GC.SuppressFinalize(this);
    }

    /// <summary>In this process: a generated project would not know where libtorch lies.</summary>
    private sealed class InProcess : ManualConfig
    {
        public InProcess() => AddJob(Job.ShortRun.WithToolchain(InProcessEmitToolchain.Instance));
    }
}
