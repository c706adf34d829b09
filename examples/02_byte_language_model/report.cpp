#include "report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <numbers>
#include <numeric>

#include "checkpoint.hpp"

namespace language_model {
namespace {

// The mean loss of the last steps; single steps vary with their text.
double final_loss(const Curve& curve) {
  const std::size_t count = std::min<std::size_t>(20, curve.losses.size());
  return std::accumulate(curve.losses.end() - static_cast<std::ptrdiff_t>(count), curve.losses.end(), 0.0) /
         static_cast<double>(count);
}

std::string in_both_units(double nats) {
  return fmt::format("{:.4f} nats  {:.3f} bits/byte", nats, nats / std::numbers::ln2);
}

}  // namespace

void Progress::step(std::int64_t index, const StepReport& report) {
  sum_.loss += report.loss;
  sum_.attention_bytes += report.attention_bytes;
  sum_.gradient_bytes += report.gradient_bytes;
  sum_.blocks_fetched += report.blocks_fetched;
  ++steps_;
  const std::int64_t interval = std::max<std::int64_t>(1, options_.steps / 20);
  if (index != 1 && index % interval != 0 && index != options_.steps) return;

  const double steps = static_cast<double>(steps_);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  fmt::print(
      "step {:4}/{}  loss {}  {:6.0f} tokens/s  a step: {:.1f} MB for attention, {:.1f} for gradients, {:.0f} "
      "blocks fetched\n",
      index, options_.steps, in_both_units(sum_.loss / steps), steps * static_cast<double>(options_.tokens) / seconds,
      sum_.attention_bytes / steps / 1e6, sum_.gradient_bytes / steps / 1e6, sum_.blocks_fetched / steps);
  std::fflush(stdout);
  sum_ = {};
  steps_ = 0;
  begin_ = Clock::now();
}

void print_summary(const Options& options, const Text& text, const Curve& curve, double seconds,
                   std::size_t peak_bytes) {
  const std::filesystem::path folder(options.out);
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<34}{}\n", name, value); };
  fmt::print("\n");
  row("text", fmt::format("{} ({} bytes)", text.path(), text.size()));
  row("unigram entropy of the text", in_both_units(text.unigram_entropy()));
  row("final loss (mean of the last 20)", in_both_units(final_loss(curve)));
  row("time", fmt::format("{:.1f} s", seconds));
  row("most memory of a rank's device", fmt::format("{:.1f} MB", static_cast<double>(peak_bytes) / 1e6));
  row("loss curve", (folder / "loss.csv").string());
  row("model", (folder / checkpoint_name).string());
  row("picture", (folder / "loss.svg").string());
}

}  // namespace language_model
