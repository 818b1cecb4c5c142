using System.Runtime.ExceptionServices;

namespace Heed.Kernels;

/// <summary>A loop whose items are independent of each other.</summary>
internal abstract class ParallelLoop
{
    private int _next;
    private ExceptionDispatchInfo? _failure;

    /// <summary>Computes one item. Called from several threads at once.</summary>
    protected abstract void Run(int item);

    /// <summary>Computes every item on up to <paramref name="threads"/> threads, the caller's among them.</summary>
    /// <param name="items">Number of items. They are handed out in ascending order: put the expensive ones first.</param>
    /// <param name="threads">Number of threads; 0: one per processor.</param>
    public void Run(int items, int threads)
    {
        _next = 0;
        _failure = null;
        WorkerPool.Run(this, items, Math.Min(items, threads > 0 ? threads : Environment.ProcessorCount));
        _failure?.Throw();
    }

    /// <summary>Takes items until none is left.</summary>
    internal void TakeItems(int items)
    {
        try
        {
            int item;
            while ((item = Interlocked.Increment(ref _next) - 1) < items)
            {
                Run(item);
            }
        }
        catch (Exception exception)
        {
            Interlocked.CompareExchange(ref _failure, ExceptionDispatchInfo.Capture(exception), null);
            Volatile.Write(ref _next, items);
        }
    }
}

/// <summary>
/// The threads behind every parallel kernel: started once, when first needed, then parked. A loop wakes as many as it may use and never waits for one that has not begun;
/// when the pool is taken by another thread's loop, the caller computes its loop alone.
/// </summary>
internal static class WorkerPool
{
    // A closed loop admits no helper; an open one counts those inside.
    private const int Closed = int.MinValue;

    // Two loops often follow each other (packing, then attention): a helper looks for the next one this many times before it sleeps.
    private const int Spins = 200;

    private static readonly SemaphoreSlim s_wake = new(0);
    private static int s_taken;
    private static int s_inside = Closed;
    private static int s_places;
    private static int s_generation;
    private static int s_helpers;
    private static int s_sleeping;
    private static int s_items;
    private static ParallelLoop? s_loop;

    internal static void Run(ParallelLoop loop, int items, int threads)
    {
        if (threads <= 1 || Interlocked.CompareExchange(ref s_taken, 1, 0) != 0)
        {
            loop.TakeItems(items);
            return;
        }

        try
        {
            EnsureHelpers(threads - 1);
            s_loop = loop;
            s_items = items;
            s_places = threads - 1;
            s_generation++;
            Interlocked.Exchange(ref s_inside, 0);
            var sleeping = Math.Min(Volatile.Read(ref s_sleeping), threads - 1);
            if (sleeping > 0)
            {
                s_wake.Release(sleeping);
            }

            loop.TakeItems(items);
            Close();
        }
        finally
        {
            s_loop = null;
            Volatile.Write(ref s_taken, 0);
        }
    }

    private static void Close()
    {
        // Turns the count of those inside into one that admits nobody, then waits for it to run out.
        Interlocked.Add(ref s_inside, Closed);
        var spin = default(SpinWait);
        while (Volatile.Read(ref s_inside) != Closed)
        {
            spin.SpinOnce(sleep1Threshold: -1);
        }
    }

    private static void EnsureHelpers(int wanted)
    {
        for (; s_helpers < wanted; s_helpers++)
        {
            new Thread(Help) { IsBackground = true, Name = "Heed kernels" }.UnsafeStart();
        }
    }

    private static void Help()
    {
        var done = 0;
        while (true)
        {
            if (!TryEnter(Spins, done))
            {
                // A loop that opens from here on sees a sleeper to wake; one that opened before is found by the second look.
                Interlocked.Increment(ref s_sleeping);
                var entered = TryEnter(1, done);
                if (!entered)
                {
                    s_wake.Wait();
                }

                Interlocked.Decrement(ref s_sleeping);
                if (!entered)
                {
                    continue;
                }
            }

            done = s_generation;
            s_loop!.TakeItems(s_items);
            Interlocked.Decrement(ref s_inside);
        }
    }

    private static bool TryEnter(int spins, int done)
    {
        for (; spins > 0; spins--)
        {
            var inside = Volatile.Read(ref s_inside);
            if (inside >= 0 && inside < Volatile.Read(ref s_places) && Volatile.Read(ref s_generation) != done
                && Interlocked.CompareExchange(ref s_inside, inside + 1, inside) == inside)
            {
                return true;
            }

            Thread.SpinWait(10);
        }

        return false;
    }
}
