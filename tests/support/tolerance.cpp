#include "tests/support/tolerance.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "tests/support/naive.hpp"

namespace cpnsa::test {
namespace {

double norm(const Values& values) {
  double square = 0;
  for (const double value : values) square += value * value;
  return std::sqrt(square);
}

double distance(const Values& a, const Values& b) {
  double square = 0;
  for (std::size_t i = 0; i < a.size(); ++i) square += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(square);
}

constexpr double roundings = 16;

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::f64: return 0x1p-53;
    case DType::f32: return 0x1p-24;
    case DType::bf16: return 0x1p-8;
    case DType::f16: return 0x1p-11;
  }
  return 0;
}

double greatest_difference(const std::vector<Values>& a, const std::vector<Values>& b) {
  double greatest = 0;
  for (std::size_t row = 0; row < a.size(); ++row)
    for (std::size_t i = 0; i < a[row].size(); ++i) greatest = std::max(greatest, std::abs(a[row][i] - b[row][i]));
  return greatest;
}

// Passes if the selection has the right number of blocks, ascending, causal, with the forced ones, and if no block left
// out has a true score above a selected one's by more than `slack`.
testing::AssertionResult is_selection(const Config& config, std::int64_t position, const std::int32_t* blocks,
                                      const Values& scores, double slack) {
  const std::int64_t own = position / config.select_block;
  const std::int64_t count = std::min(config.select_count, own + 1);
  std::set<std::int32_t> taken;
  for (std::int64_t slot = 0; slot < config.select_count; ++slot) {
    const std::int32_t block = blocks[slot];
    if (slot >= count ? block != -1 : block < 0 || block > own || (slot > 0 && block <= blocks[slot - 1]))
      return testing::AssertionFailure() << fmt::format("slot {} holds block {}", slot, block);
    if (slot < count) taken.insert(block);
  }
  double min_selected = HUGE_VAL, greatest_left = -HUGE_VAL;
  for (std::int32_t block = 0; block <= own; ++block) {
    const double score = scores[static_cast<std::size_t>(block)];
    const bool forced = count == own + 1 || naive::is_forced(config, block, own);
    if (forced && !taken.contains(block))
      return testing::AssertionFailure() << "forced block " << block << " is missing";
    if (!forced && taken.contains(block)) min_selected = std::min(min_selected, score);
    if (!taken.contains(block)) greatest_left = std::max(greatest_left, score);
  }
  if (min_selected < greatest_left - slack)
    return testing::AssertionFailure() << fmt::format("left out a block of score {}, took one of {}; slack {}",
                                                      greatest_left, min_selected, slack);
  return testing::AssertionSuccess();
}

}  // namespace

double relative_error(const Values& a, const Values& b) {
  return norm(b) > 0 ? distance(a, b) / norm(b) : norm(a);
}

double norm_of(const Tensors& tensors) {
  double square = 0;
  for_each_tensor([&](auto, const Values& values) { square += norm(values) * norm(values); }, tensors);
  return std::sqrt(square);
}

testing::AssertionResult within(const std::string& name, const Values& found, const Values& expected, double tolerance,
                                double floor) {
  if (found.size() != expected.size())
    return testing::AssertionFailure() << fmt::format("{}: {} elements, expected {}", name, found.size(),
                                                      expected.size());
  const double error = distance(found, expected), allowed = tolerance * norm(expected) + floor;
  if (error <= allowed) return testing::AssertionSuccess();
  std::size_t worst = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double difference = std::abs(found[i] - expected[i]);
    if (!(difference <= std::abs(found[worst] - expected[worst]))) worst = i;
    if (std::isnan(difference)) break;
  }
  return testing::AssertionFailure() << fmt::format(
             "{}: error {:.3g} above {:.3g}; element {} of {} is {}, expected {}", name, error, allowed, worst,
             found.size(), found[worst], expected[worst]);
}

double derived_tolerance(double plain_error, double factor, DType dtype, DType stored) {
  const double min_error = std::max(roundings * unit_roundoff(accumulate_dtype(dtype)), 2 * unit_roundoff(dtype));
  return std::max(factor * plain_error, min_error) + unit_roundoff(stored);
}

Truth::Truth(Problem problem, DType dtype, std::vector<std::int32_t> selected)
    : problem_(std::move(problem)),
      dtype_(dtype),
      selected_(std::move(selected)),
      truth_(oracle_forward(problem_, {dtype, false}, &selected_)),
      plain_(oracle_forward(problem_, {dtype, true}, &selected_)) {}

testing::AssertionResult Truth::selection_is_right() const {
  const Config& config = problem_.config;
  if (selected_.size() != truth_.selected.size()) return testing::AssertionFailure() << "wrong number of indices";
  // Each of the two compared scores may have twice the error of the plain implementation's.
  const double slack =
      2 * forward_factor * greatest_difference(plain_.scores, truth_.scores) +
      roundings * unit_roundoff(accumulate_dtype(dtype_)) * static_cast<double>(config.heads_per_group());
  for (std::int64_t row = 0; row < problem_.tokens(); ++row)
    for (std::int64_t head = 0; head < config.num_kv_heads; ++head) {
      const std::int64_t at = row * config.num_kv_heads + head;
      const std::int64_t position = row - document_of(problem_.cu_seqlens, row).begin;
      const testing::AssertionResult result =
          is_selection(config, position, selected_.data() + at * config.select_count,
                       truth_.scores[static_cast<std::size_t>(at)], slack);
      if (!result)
        return testing::AssertionFailure() << fmt::format("row {}, KV head {}: ", row, head) << result.message();
    }
  return testing::AssertionSuccess();
}

testing::AssertionResult Truth::out_agrees(const Values& out) const {
  return within("out", out, truth_.out,
                derived_tolerance(relative_error(plain_.out, truth_.out), forward_factor, dtype_, dtype_));
}

testing::AssertionResult Truth::gradients_agree(const Tensors& found, DType of_rows, DType of_parameters) const {
  if (!gradients_) {
    gradients_ = oracle_backward(problem_, {dtype_, false}, selected_);
    plain_gradients_ = oracle_backward(problem_, {dtype_, true}, selected_);
  }
  const double floor =
      (roundings * unit_roundoff(accumulate_dtype(dtype_)) + unit_roundoff(dtype_) / 64) * norm_of(*gradients_);
  testing::AssertionResult result = testing::AssertionSuccess();
  const auto compare = [&](DType stored) {
    return
        [&, stored](const schema::Tensor& tensor, const Values& gradient, const Values& expected, const Values& plain) {
          if (!result || gradient.empty()) return;
          const double tolerance = derived_tolerance(relative_error(plain, expected), backward_factor, dtype_, stored);
          result = within(tensor.gradient_name().str(), gradient, expected, tolerance, floor);
        };
  };
  for_each_token_tensor(compare(of_rows), found, *gradients_, *plain_gradients_);
  for_each_parameter(compare(of_parameters), found, *gradients_, *plain_gradients_);
  return result;
}

testing::AssertionResult Truth::gradients_agree(const Tensors& found) const {
  return gradients_agree(found, accumulate_dtype(dtype_), accumulate_dtype(dtype_));
}

}  // namespace cpnsa::test
