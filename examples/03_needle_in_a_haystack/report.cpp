#include "report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

namespace needle {
namespace {

constexpr std::chrono::seconds pause{1};

std::string shown(double sum, std::int64_t count) {
  return count == 0 ? "-" : fmt::format("{:.4f}", sum / static_cast<double>(count));
}

}  // namespace

void Progress::step(const Lesson& lesson, std::int64_t step, Reach reach, double loss) {
  if (step == 1) {
    fmt::print("lesson {}: {}; sequences of {} tokens\n", ++lessons_, lesson.teaches, lesson.length);
    last_ = Clock::now();
  }
  Mean& mean = reach == Reach::all ? all_ : summaries_;
  mean.sum += loss;
  ++mean.count;
  const std::int64_t interval = std::max<std::int64_t>(1, lesson.steps / 10);
  if (step != lesson.steps && (step % interval != 0 || Clock::now() - last_ < pause)) return;
  fmt::print("  step {:5}/{}  nats a question: {}", step, lesson.steps, shown(all_.sum, all_.count));
  if (summaries_.count > 0) fmt::print(", by the summaries alone {}", shown(summaries_.sum, summaries_.count));
  fmt::print("\n");
  std::fflush(stdout);
  all_ = summaries_ = {};
  last_ = Clock::now();
}

void Progress::sequence(std::int64_t length, std::int64_t sequence, std::int64_t sequences) {
  if (sequence != sequences && Clock::now() - last_ < 5 * pause) return;
  fmt::print("asking at {:>4} tokens: {}/{} sequences\n", name_of_length(length), sequence, sequences);
  std::fflush(stdout);
  last_ = Clock::now();
}

void print_summary(const Options& options, const Grid& grid, double training_seconds, double evaluation_seconds) {
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<34}{}\n", name, value); };
  fmt::print("\n{}\n", to_table(grid));
  row("least of all cells", fmt::format("{} %", per_cent(grid.min_accuracy())));
  row("training", fmt::format("{:.1f} s", training_seconds));
  row("evaluation", fmt::format("{:.1f} s", evaluation_seconds));
  row("numbers", (options.out / numbers_name).string());
  row("picture", (options.out / picture_name).string());
}

}  // namespace needle
