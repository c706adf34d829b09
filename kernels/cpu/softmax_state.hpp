#pragma once

#include <cmath>
#include <limits>

namespace cpnsa::cpu {

/// The running softmax of one row: sum over the keys seen so far of exp(score - reference). Natural logarithm.
///
/// A row that saw no key has log-sum-exp -infinity and output 0. A row whose keys all have score -infinity is
/// different: its output is 0 / 0, as in the formula. The reference is finite until a score of +infinity is seen, so
/// that (-infinity) - (-infinity) does not produce a NaN that the formula does not have.
template <class A>
class SoftmaxState {
 public:
  /// Updates the maximum by the largest score of some more keys; returns the factor by which the sums so far must be
  /// multiplied.
  A raise(A maximum) {
    seen_ = true;
    if (!(maximum > maximum_)) return A{1};
    const A before = reference();
    const bool first = maximum_ == -std::numeric_limits<A>::infinity();
    maximum_ = maximum;
    return first ? A{1} : std::exp(before - reference());
  }

  /// The number that is subtracted from the scores.
  A reference() const { return maximum_ == -std::numeric_limits<A>::infinity() ? A{0} : maximum_; }

  /// Multiplies the sum so far by `factor` and adds `sum`, the sum of exp(score - reference()) of the new keys.
  void add(A factor, A sum) { sum_ = sum_ * factor + sum; }

  bool empty() const { return !seen_; }
  A sum() const { return sum_; }
  A log_sum_exp() const { return seen_ ? reference() + std::log(sum_) : -std::numeric_limits<A>::infinity(); }

 private:
  A maximum_ = -std::numeric_limits<A>::infinity();
  A sum_ = 0;
  bool seen_ = false;
};

}  // namespace cpnsa::cpu
