namespace Heed.Cli;

/// <summary>What the exit codes of the tool mean.</summary>
internal static class ExitCode
{
    /// <summary>Done.</summary>
    public const int Success = 0;

    /// <summary>It could not be done (a file, a model, the machine), or a check that was asked for failed.</summary>
    public const int Failure = 1;

    /// <summary>The command line was wrong.</summary>
    public const int Usage = 2;

    /// <summary>Ctrl+C, as shells number it (128 + SIGINT).</summary>
    public const int Interrupted = 130;
}
