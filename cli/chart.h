// SPDX-License-Identifier: Apache-2.0
// Charts as SVG: lines, a heat map, bars.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace innerkv::cli {

struct Series {
    std::string name;
    std::vector<std::pair<double, double>> points;
};

struct LineChart {
    std::string title;
    std::string x_label;
    std::string y_label;
    bool log_y = false; ///< points that are not above 0 are then left out
    std::vector<Series> series;
};

struct HeatMap {
    std::string title;
    std::string x_label;
    std::string value_label; ///< values are shares, 0 to 1
    std::vector<std::string> columns;
    std::vector<std::pair<std::string, std::vector<double>>> rows;
};

struct BarChart {
    std::string title;
    std::string value_label;
    std::vector<std::pair<std::string, double>> bars;
};

std::string draw_lines(const LineChart& chart);
std::string draw_heat_map(const HeatMap& map);
std::string draw_bars(const BarChart& chart);

} // namespace innerkv::cli
