#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws reports of `innerkv bench` as an SVG, against context: the time of attention, or decode speed.

    for n in 2048 8192 32768; do
        build/innerkv bench attention --context $n --cache base --peer ggml:f16 --json > at-$n.json
    done
    tools/plot_contexts.py --title "One core" at-*.json > contexts.svg

    build/innerkv bench decode -m MODEL --peer llama:f16 --json > decode.json
    tools/plot_contexts.py decode.json > decode.svg
"""

import argparse
import json
import sys

from plot_attention import BOTTOM, HEIGHT, LEFT, OURS, RIGHT, THEIRS, TOP, WIDTH, Log, line, text

SHAPE = ("model", "head_dim", "q_heads", "kv_heads", "batch", "tokens", "threads")
LABELS = 150  # to the right of the lines' ends


def points(reports):
    """Names to [(context, value)], by context; the least time or the best speed of each."""
    lines = {}
    decode = "context" in reports[0]["results"][0]
    for report in reports:
        for result in report["results"]:
            at = ((result["context"], result["best_decode_tokens_per_s"]) if decode
                  else (report["context"], result["min_us"] / 1e3))
            lines.setdefault(result["name"], []).append(at)
    return {name: sorted(ats) for name, ats in lines.items()}, decode


def spread(ends):
    """Heights of labels, a line apart at least, in the order of the lines' ends."""
    heights = []
    for end in sorted(ends):
        heights.append(max(end, heights[-1] + 16) if heights else end)
    return dict(zip(sorted(ends), heights))


def draw(reports, title):
    lines, decode = points(reports)
    x = Log([at[0] for ats in lines.values() for at in ats], LEFT, WIDTH - RIGHT - LABELS)
    y = Log([at[1] for ats in lines.values() for at in ats], HEIGHT - BOTTOM, TOP)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>',
           text(WIDTH / 2, 22, title, size=16),
           text((LEFT + WIDTH - RIGHT - LABELS) / 2, HEIGHT - 14, "tokens in the cache"),
           text(LEFT - 66, TOP - 10, "tokens a second, most" if decode else "milliseconds a step, least",
                "start", size=12)]
    for tick in x.ticks():
        out += [line(x.at(tick), TOP, x.at(tick), HEIGHT - BOTTOM),
                text(x.at(tick), HEIGHT - BOTTOM + 20, f"{tick:g}")]
    for tick in y.ticks():
        out += [line(LEFT, y.at(tick), WIDTH - RIGHT - LABELS, y.at(tick)),
                text(LEFT - 8, y.at(tick) + 4, f"{tick:g}", "end")]
    labels = spread({y.at(ats[-1][1]) for ats in lines.values()})
    for name, ats in lines.items():
        color = OURS if name.startswith("innerkv:") else THEIRS
        path = " ".join(f"{x.at(context):.1f},{y.at(value):.1f}" for context, value in ats)
        out += [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>']
        out += [f'<circle cx="{x.at(context):.1f}" cy="{y.at(value):.1f}" r="4" fill="{color}"/>'
                for context, value in ats]
        out.append(text(x.at(ats[-1][0]) + 10, labels[y.at(ats[-1][1])] + 4,
                        f"{name}, {ats[-1][1]:.3g}", "start", color))
    return "\n".join(out + ["</svg>"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--title", default="Speed by context", help="printed above")
    parser.add_argument("reports", nargs="+", help="what innerkv bench ... --json printed")
    arguments = parser.parse_args()
    try:
        reports = []
        for name in arguments.reports:
            with open(name, encoding="utf-8") as file:
                reports.append(json.load(file))
            if not reports[-1]["results"]:
                sys.exit(f"plot_contexts.py: {name} has no results: it was interrupted")
        shapes = {tuple(report.get(name) for name in SHAPE) for report in reports}
        if len(shapes) > 1:
            sys.exit(f"plot_contexts.py: the reports differ in {', '.join(SHAPE)}: one line needs "
                     "measurements that differ in their context alone")
        print(draw(reports, arguments.title))
    except OSError as error:
        sys.exit(f"plot_contexts.py: {error}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        sys.exit(f"plot_contexts.py: not the JSON of `innerkv bench`: {error!r}")


if __name__ == "__main__":
    main()
