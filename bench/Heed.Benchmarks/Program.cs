using BenchmarkDotNet.Running;
using Heed.Benchmarks;

// `heed bench` is the comparison that the docs quote; this is for working on one kernel at a time, with BenchmarkDotNet's statistics.
BenchmarkSwitcher.FromAssembly(typeof(AttentionBenchmarks).Assembly).Run(args);
