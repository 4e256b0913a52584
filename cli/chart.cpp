// SPDX-License-Identifier: Apache-2.0
#include "chart.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

namespace innerkv::cli {
namespace {

constexpr double kLetter = 7.2; ///< widest mean width of a letter at the size of labels
constexpr double kLine = 20;    ///< between lines of labels
constexpr double kTop = 46;     ///< under the title
constexpr const char* kInk = "#333333";

struct Color {
    double red, green, blue;
};

/// viridis at equal distances (Smith, van der Walt, Firing: the colour map of Matplotlib, CC0).
Color viridis(double share) {
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
    const auto mix = [part](double from, double to) { return from + part * (to - from); };
    return {mix(kMap[low].red, kMap[low + 1].red), mix(kMap[low].green, kMap[low + 1].green),
            mix(kMap[low].blue, kMap[low + 1].blue)};
}

std::string hex(const Color& color) {
    const auto byte = [](double value) { return static_cast<int>(std::lround(value)); };
    return fmt::format("#{:02x}{:02x}{:02x}", byte(color.red), byte(color.green), byte(color.blue));
}

bool is_light(const Color& color) {
    return 0.3 * color.red + 0.59 * color.green + 0.11 * color.blue > 140;
}

/// Of series `index` of `count`; the map's yellow end is too pale for lines.
std::string series_color(std::size_t index, std::size_t count) {
    return hex(viridis(
        count < 2 ? 0.35 : 0.82 * static_cast<double>(index) / static_cast<double>(count - 1)));
}

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

double width_of(const std::string& text) { return kLetter * static_cast<double>(text.size()); }

/// The picture being drawn; places are in pixels from the upper left corner.
class Svg {
public:
    Svg(double width, double height, const std::string& title) {
        body_ = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" "
                            "height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
                            "font-family=\"Helvetica, Arial, sans-serif\">\n"
                            "<title>{2}</title>\n"
                            "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
                            width, height, escape(title));
        text(16, 26, title, "start", kInk, 16);
    }
    void text(double x, double y, const std::string& content, const char* anchor,
              const char* color = kInk, int size = 13, bool upright = false) {
        const std::string turn =
            upright ? fmt::format(" transform=\"rotate(-90 {:.1f} {:.1f})\"", x, y) : "";
        body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" fill=\"{}\" "
                             "font-size=\"{}\"{}>{}</text>\n",
                             x, y, anchor, color, size, turn, escape(content));
    }
    void line(double x1, double y1, double x2, double y2, const std::string& color,
              double width = 1) {
        body_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" "
                             "stroke=\"{}\" stroke-width=\"{}\"/>\n",
                             x1, y1, x2, y2, color, width);
    }
    void box(double x, double y, double width, double height, const std::string& color) {
        body_ += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
                             "fill=\"{}\"/>\n",
                             x, y, width, height, color);
    }
    void path(const std::vector<std::pair<double, double>>& points, const std::string& color) {
        body_ += "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"" + color + "\" points=\"";
        for (const auto& [x, y] : points) body_ += fmt::format("{:.1f},{:.1f} ", x, y);
        body_ += "\"/>\n";
        for (const auto& [x, y] : points)
            body_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x,
                                 y, color);
    }
    std::string finish() const { return body_ + "</svg>\n"; }

private:
    std::string body_;
};

/// Values on their way to pixels, with round numbers marked.
class Axis {
public:
    Axis(double low, double high, bool logarithmic, double start, double end)
        : logarithmic_(logarithmic), start_(start), end_(end) {
        if (logarithmic_)
            choose_decades(low, high);
        else
            choose_steps(low, high);
    }
    double at(double value) const {
        const double low = scaled(ticks_.front());
        return start_ + (scaled(value) - low) / (scaled(ticks_.back()) - low) * (end_ - start_);
    }
    const std::vector<double>& ticks() const { return ticks_; }

private:
    double scaled(double value) const { return logarithmic_ ? std::log10(value) : value; }

    /// Ticks at 1, 2 and 5 times powers of ten, or at these powers alone where they are many.
    void choose_decades(double low, double high) {
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
    void choose_steps(double low, double high) {
        const double rough = std::max(high - low, 1e-12) / 5;
        const double power = std::pow(10.0, std::floor(std::log10(rough)));
        double step = 10 * power;
        for (const double factor : {5.0, 2.0, 1.0})
            if (factor * power >= rough) step = factor * power;
        const double first = std::floor(low / step);
        const double last = std::max(std::ceil(high / step - 1e-9), first + 1);
        for (double tick = first; tick <= last; ++tick) ticks_.push_back(tick * step);
    }

    bool logarithmic_;
    double start_;
    double end_;
    std::vector<double> ticks_; ///< from end to end
};

std::string number(double value) { return fmt::format("{:.6g}", value); }

struct Bounds {
    double low = INFINITY;
    double high = -INFINITY;
    void add(double value) {
        low = std::min(low, value);
        high = std::max(high, value);
    }
    void settle() {
        if (low > high) low = high = 1;
    }
};

std::vector<Series> drawable(const LineChart& chart) {
    std::vector<Series> series = chart.series;
    for (Series& one : series)
        std::erase_if(one.points, [&chart](const std::pair<double, double>& point) {
            return !std::isfinite(point.second) || (chart.log_y && point.second <= 0);
        });
    return series;
}

} // namespace

