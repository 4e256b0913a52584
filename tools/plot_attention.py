#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws `innerkv bench attention --json` as an SVG: time against bytes of each contender.

    build/innerkv bench attention --context 8192 --cache base,k4v4 --peer ggml:f16 --json |
        tools/plot_attention.py --title "8k context" > docs/attention.svg
"""

import argparse
import json
import math
import sys
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 50, 60
OURS, THEIRS, FLOOR = "#1769aa", "#b3541e", "#888888"


class Log:
    """A logarithmic axis from the power of two below the least value to the one above the largest."""

    def __init__(self, values, start, end):
        self.low = math.floor(math.log2(min(values)))
        self.high = math.ceil(math.log2(max(values)) + 0.25)
        self.start, self.end = start, end

    def at(self, value):
        share = (math.log2(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self):
        return [2.0**power for power in range(self.low, self.high + 1)]


def text(x, y, content, anchor="middle", color="#333333", size=13):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" '
            f'font-size="{size}">{escape(content)}</text>')


def line(x1, y1, x2, y2, color="#e0e0e0", extra=""):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{color}"{extra}/>')


def label_place(x, y, taken):
    """Above the point, or the nearest step away where no label is yet."""
    for offset in (-11, 22, -27, 38, -43, 54):
        if all(abs(x - other_x) > 160 or abs(y + offset - other_y) > 15
               for other_x, other_y in taken):
            break
    taken.append((x, y + offset))
    return taken[-1]


def draw(report, title):
    points = [(r["name"], r["bytes_read"] / 2**20, r["min_us"] / 1e3)
              for r in report["results"]]
    bandwidth = report["read_bandwidth_gb_per_s"] * 1e9 / 2**20 / 1e3  # MiB a millisecond
    x = Log([p[1] for p in points], LEFT, WIDTH - RIGHT)
    y = Log([p[2] for p in points] + [p[1] / bandwidth for p in points], HEIGHT - BOTTOM, TOP)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>',
           text(WIDTH / 2, 22, title, size=16)]
    for tick in x.ticks():
        out += [line(x.at(tick), TOP, x.at(tick), HEIGHT - BOTTOM),
                text(x.at(tick), HEIGHT - BOTTOM + 20, f"{tick:g}")]
    for tick in y.ticks():
        out += [line(LEFT, y.at(tick), WIDTH - RIGHT, y.at(tick)),
                text(LEFT - 8, y.at(tick) + 4, f"{tick:g}", "end")]
    out += [text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "MiB of keys and values read a step"),
            text(LEFT - 66, TOP - 10, "milliseconds a step, least", "start", size=12)]
    ends = [2.0**x.low, 2.0**x.high]
    ends = [min(max(end, 2.0**y.low * bandwidth), 2.0**y.high * bandwidth) for end in ends]
    out += [line(x.at(ends[0]), y.at(ends[0] / bandwidth), x.at(ends[1]), y.at(ends[1] / bandwidth),
                 FLOOR, ' stroke-dasharray="6 4"'),
            text(x.at(ends[1]) - 6, y.at(ends[1] / bandwidth) + 22, "reading alone", "end", FLOOR)]
    taken = []
    for name, size, time in sorted(points, key=lambda point: point[1]):
        color = OURS if name.startswith("innerkv:") else THEIRS
        at = label_place(x.at(size), y.at(time), taken)
        out += [f'<circle cx="{x.at(size):.1f}" cy="{y.at(time):.1f}" r="5" fill="{color}"/>',
                text(*at, f"{name}, {time:.2g} ms", color=color)]
    return "\n".join(out + ["</svg>"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--title", default="One step of attention", help="printed above")
    arguments = parser.parse_args()
    try:
        report = json.load(sys.stdin)
        if not report["results"]:
            sys.exit("plot_attention.py: the report has no results: it was interrupted")
        print(draw(report, arguments.title))
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"plot_attention.py: not the JSON of `innerkv bench attention`: {error!r}")


if __name__ == "__main__":
    main()
