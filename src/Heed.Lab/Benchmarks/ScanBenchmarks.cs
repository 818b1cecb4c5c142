using Heed.Mixers;
using static TorchSharp.torch;
using static TorchSharp.torch.nn.functional;

namespace Heed.Lab.Benchmarks;

/// <summary>The selective scan beside the same recurrence written in libtorch operations, beside softmax attention on as many tokens, and as a share of what memory bandwidth allows.</summary>
internal static class ScanBenchmarks
{
    private const int HeadWidth = 64;

    // Longer ones take libtorch's recurrence seconds a run.
    private const int ComparedLength = 4096;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        foreach (var (batch, channels, states) in new[] { (1, 64, 16), (2, 384, 16), (2, 192, 1) })
        {
            foreach (var length in context.Quick ? [256] : new[] { 1024, ComparedLength, 16384 })
            {
                using var inputs = new ScanInputs(batch, channels, states, length);
                foreach (var withGradients in new[] { false, true })
                {
                    var name = withGradients ? "scan/with gradients" : "scan/forward";
                    yield return context.Row(
                        name, inputs.Shape, inputs.Scan(withGradients), "none", null, withGradients ? new(null, 1.0 / 3) : null,
                        gigabytes: inputs.Bytes(withGradients) / 1e9, share: 0.5);
                }
            }
        }

        foreach (var channels in new[] { 64, 384 })
        {
            using var inputs = new ScanInputs(1, channels, 16, context.Quick ? 64 : ComparedLength);
            yield return context.Row(
                "scan/with gradients", inputs.Shape, inputs.Scan(true), "libtorch, step by step", inputs.StepByStep(true), context.Quick ? null : new(50), share: 0.5);
            yield return context.Row("scan/forward", inputs.Shape, inputs.Scan(false), "libtorch, step by step", inputs.StepByStep(false), share: 0.5);
        }

        // A mixer of width 192 scans twice as many channels; attention of that width has three heads of 64.
        foreach (var length in context.Quick ? [128] : new[] { 256, 1024, ComparedLength, 16384 })
        {
            using var inputs = new ScanInputs(1, 384, 16, length);
            using var attention = new Inputs(3, length, length, HeadWidth);
            yield return context.Row(
                "scan/beside attention", $"{inputs.Shape}, attention H3 D{HeadWidth}", inputs.Scan(false), "Heed dense attention", attention.Heed(AttentionOptions.Default), share: 0.5);
        }

        foreach (var channels in new[] { 384 })
        {
            using var inputs = new ScanInputs(1, channels, 16, context.Quick ? 256 : ComparedLength, tokensFirst: true);
            using var others = new ScanInputs(1, channels, 16, context.Quick ? 256 : ComparedLength);
            yield return context.Row("scan/channels side by side", inputs.Shape, inputs.Scan(true), "times side by side", others.Scan(true), share: 0.5);
        }
    }

    /// <summary>Random inputs of one scan, freed together.</summary>
    private sealed class ScanInputs : IDisposable
    {
        private readonly int _batch;
        private readonly int _channels;
        private readonly int _states;
        private readonly int _length;
        private readonly Tensor[] _tensors;
        private readonly Tensor _gradient;

        public ScanInputs(int batch, int channels, int states, int length, bool tokensFirst = false)
        {
            (_batch, _channels, _states, _length) = (batch, channels, states, length);
            using var scope = NewDisposeScope();
            using var generator = new Generator(1);
            Tensor Make(params long[] shape) => randn(shape, generator: generator);
            Tensor Sequence() => tokensFirst ? Make(batch, length, channels).transpose(1, 2) : Make(batch, channels, length);
            _tensors =
            [
                Sequence(), Sequence(), -rand([channels, states], generator: generator) * states, Make(batch, length, states).transpose(1, 2), Make(batch, length, states).transpose(1, 2),
                Make(channels), Make(channels),
            ];
            foreach (var tensor in _tensors)
            {
                tensor.requires_grad_().DetachFromDisposeScope();
            }

            _gradient = Sequence().DetachFromDisposeScope();
        }

        public string Shape => $"B{_batch} D{_channels} N{_states} T{_length}";

        /// <summary>What must be read and written at least: forward u, delta and the maps to y; backward these and the output's gradient to their gradients.</summary>
        public double Bytes(bool withGradients)
        {
            var (sequence, map) = (sizeof(float) * (double)_batch * _channels * _length, sizeof(float) * (double)_batch * _states * _length);
            var forward = (3 * sequence) + (2 * map);
            return withGradients ? forward + (5 * sequence) + (4 * map) : forward;
        }

        public Action Scan(bool withGradients) => Work(withGradients, () => SelectiveScan.Apply(
            _tensors[0], _tensors[1], _tensors[2], _tensors[3], _tensors[4], _tensors[5], null, _tensors[6], deltaSoftplus: true));

        /// <summary>The recurrence as one writes it in libtorch.</summary>
        public Action StepByStep(bool withGradients) => Work(withGradients, () =>
        {
            var (u, b, c) = (_tensors[0], _tensors[3], _tensors[4]);
            var step = softplus(_tensors[1] + _tensors[6].unsqueeze(1));
            var state = zeros(_batch, _channels, _states);
            var outputs = new List<Tensor>();
            for (var t = 0; t < _length; t++)
            {
                var now = step.select(2, t).unsqueeze(2);
                state = ((now * _tensors[2]).exp() * state) + (now * b.select(2, t).unsqueeze(1) * u.select(2, t).unsqueeze(2));
                outputs.Add((state * c.select(2, t).unsqueeze(1)).sum(2));
            }

            return (stack(outputs, 2) + (u * _tensors[5].unsqueeze(1)), state);
        });

        public void Dispose()
        {
            foreach (var tensor in _tensors)
            {
                tensor.Dispose();
            }

            _gradient.Dispose();
        }

        private Action Work(bool withGradients, Func<(Tensor Output, Tensor State)> scan) => () =>
        {
            using var scope = NewDisposeScope();
            if (!withGradients)
            {
                using var quiet = no_grad();
                scan();
                return;
            }

            scan().Output.backward([_gradient]);
            foreach (var tensor in _tensors)
            {
                tensor.grad?.Dispose();
                tensor.grad = null;
            }
        };
    }
}