std::string draw_lines(const LineChart& chart) {
    constexpr double kLeft = 86;
    constexpr double kWidth = 520;
    constexpr double kHeight = 300;
    const std::vector<Series> all = drawable(chart);
    Bounds across;
    Bounds up;
    double legend = 0;
    for (const Series& series : all) {
        legend = std::max(legend, width_of(series.name));
        for (const auto& [x, y] : series.points) {
            across.add(x);
            up.add(y);
        }
    }
    across.settle();
    up.settle();
    Svg svg(kLeft + kWidth + 62 + legend, kTop + kHeight + 62, chart.title);
    const Axis x(across.low, across.high, false, kLeft, kLeft + kWidth);
    const Axis y(chart.log_y ? up.low : std::min(up.low, 0.0), up.high, chart.log_y, kTop + kHeight,
                 kTop);
    for (const double tick : y.ticks()) {
        svg.line(kLeft, y.at(tick), kLeft + kWidth, y.at(tick), "#e2e2e2");
        svg.text(kLeft - 8, y.at(tick) + 4, number(tick), "end");
    }
    for (const double tick : x.ticks()) {
        svg.line(x.at(tick), kTop + kHeight, x.at(tick), kTop + kHeight + 5, kInk);
        svg.text(x.at(tick), kTop + kHeight + 20, number(tick), "middle");
    }
    svg.line(kLeft, kTop + kHeight, kLeft + kWidth, kTop + kHeight, kInk);
    svg.text(kLeft + kWidth / 2, kTop + kHeight + 46, chart.x_label, "middle");
    svg.text(22, kTop + kHeight / 2, chart.y_label, "middle", kInk, 13, true);
    for (std::size_t index = 0; index < all.size(); ++index) {
        const std::string color = series_color(index, all.size());
        std::vector<std::pair<double, double>> points;
        for (const auto& [px, py] : all[index].points) points.emplace_back(x.at(px), y.at(py));
        svg.path(points, color);
        const double row = kTop + 8 + kLine * static_cast<double>(index);
        svg.line(kLeft + kWidth + 16, row, kLeft + kWidth + 38, row, color, 3);
        svg.text(kLeft + kWidth + 44, row + 4, all[index].name, "start");
    }
    return svg.finish();
}

std::string draw_heat_map(const HeatMap& map) {
    constexpr double kCellWidth = 46;
    constexpr double kCellHeight = 34;
    double left = 40;
    for (const auto& row : map.rows) left = std::max(left, 28 + width_of(row.first));
    const double width = kCellWidth * static_cast<double>(map.columns.size());
    const double bottom = kTop + kCellHeight * static_cast<double>(map.rows.size());
    const double scale = bottom + 64;
    Svg svg(std::max(left + width + 20, 32 + width_of(map.title) * 1.25), scale + 62, map.title);
    double y = kTop;
    for (const auto& [name, values] : map.rows) {
        svg.text(left - 10, y + kCellHeight / 2 + 4, name, "end");
        for (std::size_t column = 0; column < values.size(); ++column) {
            const double x = left + kCellWidth * static_cast<double>(column);
            const Color color = viridis(values[column]);
            svg.box(x, y, kCellWidth - 1, kCellHeight - 1, hex(color));
            svg.text(x + kCellWidth / 2, y + kCellHeight / 2 + 4,
                     fmt::format("{:.2f}", values[column]), "middle",
                     is_light(color) ? "#000000" : "#ffffff", 12);
        }
        y += kCellHeight;
    }
    for (std::size_t column = 0; column < map.columns.size(); ++column)
        svg.text(left + kCellWidth * (static_cast<double>(column) + 0.5), bottom + 18,
                 map.columns[column], "middle");
    svg.text(left + width / 2, bottom + 40, map.x_label, "middle");
    constexpr int kSteps = 32;
    const double bar = std::max(width, 4 * kCellWidth);
    for (int step = 0; step < kSteps; ++step)
        svg.box(left + bar * step / kSteps, scale, bar / kSteps + 0.5, 12,
                hex(viridis((step + 0.5) / kSteps)));
    svg.text(left, scale + 28, "0", "start");
    svg.text(left + bar, scale + 28, "1", "end");
    svg.text(left + bar / 2, scale + 28, map.value_label, "middle");
    return svg.finish();
}

std::string draw_bars(const BarChart& chart) {
    constexpr double kWidth = 420;
    constexpr double kBar = 30;
    double left = 40;
    Bounds values;
    values.add(0);
    for (const auto& [name, value] : chart.bars) {
        left = std::max(left, 28 + width_of(name));
        if (std::isfinite(value)) values.add(value);
    }
    const double bottom = kTop + kBar * static_cast<double>(chart.bars.size()) + 6;
    Svg svg(left + kWidth + 90, bottom + 58, chart.title);
    const Axis x(values.low, std::max(values.high, 1e-12), false, left, left + kWidth);
    for (const double tick : x.ticks()) {
        svg.line(x.at(tick), kTop, x.at(tick), bottom, "#e2e2e2");
        svg.text(x.at(tick), bottom + 18, number(tick), "middle");
    }
    for (std::size_t index = 0; index < chart.bars.size(); ++index) {
        const auto& [name, value] = chart.bars[index];
        const double y = kTop + 6 + kBar * static_cast<double>(index);
        const double end = x.at(std::isfinite(value) ? value : 0);
        svg.box(x.at(0), y, end - x.at(0), kBar - 8, series_color(index, chart.bars.size()));
        svg.text(left - 10, y + kBar / 2, name, "end");
        svg.text(end + 8, y + kBar / 2, fmt::format("{:.5f}", value), "start");
    }
    svg.line(x.at(0), kTop, x.at(0), bottom, kInk);
    svg.text(left + kWidth / 2, bottom + 42, chart.value_label, "middle");
    return svg.finish();
}

} // namespace innerkv::cli
