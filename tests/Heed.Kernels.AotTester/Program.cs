using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Heed.Kernels.AotTester;

Console.WriteLine($"runtime code generation: {(RuntimeFeature.IsDynamicCodeSupported ? "yes" : "no")}");
Console.WriteLine($"vectors: {(Vector512.IsHardwareAccelerated ? 512 : Vector256.IsHardwareAccelerated ? 256 : 128)} bits");
(string Name, Func<double> Error)[] checks =
[
    ("forward", () => Checks.Forward(queries: 40, keys: 50)),
    ("decoding", () => Checks.Forward(queries: 1, keys: 700)),
    ("backward", Checks.Backward),
    ("modifier and predicate", Checks.Modified),
];
var failures = 0;
foreach (var (name, error) in checks)
{
    // Sums of some hundred products of numbers around one: float32 leaves about 1e-6.
    var largest = error();
    var passed = largest < 2e-5;
    failures += passed ? 0 : 1;
    Console.WriteLine($"{name}: largest error {largest:G3}, {(passed ? "passed" : "FAILED")}");
}

return failures;
