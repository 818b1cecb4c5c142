using Xunit.Sdk;
using Xunit.v3;

// TorchSharp lets the collector free a number that it has just passed to native code when another thread starts a collection (see PlainAttention): test programs that use it run
// one test at a time.
[assembly: Parallelization(Mode = ParallelMode.None)]
