// SPDX-License-Identifier: Apache-2.0
#include "chart.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "svg.h"

namespace innerkv::cli {
namespace {

constexpr double kLetter = 7.2; ///< widest mean width of a letter at the size of labels
constexpr double kLine = 20;    ///< between lines of labels
constexpr double kTop = 46;     ///< under the title

/// Of series `index` of `count`; the map's yellow end is too pale for lines.
std::string series_color(std::size_t index, std::size_t count) {
    return viridis(count < 2 ? 0.35
                             : 0.82 * static_cast<double>(index) / static_cast<double>(count - 1));
}

double width_of(const std::string& text) { return kLetter * static_cast<double>(text.size()); }

/// A name as long as a picture has room for: bits of each layer can be longer.
std::string label_of(const std::string& name) {
    constexpr std::size_t kMost = 40;
    constexpr std::size_t kPart = 18;
    if (name.size() <= kMost) return name;
    return name.substr(0, kPart) + "..." + name.substr(name.size() - kPart);
}

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
    for (Series& one : series) {
        one.name = label_of(one.name);
        std::erase_if(one.points, [&chart](const Point& point) {
            return !std::isfinite(point.second) || (chart.log_y && point.second <= 0);
        });
    }
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
    const Axis x(std::min(across.low, 0.0), across.high, false, kLeft, kLeft + kWidth);
    const Axis y(chart.log_y ? up.low : std::min(up.low, 0.0), up.high, chart.log_y, kTop + kHeight,
                 kTop);
    for (const double tick : y.ticks()) {
        svg.line({kLeft, y.at(tick)}, {kLeft + kWidth, y.at(tick)}, "#e2e2e2");
        svg.text(kLeft - 8, y.at(tick) + 4, number(tick), "end");
    }
    for (const double tick : x.ticks()) {
        svg.line({x.at(tick), kTop + kHeight}, {x.at(tick), kTop + kHeight + 5}, kInk);
        svg.text(x.at(tick), kTop + kHeight + 20, number(tick), "middle");
    }
    svg.line({kLeft, kTop + kHeight}, {kLeft + kWidth, kTop + kHeight}, kInk);
    svg.text(kLeft + kWidth / 2, kTop + kHeight + 46, chart.x_label, "middle");
    svg.upright_text(22, kTop + kHeight / 2, chart.y_label);
    for (std::size_t index = 0; index < all.size(); ++index) {
        const std::string color = series_color(index, all.size());
        std::vector<Point> points;
        for (const auto& [px, py] : all[index].points) points.emplace_back(x.at(px), y.at(py));
        svg.path(points, color);
        const double row = kTop + 8 + kLine * static_cast<double>(index);
        svg.line({kLeft + kWidth + 16, row}, {kLeft + kWidth + 38, row}, color, 3);
        svg.text(kLeft + kWidth + 44, row + 4, all[index].name, "start");
    }
    return svg.finish();
}

std::string draw_heat_map(const HeatMap& map) {
    constexpr double kCellWidth = 46;
    constexpr double kCellHeight = 34;
    double left = 40;
    for (const auto& row : map.rows) left = std::max(left, 28 + width_of(label_of(row.first)));
    const double width = kCellWidth * static_cast<double>(map.columns.size());
    const double bottom = kTop + kCellHeight * static_cast<double>(map.rows.size());
    const double scale = bottom + 64;
    Svg svg(std::max(left + width + 20, 32 + width_of(map.title) * 1.25), scale + 62, map.title);
    double y = kTop;
    for (const auto& [name, values] : map.rows) {
        svg.text(left - 10, y + kCellHeight / 2 + 4, label_of(name), "end");
        for (std::size_t column = 0; column < values.size(); ++column) {
            const double x = left + kCellWidth * static_cast<double>(column);
            svg.box(x, y, kCellWidth - 1, kCellHeight - 1, viridis(values[column]));
            svg.text(x + kCellWidth / 2, y + kCellHeight / 2 + 4,
                     fmt::format("{:.2f}", values[column]), "middle",
                     values[column] > 0.6 ? "#000000" : "#ffffff", 12);
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
                viridis((step + 0.5) / kSteps));
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
        left = std::max(left, 28 + width_of(label_of(name)));
        if (std::isfinite(value)) values.add(value);
    }
    const double bottom = kTop + kBar * static_cast<double>(chart.bars.size()) + 6;
    Svg svg(left + kWidth + 90, bottom + 58, chart.title);
    const Axis x(values.low, std::max(values.high, 1e-12), false, left, left + kWidth);
    for (const double tick : x.ticks()) {
        svg.line({x.at(tick), kTop}, {x.at(tick), bottom}, "#e2e2e2");
        svg.text(x.at(tick), bottom + 18, number(tick), "middle");
    }
    for (std::size_t index = 0; index < chart.bars.size(); ++index) {
        const auto& [name, value] = chart.bars[index];
        const double y = kTop + 6 + kBar * static_cast<double>(index);
        const double end = x.at(std::isfinite(value) ? value : 0);
        svg.box(x.at(0), y, end - x.at(0), kBar - 8, series_color(index, chart.bars.size()));
        svg.text(left - 10, y + kBar / 2, label_of(name), "end");
        svg.text(end + 8, y + kBar / 2, fmt::format("{:.5f}", value), "start");
    }
    svg.line({x.at(0), kTop}, {x.at(0), bottom}, kInk);
    svg.text(left + kWidth / 2, bottom + 42, chart.value_label, "middle");
    return svg.finish();
}

} // namespace innerkv::cli
