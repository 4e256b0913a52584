// SPDX-License-Identifier: Apache-2.0
// The few parts of a picture that charts are made of, as SVG text.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace innerkv::cli {

using Point = std::pair<double, double>;

inline constexpr const char* kInk = "#333333";

/// The picture being drawn; places are in pixels from the upper left corner.
class Svg {
public:
    Svg(double width, double height, const std::string& title);
    void text(double x, double y, const std::string& content, const char* anchor,
              const char* color = kInk, int size = 13);
    /// Reads from bottom to top.
    void upright_text(double x, double y, const std::string& content);
    void line(Point from, Point to, const std::string& color, double width = 1);
    void box(double x, double y, double width, double height, const std::string& color);
    /// A line through points, each marked.
    void path(const std::vector<Point>& points, const std::string& color);
    std::string finish() const { return body_ + "</svg>\n"; }

private:
    std::string body_;
};

/// The colour of a share from 0 to 1.
std::string viridis(double share);

/// Values on their way to pixels, `start` to `end`, with round numbers marked.
class Axis {
public:
    Axis(double low, double high, bool logarithmic, double start, double end);
    double at(double value) const;
    const std::vector<double>& ticks() const { return ticks_; }

private:
    double scaled(double value) const;
    void choose_decades(double low, double high);
    void choose_steps(double low, double high);

    bool logarithmic_;
    double start_;
    double end_;
    std::vector<double> ticks_; ///< from end to end
};

} // namespace innerkv::cli
