"""Prints the tables, in Markdown."""

import statistics


def median(samples, figure):
    return statistics.median(getattr(sample, figure) for sample in samples)


def table(title, columns, rows):
    """Prints a table and flushes it: a comparison takes long, and is read while it runs."""
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(end="", flush=True)


def comparison(title, tools, result, checks):
    """Prints the table of one set in one direction at one store. The first tool is ours."""
    ours, *_ = result["samples"].values()
    rows = []
    for tool in tools:
        samples = result["samples"][tool.name]
        if tool.name in result["failed"]:
            rows.append([tool.name, "failed", "", "", "", "", "", result["failed"][tool.name].splitlines()[0]])
            continue
        wall, requests = median(samples, "wall"), samples[0].requests
        rows.append(
            [
                tool.name,
                f"{wall:.2f}",
                f"{min(sample.wall for sample in samples):.2f}..{max(sample.wall for sample in samples):.2f}",
                f"{wall / median(ours, 'wall'):.2f}" if ours else "",
                f"{median(samples, 'cpu'):.2f}",
                f"{median(samples, 'rss'):.0f}",
                "" if requests is None else f"{median(samples, 'requests'):.0f}",
                tool.verifies[checks],
            ]
        )
    table(title, ["tool", "wall s", "min..max", "x ours", "CPU s", "RSS MB", "requests", "verifies"], rows)


def ratios(results, ours, peers):
    rows = []
    for result in results:
        row = [result["set"], result["direction"], result["server"]]
        for peer in peers:
            known = not {ours.name, peer.name} & result["failed"].keys()
            walls = [median(result["samples"][tool.name], "wall") for tool in (ours, peer)] if known else []
            row.append(f"{walls[0] / walls[1]:.2f}" if walls else "")
        rows.append(row)
    columns = ["set", "direction", "store", *(peer.name for peer in peers)]
    table("wall of hf-cache-sync / wall of the peer: below 1, ours is faster", columns, rows)
