#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws mean KLD against bits a value from reports of eval ppl, one panel a model.

    innerkv eval ppl -m MODEL --text TEXT --cache base,small,... --json > own.json
    innerkv eval ppl -m MODEL --text TEXT --cache sim:q4_0,...   --json > rivals.json
    tools/plot_quality.py own.json rivals.json -o quality.svg

Reports of one model are drawn together; they must have the same text, windows and reference.
"""

import argparse
import json
import math
import os
import sys
from html import escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 430, 400, 52, 40, 60
COLOURS = {"own": "#0b6e4f", "paper": "#b5651d", "sim:q": "#7a7a7a", "sim:kivi": "#8e44ad",
           "sim:turbo": "#c0392b"}
NAMES = {"own": "innerkv", "paper": "InnerQ paper's codecs", "sim:q": "llama.cpp", "sim:kivi": "KIVI",
         "sim:turbo": "rotated Lloyd-Max"}
SAME = ("text", "ctx", "chunks", "arithmetic")


def family(cache):
    if ":" not in cache:
        return "own"
    return next((f for f in COLOURS if cache.startswith(f)), None)


def read_reports(paths):
    """{model: {cache: (bits, kld)}}"""
    models, terms = {}, {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        model = os.path.basename(report["model"])
        these = {key: report[key] for key in SAME} | {"against": report["against"]["cache"]}
        if terms.setdefault(model, these) != these:
            sys.exit(f"{path}: {these} differs from an earlier report of {model}: {terms[model]}")
        for row in report["results"]:
            models.setdefault(model, {})[row["cache"]] = (row["bits_per_value_total"], row["kld_mean"])
    return models


class Panel:
    """One model's axes: bits linear, KLD logarithmic."""

    def __init__(self, index, points, klds, bits):
        self.left = LEFT + index * (WIDTH + GAP)
        self.points = points
        self.low, self.high = math.log10(min(klds)) - 0.08, math.log10(max(klds)) + 0.08
        self.first, self.last = min(bits) - 0.3, max(bits) + 0.9

    def x(self, bits):
        return self.left + (bits - self.first) / (self.last - self.first) * WIDTH

    def y(self, kld):
        return TOP + (self.high - math.log10(kld)) / (self.high - self.low) * HEIGHT

    def draw(self, title):
        right, bottom = self.left + WIDTH, TOP + HEIGHT
        yield f'<text x="{self.left}" y="{TOP - 14}" class="title">{escape(title)}</text>'
        for bits in range(math.ceil(self.first), math.floor(self.last) + 1):
            yield (f'<path d="M{self.x(bits):.1f} {TOP}V{bottom}" class="grid"/><text '
                   f'x="{self.x(bits):.1f}" y="{bottom + 16}" text-anchor="middle">{bits}</text>')
        for exponent in range(math.floor(self.low), math.ceil(self.high) + 1):
            for digit in (1, 2, 5):
                kld = digit * 10.0**exponent
                if self.low <= math.log10(kld) <= self.high:
                    yield (f'<path d="M{self.left} {self.y(kld):.1f}H{right}" class="grid"/><text '
                           f'x="{self.left - 6}" y="{self.y(kld) + 4:.1f}" text-anchor="end">{kld:g}</text>')
        yield (f'<text x="{(self.left + right) / 2}" y="{bottom + 34}" text-anchor="middle">bits a value, '
               "windows counted</text>")
        taken = []
        for cache, (bits, kld) in sorted(self.points.items(), key=lambda item: item[1]):
            colour = COLOURS[family(cache)]
            name = cache.removeprefix("sim:").removeprefix("paper:")
            x, y = self.x(bits), self.y(kld)
            label = self.place_label(taken, x, y, 6.0 * len(name))
            yield (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/><text '
                   f'x="{label:.1f}" y="{y + 4:.1f}" fill="{colour}">{escape(name)}</text>')

    @staticmethod
    def place_label(taken, x, y, width):
        """Right of its point, or left of it where something is there already."""
        def free(at):
            return all(abs(y - other_y) > 10 or at + width < other or at > other + other_width
                       for other, other_y, other_width in taken)
        at = x + 7 if free(x + 7) else x - 7 - width
        taken += [(at, y, width), (x - 4, y, 8)]
        return at


def draw(models):
    rows = [row for points in models.values() for row in points.values()]
    panels = [Panel(i, points, [kld for _, kld in rows], [bits for bits, _ in rows])
              for i, points in enumerate(models.values())]
    width = LEFT + len(models) * (WIDTH + GAP)
    yield (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + 74}" '
           'font-family="sans-serif" font-size="11"><style>.grid{stroke:#ddd;stroke-width:1}'
           ".title{font-size:14px;font-weight:bold}</style>"
           '<rect width="100%" height="100%" fill="#fff"/>')
    for panel, title in zip(panels, models):
        yield from panel.draw(title)
    x = LEFT
    for key, name in NAMES.items():
        yield (f'<circle cx="{x}" cy="{TOP + HEIGHT + 56}" r="4" fill="{COLOURS[key]}"/>'
               f'<text x="{x + 8}" y="{TOP + HEIGHT + 60}">{escape(name)}</text>')
        x += 30 + 7 * len(name)
    yield f'<text x="{x + 20}" y="{TOP + HEIGHT + 60}">up: mean KLD against the f16 cache</text></svg>'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", nargs="+", help="what eval ppl --json printed")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.svg")
    arguments = parser.parse_args()
    models = read_reports(arguments.report)
    for points in models.values():
        for cache in [c for c, (_, kld) in points.items() if family(c) is None or kld <= 0]:
            del points[cache]  # libllama's own rows, which the simulated ones stand for
    with open(arguments.output, "w", encoding="utf-8") as file:
        file.write("\n".join(draw(models)) + "\n")


if __name__ == "__main__":
    main()
