using Heed.Interop;
using TorchSharp;
NativeLibraries.Load();
var t = torch.randn(1000, 1000); var s = System.Diagnostics.Stopwatch.StartNew();
for (int i = 0; i < 20; i++) { t.mm(t).Dispose(); }
Console.WriteLine(20 * 2e9 / s.Elapsed.TotalSeconds / 1e9 + " GFLOP/s " + NativeLibraries.LibTorchSharpPath + torch.get_num_threads());
