#pragma once

// The steps of the algorithm for one query or one summary, written directly from the formulas of docs/algorithm.md.
// Templates on the type of arithmetic: long double and double compute the truth, float with rounding to the storage
// type computes what a plain implementation in the layer's type does.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <numeric>
#include <vector>

#include "cpnsa/config.hpp"
#include "tests/support/numbers.hpp"

namespace cpnsa::test::naive {

template <class Real>
using Rows = std::vector<const Real*>;
template <class Real>
using MutableRows = std::vector<Real*>;

/// Dot product in eight independent sums, for speed: tests spend most of their time here.
template <class Real>
Real dot(const Real* a, const Real* b, std::int64_t count) {
  constexpr std::int64_t width = 8;
  Real sums[width] = {};
  std::int64_t i = 0;
  for (; i + width <= count; i += width)
    for (std::int64_t lane = 0; lane < width; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

template <class Real>
struct Attended {
  std::vector<Real> probabilities;
  std::vector<Real> out;
  Real log_sum_exp = -std::numeric_limits<Real>::infinity();
};

/// Softmax attention of one query over the given keys; output 0 and log-sum-exp -infinity without keys. Probabilities
/// are rounded to `storage` before they are multiplied by values, as in a matrix product of that type.
template <class Real>
Attended<Real> attend(const Real* query, const Rows<Real>& keys, const Rows<Real>& values, std::int64_t d_qk,
                      std::int64_t d_v, Real scale, DType storage, const Real* sink = nullptr) {
  Attended<Real> result;
  result.out.assign(static_cast<std::size_t>(d_v), 0);
  if (keys.empty()) return result;
  std::vector<Real> scores;
  for (const Real* key : keys) scores.push_back(scale * dot(query, key, d_qk));
  Real greatest = *std::max_element(scores.begin(), scores.end());
  if (sink) greatest = std::max(greatest, *sink);
  Real sum = sink ? std::exp(*sink - greatest) : 0;
  for (const Real score : scores) sum += std::exp(score - greatest);
  result.log_sum_exp = greatest + std::log(sum);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const Real probability = std::exp(scores[i] - greatest) / sum;
    result.probabilities.push_back(probability);
    const Real factor = round_to(storage, probability);
    for (std::int64_t c = 0; c < d_v; ++c) result.out[static_cast<std::size_t>(c)] += factor * values[i][c];
  }
  return result;
}

/// Adds the gradient of dot(attended.out, dout) to dquery, dkeys and dvalues; `attended` is the result of attend().
template <class Real>
void attend_backward(const Real* query, const Rows<Real>& keys, const Rows<Real>& values, std::int64_t d_qk,
                     std::int64_t d_v, Real scale, DType storage, const Attended<Real>& attended, const Real* dout,
                     Real* dquery, const MutableRows<Real>& dkeys, const MutableRows<Real>& dvalues) {
  const std::vector<Real>& probabilities = attended.probabilities;
  Real delta = 0;  // of the output, rounded as it is stored
  for (std::int64_t c = 0; c < d_v; ++c)
    delta += dout[c] * round_to(storage, attended.out[static_cast<std::size_t>(c)]);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const Real dscore = round_to(storage, probabilities[i] * (dot(dout, values[i], d_v) - delta));
    const Real factor = round_to(storage, probabilities[i]);
    for (std::int64_t c = 0; c < d_qk; ++c) {
      dquery[c] += scale * dscore * keys[i][c];
      dkeys[i][c] += scale * dscore * query[c];
    }
    for (std::int64_t c = 0; c < d_v; ++c) dvalues[i][c] += factor * dout[c];
  }
}

/// omega(i, j): overlap of summary i's tokens and block j's tokens, divided by s.
template <class Real>
Real overlap_weight(const Config& config, std::int64_t summary, std::int64_t block) {
  const std::int64_t begin = std::max(summary * config.compress_stride, block * config.select_block);
  const std::int64_t end =
      std::min(summary * config.compress_stride + config.compress_block, (block + 1) * config.select_block);
  return static_cast<Real>(std::max<std::int64_t>(0, end - begin)) / static_cast<Real>(config.compress_stride);
}

struct Selection {
  std::vector<std::int32_t> blocks;  ///< [n], ascending, padded with -1
  double margin;  ///< lowest selected score that is not forced, minus the highest score left out; infinity if all are
                  ///< selected
};

inline bool is_forced(const Config& config, std::int64_t block, std::int64_t own) {
  return block < config.init_blocks || block > own - config.local_blocks;
}

/// The selection of a query at position t from the scores of its causal blocks.
template <class Real>
Selection select(const Config& config, std::int64_t position, const std::vector<Real>& scores) {
  const std::int64_t own = position / config.select_block;
  std::vector<std::int32_t> order(static_cast<std::size_t>(own + 1));
  std::iota(order.begin(), order.end(), 0);
  const auto score = [&](std::int32_t block) {
    const Real value = scores[static_cast<std::size_t>(block)];
    return std::isnan(value) ? -std::numeric_limits<Real>::infinity() : value;
  };
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    const bool forced_a = is_forced(config, a, own), forced_b = is_forced(config, b, own);
    if (forced_a != forced_b) return forced_a;
    return !forced_a && score(a) != score(b) ? score(a) > score(b) : a < b;
  });
  Selection selection{{}, std::numeric_limits<double>::infinity()};
  const auto count = static_cast<std::size_t>(config.select_count);
  if (order.size() > count) {
    if (!is_forced(config, order[count - 1], own))
      selection.margin = static_cast<double>(score(order[count - 1]) - score(order[count]));
    order.resize(count);
  }
  std::sort(order.begin(), order.end());
  order.resize(count, -1);
  selection.blocks = order;
  return selection;
}

