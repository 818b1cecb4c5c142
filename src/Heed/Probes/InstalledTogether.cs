namespace Heed.Probes;

/// <summary>Hooks that were installed together and are taken out together.</summary>
internal sealed class InstalledTogether(params IDisposable[] installed) : IDisposable
{
    public void Dispose()
    {
        foreach (var hook in installed)
        {
            hook.Dispose();
        }
    }
}
