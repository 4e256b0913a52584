// SPDX-License-Identifier: Apache-2.0
#include "svg.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

namespace innerkv::cli {
namespace {

std::string escape(const std::string& text) {
    std::string escaped;
    for (const char letter : text) {
        if (letter == '&')
            escaped += "&amp;";
        else if (letter == '<')
            escaped += "&lt;";
        else if (letter == '>')
            escaped += "&gt;";
        else
            escaped += letter;
    }
    return escaped;
}

} // namespace

Svg::Svg(double width, double height, const std::string& title) {
    body_ = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" "
                        "height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
                        "font-family=\"Helvetica, Arial, sans-serif\">\n"
                        "<title>{2}</title>\n"
                        "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
                        width, height, escape(title));
    text(16, 26, title, "start", kInk, 16);
}

void Svg::text(double x, double y, const std::string& content, const char* anchor,
               const char* color, int size) {
    body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" fill=\"{}\" "
                         "font-size=\"{}\">{}</text>\n",
                         x, y, anchor, color, size, escape(content));
}

void Svg::upright_text(double x, double y, const std::string& content) {
    body_ += fmt::format("<text x=\"{0:.1f}\" y=\"{1:.1f}\" text-anchor=\"middle\" fill=\"{2}\" "
                         "font-size=\"13\" transform=\"rotate(-90 {0:.1f} {1:.1f})\">{3}</text>\n",
                         x, y, kInk, escape(content));
}

void Svg::line(Point from, Point to, const std::string& color, double width) {
    body_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" "
                         "stroke=\"{}\" stroke-width=\"{}\"/>\n",
                         from.first, from.second, to.first, to.second, color, width);
}

void Svg::box(double x, double y, double width, double height, const std::string& color) {
    body_ += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
                         "fill=\"{}\"/>\n",
                         x, y, width, height, color);
}

void Svg::path(const std::vector<Point>& points, const std::string& color) {
    body_ += "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"" + color + "\" points=\"";
    for (const auto& [x, y] : points) body_ += fmt::format("{:.1f},{:.1f} ", x, y);
    body_ += "\"/>\n";
    for (const auto& [x, y] : points)
        body_ +=
            fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x, y, color);
}

/// viridis at equal distances (Smith, van der Walt, Firing: the colour map of Matplotlib, CC0).
std::string viridis(double share) {
    using Color = std::array<double, 3>;
    constexpr std::array<Color, 9> kMap = {{{68, 1, 84},
                                            {71, 44, 122},
                                            {59, 81, 139},
                                            {44, 113, 142},
                                            {33, 144, 141},
                                            {39, 173, 129},
                                            {92, 200, 99},
                                            {170, 220, 50},
                                            {253, 231, 37}}};
    const double place = std::clamp(share, 0.0, 1.0) * (kMap.size() - 1);
    const auto low = std::min(static_cast<std::size_t>(place), kMap.size() - 2);
    const double part = place - static_cast<double>(low);
    std::string color = "#";
    for (std::size_t channel = 0; channel < 3; ++channel)
        color += fmt::format(
            "{:02x}", std::lround(std::lerp(kMap[low][channel], kMap[low + 1][channel], part)));
    return color;
}

Axis::Axis(double low, double high, bool logarithmic, double start, double end)
    : logarithmic_(logarithmic), start_(start), end_(end) {
    if (logarithmic_)
        choose_decades(low, high);
    else
        choose_steps(low, high);
}

double Axis::at(double value) const {
    const double low = scaled(ticks_.front());
    return start_ + (scaled(value) - low) / (scaled(ticks_.back()) - low) * (end_ - start_);
}

double Axis::scaled(double value) const { return logarithmic_ ? std::log10(value) : value; }

/// Ticks at 1, 2 and 5 times powers of ten, or at these powers alone where they are many.
void Axis::choose_decades(double low, double high) {
    const int first = static_cast<int>(std::floor(std::log10(low)));
    const int last = static_cast<int>(std::ceil(std::log10(high)));
    std::vector<double> candidates;
    for (int power = first; power <= std::max(last, first + 1); ++power)
        for (const double step : {1.0, 2.0, 5.0})
            if (step == 1.0 || last - first <= 3)
                candidates.push_back(step * std::pow(10.0, power));
    const auto above = std::ranges::upper_bound(candidates, low);
    const auto begin = above == candidates.begin() ? above : above - 1;
    const auto reached = std::ranges::lower_bound(candidates, high);
    ticks_.assign(begin, std::max(reached, begin + 1) + 1);
}

void Axis::choose_steps(double low, double high) {
    const double rough = std::max(high - low, 1e-12) / 5;
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    double step = 10 * power;
    for (const double factor : {5.0, 2.0, 1.0})
        if (factor * power >= rough) step = factor * power;
    const double first = std::floor(low / step);
    const double last = std::max(std::ceil(high / step - 1e-9), first + 1);
    const auto steps = static_cast<int>(last - first);
    for (int i = 0; i <= steps; ++i) ticks_.push_back((first + i) * step);
}

} // namespace innerkv::cli