template <class Real>
Real activation(Activation kind, Real x) {
  switch (kind) {
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::relu: return x > 0 ? x : 0;
    case Activation::gelu:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi_v<Real>) * (x + Real(0.044715L) * x * x * x)));
  }
  return 0;
}

template <class Real>
Real activation_derivative(Activation kind, Real x) {
  switch (kind) {
    case Activation::silu: {
      const Real sigmoid = 1 / (1 + std::exp(-x));
      return sigmoid + x * sigmoid * (1 - sigmoid);
    }
    case Activation::relu: return x > 0 ? 1 : 0;
    case Activation::gelu: {
      const Real root = std::sqrt(2 / std::numbers::pi_v<Real>);
      const Real tanh = std::tanh(root * (x + Real(0.044715L) * x * x * x));
      return (1 + tanh) / 2 + x / 2 * (1 - tanh * tanh) * root * (1 + 3 * Real(0.044715L) * x * x);
    }
  }
  return 0;
}

/// One KV head's part of the parameters of a compressor, or of their gradients.
template <class Pointer>
struct GroupParameters {
  Pointer pos = nullptr, weight = nullptr, w1 = nullptr, b1 = nullptr, w2 = nullptr, b2 = nullptr;
};

/// The summary of the l token rows of one KV head, and its gradient.
template <class Real>
class Summary {
 public:
  Summary(const Config& config, std::int64_t dim, std::int64_t hidden, const GroupParameters<const Real*>& parameters,
          const Rows<Real>& tokens, DType storage)
      : config_(config), dim_(dim), hidden_(hidden), parameters_(parameters), storage_(storage) {
    for (std::size_t token = 0; token < tokens.size(); ++token)
      for (std::int64_t c = 0; c < dim; ++c) {
        const Real pos = parameters.pos ? parameters.pos[static_cast<std::int64_t>(token) * dim + c] : 0;
        input_.push_back(round_to(storage, tokens[token][c] + pos));
      }
    switch (config.compressor) {
      case Compressor::mean:
        value_.assign(static_cast<std::size_t>(dim), 0);
        for (std::size_t i = 0; i < input_.size(); ++i) value_[i % value_.size()] += input_[i];
        for (Real& value : value_) value = round_to(storage, value / static_cast<Real>(tokens.size()));
        break;
      case Compressor::linear: value_ = affine(input_, parameters.weight, nullptr, dim); break;
      case Compressor::mlp:
        preactivation_ = affine(input_, parameters.w1, parameters.b1, hidden);
        for (const Real x : preactivation_) activated_.push_back(round_to(storage, activation(config.activation, x)));
        value_ = affine(activated_, parameters.w2, parameters.b2, dim);
        break;
    }
  }

  const std::vector<Real>& value() const { return value_; }

  /// Adds the gradients of the tokens and the parameters, given the gradient `dvalue` of the summary.
  void backward(const std::vector<Real>& dvalue, const MutableRows<Real>& dtokens,
                const GroupParameters<Real*>& dparameters) const {
    std::vector<Real> dinput(input_.size(), 0);
    switch (config_.compressor) {
      case Compressor::mean:
        for (std::size_t i = 0; i < dinput.size(); ++i)
          dinput[i] = dvalue[i % dvalue.size()] / static_cast<Real>(dtokens.size());
        break;
      case Compressor::linear: affine_backward(input_, parameters_.weight, dvalue, dinput, dparameters.weight); break;
      case Compressor::mlp: {
        std::vector<Real> dhidden(activated_.size(), 0);
        affine_backward(activated_, parameters_.w2, dvalue, dhidden, dparameters.w2);
        add(dvalue, dparameters.b2);
        for (std::size_t i = 0; i < dhidden.size(); ++i)
          dhidden[i] = round_to(storage_, dhidden[i] * activation_derivative(config_.activation, preactivation_[i]));
        affine_backward(input_, parameters_.w1, dhidden, dinput, dparameters.w1);
        add(dhidden, dparameters.b1);
        break;
      }
    }
    for (std::size_t i = 0; i < dinput.size(); ++i)
      dtokens[i / static_cast<std::size_t>(dim_)][i % static_cast<std::size_t>(dim_)] += dinput[i];
    if (dparameters.pos) add(dinput, dparameters.pos);
  }

 private:
  // y = x W + b, W [x.size(), width]
  std::vector<Real> affine(const std::vector<Real>& x, const Real* weight, const Real* bias, std::int64_t width) const {
    std::vector<Real> y(static_cast<std::size_t>(width), 0);
    for (std::size_t j = 0; j < y.size(); ++j) {
      for (std::size_t i = 0; i < x.size(); ++i) y[j] += x[i] * weight[i * y.size() + j];
      y[j] = round_to(storage_, y[j] + (bias ? bias[j] : 0));
    }
    return y;
  }

  void affine_backward(const std::vector<Real>& x, const Real* weight, const std::vector<Real>& dy,
                       std::vector<Real>& dx, Real* dweight) const {
    for (std::size_t i = 0; i < x.size(); ++i)
      for (std::size_t j = 0; j < dy.size(); ++j) {
        dx[i] += dy[j] * weight[i * dy.size() + j];
        dweight[i * dy.size() + j] += x[i] * dy[j];
      }
  }

  static void add(const std::vector<Real>& source, Real* destination) {
    for (std::size_t i = 0; i < source.size(); ++i) destination[i] += source[i];
  }

  const Config& config_;
  std::int64_t dim_, hidden_;
  GroupParameters<const Real*> parameters_;
  DType storage_;
  std::vector<Real> input_, preactivation_, activated_, value_;
};

}  // namespace cpnsa::test::naive
