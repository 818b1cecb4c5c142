namespace Heed.Cli;

internal static class Program
{
    public static async Task<int> Main(string[] arguments)
    {
        using var interruption = new Interruption();
        return await HeedCommand.RunAsync(arguments, Console.Out, Console.Error, interruption.Token);
    }
}
