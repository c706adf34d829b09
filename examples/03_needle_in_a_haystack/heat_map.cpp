#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "grid.hpp"

namespace needle {
namespace {

constexpr double cell_width = 74, cell_height = 34, left = 118, top = 78, bottom = 66, legend = 100;
constexpr double margin = 16;
constexpr double character_width = 7.5;  // of sans-serif text of 14 pixels, at most on average

struct Colour {
  double red, green, blue;
};

// The colours of accuracy 0, 1/2 and 1.
constexpr std::array<Colour, 3> scale{Colour{200, 60, 60}, Colour{246, 218, 120}, Colour{70, 160, 95}};

std::string colour_of(double accuracy) {
  const double position = std::clamp(accuracy, 0.0, 1.0) * (scale.size() - 1);
  const auto below = std::min<std::size_t>(static_cast<std::size_t>(position), scale.size() - 2);
  const double share = position - static_cast<double>(below);
  const auto mixed = [&](double Colour::*part) {
    return static_cast<int>(std::lround(scale[below].*part * (1 - share) + scale[below + 1].*part * share));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", mixed(&Colour::red), mixed(&Colour::green), mixed(&Colour::blue));
}

std::string text(double x, double y, const char* anchor, const std::string& content, const char* attributes = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, attributes,
                     content);
}

std::string rectangle(double x, double y, double width, double height, const std::string& colour) {
  return fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\" stroke=\"white\"/>\n", x, y,
      width, height, colour);
}

std::string cells(const Grid& grid) {
  std::string svg;
  for (std::size_t length = 0; length < grid.lengths.size(); ++length)
    for (int band = 0; band < grid.bands; ++band) {
      const double x = left + cell_width * static_cast<double>(length), y = top + cell_height * band;
      const double accuracy = grid.accuracy(length, band);
      svg += rectangle(x, y, cell_width, cell_height, colour_of(accuracy));
      svg += text(x + cell_width / 2, y + cell_height / 2 + 5, "middle", per_cent(accuracy));
    }
  return svg;
}

std::string axes(const Grid& grid) {
  const double width = cell_width * static_cast<double>(grid.lengths.size()), height = cell_height * grid.bands;
  std::string svg;
  for (std::size_t length = 0; length < grid.lengths.size(); ++length)
    svg += text(left + cell_width * (static_cast<double>(length) + 0.5), top + height + 20, "middle",
                name_of_length(grid.lengths[length]));
  for (int band = 0; band < grid.bands; ++band)
    svg += text(left - 10, top + cell_height * (band + 0.5) + 5, "end",
                fmt::format("{:.0f} \u2013 {:.0f}", 100.0 * band / grid.bands, 100.0 * (band + 1) / grid.bands));
  svg += text(left + width / 2, top + height + 48, "middle", "tokens of the sequence");
  svg += fmt::format(
      "<text transform=\"translate(26 {:.1f}) rotate(-90)\" text-anchor=\"middle\">depth of the needle (%)</text>\n",
      top + height / 2);
  return svg;
}

std::string subtitle(const Grid& grid) {
  const auto [least, most] = std::minmax_element(grid.asked.begin(), grid.asked.end());
  const std::string asked = *least == *most ? fmt::format("{}", *least) : fmt::format("{} \u2013 {}", *least, *most);
  return fmt::format("trained on at most {} tokens; {} needles asked for in a cell",
                     name_of_length(grid.max_trained_length), asked);
}

std::string headings(const Grid& grid) {
  return text(margin, 30, "start", "Needle in a haystack: values retrieved (%)", "font-size=\"17\"") +
         text(margin, 54, "start", subtitle(grid), "fill=\"#555555\"");
}

std::string colour_bar(const Grid& grid) {
  constexpr int steps = 50;
  const double x = left + cell_width * static_cast<double>(grid.lengths.size()) + 24, height = cell_height * grid.bands;
  std::string svg;
  for (int i = 0; i < steps; ++i)
    svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.2f}\" width=\"16\" height=\"{:.2f}\" fill=\"{}\"/>\n", x,
                       top + height * i / steps, height / steps + 0.5, colour_of(1 - (i + 0.5) / steps));
  for (const int percent : {0, 50, 100})
    svg += text(x + 22, top + height * (1 - percent / 100.0) + 5, "start", fmt::format("{} %", percent));
  return svg;
}

}  // namespace

std::string to_heat_map(const Grid& grid) {
  const double headings_width = 2 * margin + character_width * static_cast<double>(subtitle(grid).size());
  const double width = std::max(left + cell_width * static_cast<double>(grid.lengths.size()) + legend, headings_width);
  const double height = top + cell_height * grid.bands + bottom;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 {0:g} {1:g}\" "
      "font-family=\"sans-serif\" font-size=\"14\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height);
  return svg + headings(grid) + cells(grid) + axes(grid) + colour_bar(grid) + "</svg>\n";
}

}  // namespace needle
