#include "plot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

namespace language_model {
namespace {

constexpr double width = 860, height = 500, left = 70, right = 24, top = 32, bottom = 60;
constexpr std::array<const char*, 6> colours{"#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"};

// Ticks of an axis from 0 to at least `max`: a round distance between them, and the position of the last.
struct Axis {
  explicit Axis(double max, double min_tick) {
    const double power = std::pow(10.0, std::floor(std::log10(std::max(max / 5, min_tick))));
    tick = power;
    for (const double factor : {2.0, 5.0, 10.0})
      if (max / tick > 8) tick = factor * power;
    ticks = std::max(1, static_cast<int>(std::ceil(max / tick)));
    end = tick * ticks;
  }
  double tick, end;
  int ticks;
};

struct Frame {
  Axis steps, loss;
  double x(double step) const { return left + (width - left - right) * step / steps.end; }
  double y(double nats) const { return height - bottom - (height - top - bottom) * nats / loss.end; }
};

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '&')
      result += "&amp;";
    else if (c == '<')
      result += "&lt;";
    else if (c == '>')
      result += "&gt;";
    else
      result += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return result;
}

std::string label(double x, double y, const char* attributes, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", x, y, attributes, escaped(text));
}

std::string line(double x1, double y1, double x2, double y2, const char* attributes) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", x1, y1, x2, y2,
                     attributes);
}

std::string axes(const Frame& frame) {
  constexpr const char* grid = "stroke=\"#e4e4e4\"";
  constexpr const char* axis = "stroke=\"#333333\"";
  std::string svg;
  for (int i = 0; i <= frame.steps.ticks; ++i) {
    const double step = i * frame.steps.tick;
    if (i > 0) svg += line(frame.x(step), frame.y(0), frame.x(step), top, grid);
    svg += label(frame.x(step), height - bottom + 20, "text-anchor=\"middle\"", fmt::format("{:g}", step));
  }
  for (int i = 0; i <= frame.loss.ticks; ++i) {
    const double nats = i * frame.loss.tick;
    if (i > 0) svg += line(left, frame.y(nats), width - right, frame.y(nats), grid);
    svg += label(left - 10, frame.y(nats) + 5, "text-anchor=\"end\"", fmt::format("{:g}", nats));
  }
  svg += line(left, frame.y(0), width - right, frame.y(0), axis);
  svg += line(left, frame.y(0), left, top, axis);
  svg += label((left + width - right) / 2, height - 16, "text-anchor=\"middle\"", "step");
  svg += fmt::format(
      "<text transform=\"translate(22 {:.1f}) rotate(-90)\" text-anchor=\"middle\">loss (nats per byte)"
      "</text>\n",
      (top + height - bottom) / 2);
  return svg;
}

std::string path_of(std::span<const double> losses, const Frame& frame, const std::string& stroke) {
  std::string points;
  for (std::size_t i = 0; i < losses.size(); ++i)
    if (std::isfinite(losses[i]))
      points += fmt::format("{:.1f},{:.1f} ", frame.x(static_cast<double>(i + 1)), frame.y(losses[i]));
  return fmt::format("<polyline fill=\"none\" {} stroke-linejoin=\"round\" points=\"{}\"/>\n", stroke, points);
}

// For each step the mean of the last `steps` losses, fewer at the beginning.
std::vector<double> running_means(std::span<const double> losses, std::size_t steps) {
  std::vector<double> means;
  for (std::size_t end = 1; end <= losses.size(); ++end) {
    const std::size_t begin = end - std::min(end, steps);
    means.push_back(std::accumulate(losses.begin() + static_cast<std::ptrdiff_t>(begin),
                                    losses.begin() + static_cast<std::ptrdiff_t>(end), 0.0) /
                    static_cast<double>(end - begin));
  }
  return means;
}

// The losses of single steps vary with the text, so a long curve is drawn as its mean of 20 steps over the pale steps.
std::string lines_of(const Curve& curve, const Frame& frame, const char* colour) {
  constexpr std::size_t long_curve = 100, mean_of = 20;
  if (curve.losses.size() < long_curve)
    return path_of(curve.losses, frame, fmt::format("stroke=\"{}\" stroke-width=\"1.6\"", colour));
  return path_of(curve.losses, frame, fmt::format("stroke=\"{}\" stroke-width=\"1\" stroke-opacity=\"0.3\"", colour)) +
         path_of(running_means(curve.losses, mean_of), frame, fmt::format("stroke=\"{}\" stroke-width=\"2\"", colour));
}

}  // namespace

std::string plot(std::span<const Curve> curves, double unigram_entropy, const std::string& title) {
  std::size_t steps = 1;
  double max = unigram_entropy;
  for (const Curve& curve : curves) {
    steps = std::max(steps, curve.losses.size());
    for (const double loss : curve.losses)
      if (std::isfinite(loss)) max = std::max(max, loss);
  }
  const Frame frame{Axis(static_cast<double>(steps), 1.0), Axis(max, 1e-3)};

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 {0:g} {1:g}\" "
      "font-family=\"sans-serif\" font-size=\"14\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height);
  svg += label(width / 2, 18, "text-anchor=\"middle\" font-size=\"13\" font-weight=\"bold\"", title);
  svg += axes(frame);
  svg += line(left, frame.y(unigram_entropy), width - right, frame.y(unigram_entropy),
              "stroke=\"#555555\" stroke-width=\"1.4\" stroke-dasharray=\"7 5\"");
  for (std::size_t i = 0; i < curves.size(); ++i) svg += lines_of(curves[i], frame, colours[i % colours.size()]);

  const double legend = width - right - 330;
  double y = top + 22;
  svg += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"322\" height=\"{:.1f}\" fill=\"white\" "
      "fill-opacity=\"0.85\" stroke=\"#cccccc\"/>\n",
      legend, top + 4, 22.0 * static_cast<double>(curves.size() + 1) + 8);
  const auto entry = [&](const std::string& attributes, const std::string& text) {
    svg += line(legend + 10, y - 5, legend + 44, y - 5, attributes.c_str());
    svg += label(legend + 54, y, "", text);
    y += 22;
  };
  for (std::size_t i = 0; i < curves.size(); ++i)
    entry(fmt::format("stroke=\"{}\" stroke-width=\"2\"", colours[i % colours.size()]), curves[i].name);
  entry("stroke=\"#555555\" stroke-width=\"1.4\" stroke-dasharray=\"7 5\"",
        fmt::format("unigram entropy of the text, {:.2f}", unigram_entropy));
  return svg + "</svg>\n";
}

}  // namespace language_model
