using Xunit;

namespace Heed.Kernels.Tests;

public class WorkerPoolTests
{
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(7)]
    public void Every_item_runs_once(int threads)
    {
        for (var round = 0; round < 200; round++)
        {
            var loop = new Counting(round);
            loop.Run(round, threads);
            Assert.All(loop.Counts, count => Assert.Equal(1, count));
        }
    }

    [Fact]
    public void Concurrent_and_nested_loops_finish()
    {
        var failures = 0;
        var callers = Enumerable.Range(0, 4).Select(_ => new Thread(() =>
        {
            for (var round = 0; round < 100; round++)
            {
                var outer = new Nesting(20);
                outer.Run(20, 3);
                if (outer.Total != 20 * 10)
                {
                    Interlocked.Increment(ref failures);
                }
            }
        })).ToList();
        callers.ForEach(caller => caller.Start());
        callers.ForEach(caller => caller.Join());
        Assert.Equal(0, failures);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void The_exception_of_an_item_reaches_the_caller_and_the_pool_lives_on(int threads)
    {
        for (var round = 0; round < 20; round++)
        {
            var thrown = Assert.Throws<InvalidOperationException>(() => new Failing().Run(100, threads));
            Assert.Equal("item 50", thrown.Message);
            Every_item_runs_once(threads);
        }
    }

    private sealed class Counting(int items) : ParallelLoop
    {
        public int[] Counts { get; } = new int[items];

        protected override void Run(int item) => Interlocked.Increment(ref Counts[item]);
    }

    private sealed class Nesting(int items) : ParallelLoop
    {
        private int _total;

        public int Total => _total;

        protected override void Run(int item)
        {
            var inner = new Counting(items / 2);
            inner.Run(items / 2, 2);
            Interlocked.Add(ref _total, inner.Counts.Sum());
        }
    }

    private sealed class Failing : ParallelLoop
    {
        protected override void Run(int item)
        {
            if (item == 50)
            {
                throw new InvalidOperationException("item 50");
            }
        }
    }
}
