namespace Heed.Onnx.Graphs;

/// <summary>Follows the axes of a map through changes of its shape.</summary>
internal static class AxisRoles
{
    /// <summary>The axes after a reshape; null where they cannot be told apart any more.</summary>
    /// <param name="roles">The axes before.</param>
    /// <param name="before">Sizes before.</param>
    /// <param name="after">Sizes after.</param>
    public static AxisRole[]? Reshape(AxisRole[] roles, long?[]? before, long?[]? after)
    {
        if (after is null)
        {
            return null;
        }

        if (before is not null && before.Length == roles.Length && before.Concat(after).All(size => size is > 0))
        {
            return ByCounting(roles, before, after);
        }

        // Sizes are not known: what exporters do is to merge or split batch and heads, and to leave the map's own axes where they are.
        if (after.Length == roles.Length && roles.All(role => role != AxisRole.Batch))
        {
            return roles;
        }

        var kept = roles.Reverse().TakeWhile(role => role != AxisRole.Batch).Count();
        return kept >= 2 && after.Length >= kept ? [.. Enumerable.Repeat(AxisRole.Batch, after.Length - kept), .. roles[^kept..]] : null;
    }

    /// <summary>The axes after axes of one element were added or removed.</summary>
    public static AxisRole[]? Reshape(AxisRole[] roles, long?[] before, long?[]? after, long[]? axes, bool removes)
    {
        if (axes is null)
        {
            return removes && before.All(size => size is not null) ? [.. roles.Where((_, i) => before[i] != 1)] : Reshape(roles, before, after);
        }

        var rank = removes ? roles.Length : roles.Length + axes.Length;
        var places = axes.Select(axis => axis < 0 ? axis + rank : axis).ToHashSet();
        if (removes)
        {
            return [.. roles.Where((_, i) => !places.Contains(i))];
        }

        var rest = new Queue<AxisRole>(roles);
        return [.. Enumerable.Range(0, rank).Select(i => places.Contains(i) ? AxisRole.Batch : rest.Dequeue())];
    }

    /// <summary>Axes whose sizes multiply to the same on both sides belong together.</summary>
    private static AxisRole[]? ByCounting(AxisRole[] roles, long?[] before, long?[] after)
    {
        var result = new List<AxisRole>();
        var (i, j) = (0, 0);
        while (i < before.Length || j < after.Length)
        {
            var (from, to) = (i, j);
            long left = i < before.Length ? before[i++]!.Value : 1, right = j < after.Length ? after[j++]!.Value : 1;
            while (left != right)
            {
                if (left < right && i < before.Length)
                {
                    left *= before[i++]!.Value;
                }
                else if (right < left && j < after.Length)
                {
                    right *= after[j++]!.Value;
                }
                else
                {
                    return null;
                }
            }

            // An axis of one element belongs to whatever stands beside it.
            var group = roles[from..i].Where((_, k) => before[from + k] != 1).Distinct().ToList();
            if (group.Count == 0 && i - from == j - to)
            {
                result.AddRange(roles[from..i]);
                continue;
            }

            if (group.Count > 1)
            {
                return null;
            }

            result.AddRange(after[to..j].Select(size => group.Count == 1 && size != 1 ? group[0] : AxisRole.Batch));
        }

        return [.. result];
    }
}
