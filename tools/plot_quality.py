# SPDX-License-Identifier: Apache-2.0
"""The picture of tools/quality.py: mean KLD against bits a value, one panel a model. The line joins the caches
that no other beats in both."""

import math

from plot_attention import line, text

WIDTH, HEIGHT, LEFT, TOP, GAP = 430, 400, 52, 40, 60
COLOURS = {"own": "#0b6e4f", "paper": "#b5651d", "sim:q": "#7a7a7a", "sim:kivi": "#8e44ad",
           "sim:turbo": "#c0392b"}
NAMES = {"own": "innerkv", "paper": "InnerQ paper's codecs", "sim:q": "llama.cpp", "sim:kivi": "KIVI",
         "sim:turbo": "rotated Lloyd-Max"}


def family(cache):
    if ":" not in cache:
        return "own"
    return next((f for f in COLOURS if cache.startswith(f)), None)


def front(points):
    """Caches in the order of bits, each with less divergence than all before it."""
    best = []
    for bits, kld in sorted(points):
        if not best or kld < best[-1][1]:
            best.append((bits, kld))
    return best


class Panel:
    """One model's axes: bits linear, KLD logarithmic."""

    def __init__(self, index, points, bits, klds):
        self.left = LEFT + index * (WIDTH + GAP)
        self.points = points
        self.low, self.high = math.log10(min(klds)) - 0.08, math.log10(max(klds)) + 0.08
        self.first, self.last = min(bits) - 0.3, max(bits) + 0.9
        self.taken = [(self.x(b) - 4, self.y(k), 8) for b, k in points.values()]

    def x(self, bits):
        return self.left + (bits - self.first) / (self.last - self.first) * WIDTH

    def y(self, kld):
        return TOP + (self.high - math.log10(kld)) / (self.high - self.low) * HEIGHT

    def draw(self, title):
        right, bottom = self.left + WIDTH, TOP + HEIGHT
        yield text(self.left, TOP - 14, title, "start", size=14)
        for bits in range(math.ceil(self.first), math.floor(self.last) + 1):
            yield line(self.x(bits), TOP, self.x(bits), bottom)
            yield text(self.x(bits), bottom + 16, str(bits), size=11)
        for exponent in range(math.floor(self.low), math.ceil(self.high) + 1):
            for kld in (digit * 10.0**exponent for digit in (1, 2, 5)):
                if self.low <= math.log10(kld) <= self.high:
                    yield line(self.left, self.y(kld), right, self.y(kld))
                    yield text(self.left - 6, self.y(kld) + 4, f"{kld:g}", "end", size=11)
        yield text((self.left + right) / 2, bottom + 34, "bits a value, windows counted", size=11)
        best = front(self.points.values())
        for (bits, kld), (next_bits, next_kld) in zip(best, best[1:]):
            yield line(self.x(bits), self.y(kld), self.x(next_bits), self.y(next_kld), "#999999",
                       ' stroke-dasharray="4 3"')
        for cache, (bits, kld) in sorted(self.points.items(), key=lambda item: item[1]):
            colour = COLOURS[family(cache)]
            name = cache.removeprefix("sim:")
            yield f'<circle cx="{self.x(bits):.1f}" cy="{self.y(kld):.1f}" r="4" fill="{colour}"/>'
            yield text(*self.place_label(self.x(bits), self.y(kld), 6.2 * len(name)), name, "start",
                       colour, 11)

    def place_label(self, x, y, width):
        """Beside its point, above or below it: where nothing is yet, or else to its right."""
        places = [(x + 7, y + 4), (x - 7 - width, y + 4)]
        places += [(x + shift, y + 4 + step) for step in (-12, 12, -24, 24, -36, 36)
                   for shift in (4, -4 - width, -width / 2)]
        def free(at):
            return at[0] >= self.left and at[0] + width <= self.left + WIDTH + GAP / 2 and all(
                abs(at[1] - 4 - y) > 10 or at[0] + width < x or at[0] > x + w for x, y, w in self.taken)
        place = next(filter(free, places), places[0])
        self.taken.append((place[0], place[1] - 4, width))
        return place


def draw(models):
    """Lines of SVG. models: {title: {cache: (bits a value, mean KLD above 0)}}."""
    rows = [row for points in models.values() for row in points.values()]
    width = LEFT + len(models) * (WIDTH + GAP)
    yield (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + 74}" '
           'font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>')
    for index, (title, points) in enumerate(models.items()):
        yield from Panel(index, points, *zip(*rows)).draw(title)
    x = LEFT
    for key, name in NAMES.items():
        yield f'<circle cx="{x}" cy="{TOP + HEIGHT + 56}" r="4" fill="{COLOURS[key]}"/>'
        yield text(x + 8, TOP + HEIGHT + 60, name, "start", size=11)
        x += 30 + 7 * len(name)
    yield text(x + 20, TOP + HEIGHT + 60, "up: mean KLD against the f16 cache", "start", size=11) + "</svg>"
