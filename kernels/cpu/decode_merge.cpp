// The ops that merge the ranks' parts of a decoding step.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "kernels/cpu/decode_schedule.hpp"
#include "kernels/cpu/gate.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/selection_rule.hpp"

namespace cpnsa::cpu {
namespace {

template <class A>
constexpr A nothing_seen = -std::numeric_limits<A>::infinity();

template <class Item>
const Item* of_rank(const RankParts& parts, std::int64_t rank) {
  return reinterpret_cast<const Item*>(static_cast<const std::byte*>(parts.first) + rank * parts.stride);
}

/// The log-sum-exp over the ranks' parts at index `i`.
template <class A>
A merged_sum(const RankParts& parts, std::int64_t ranks, std::int64_t i) {
  A maximum = nothing_seen<A>;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const A part = of_rank<A>(parts, rank)[i];
    if (part > maximum || std::isnan(part)) maximum = part;
  }
  if (!std::isfinite(maximum)) return maximum;
  A sum{0};
  for (std::int64_t rank = 0; rank < ranks; ++rank) sum += std::exp(of_rank<A>(parts, rank)[i] - maximum);
  return maximum + std::log(sum);
}

/// Calls function(row) for every row of the step that belongs to a sequence.
template <class Function>
void for_each_row(const DecodeContext& a, Function&& function) {
  for (const DecodeSequence& sequence : sequences_of(a))
    for (std::int64_t row = sequence.row; row < sequence.row + sequence.rows; ++row) function(row, sequence);
}

/// Calls function(pair) with the index of every (row, query head).
template <class Function>
void for_each_pair(const DecodeContext& a, Function&& function) {
  const std::int64_t heads = a.config->num_q_heads;
  for_each_row(a, [&](std::int64_t row, const DecodeSequence&) {
    for (std::int64_t pair = row * heads; pair < (row + 1) * heads; ++pair) function(pair);
  });
}

template <class A>
void add_scaled(const A* source, A factor, std::vector<A>& sum) {
  for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += factor * source[c];
}

/// sum += gate * the branch's output, merged from the ranks' parts. Returns its log-sum-exp.
template <class A>
A add_branch(const RankParts& outputs, const RankParts& sums, std::int64_t ranks, std::int64_t pair, A gate,
             std::vector<A>& sum) {
  const A all = merged_sum<A>(sums, ranks, pair);
  const auto d_v = static_cast<std::int64_t>(sum.size());
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const A part = of_rank<A>(sums, rank)[pair];
    if (part == nothing_seen<A>) continue;
    add_scaled(of_rank<A>(outputs, rank) + pair * d_v, gate * std::exp(part - all), sum);
  }
  return all;
}

template <class T>
void merge_parts(const DecodeMergeParts& a) {
  using A = Arithmetic<T>;
  const std::int64_t d_v = a.config->head_dim_v;
  std::vector<A> sum(static_cast<std::size_t>(d_v));
  for_each_pair(a, [&](std::int64_t pair) {
    const T* const gate = static_cast<const T*>(a.gate) + 3 * pair;
    const auto factor = [&](int branch) { return gate_value(a.config->gate, widen(gate[branch])); };
    std::fill(sum.begin(), sum.end(), A{0});
    if (a.o_cmp) add_scaled(static_cast<const A*>(a.o_cmp) + pair * d_v, factor(0), sum);
    for (std::int64_t rank = 0; a.weighted.first && rank < a.ranks; ++rank)
      add_scaled(of_rank<A>(a.weighted, rank) + pair * d_v, A{1}, sum);
    const A slc = add_branch(a.o_slc, a.lse_slc, a.ranks, pair, factor(1), sum);
    if (a.all_lse_slc) static_cast<A*>(a.all_lse_slc)[pair] = slc;
    if (a.o_win.first) {
      const A win = add_branch(a.o_win, a.lse_win, a.ranks, pair, factor(2), sum);
      if (a.all_lse_win) static_cast<A*>(a.all_lse_win)[pair] = win;
    }
    T* const out = static_cast<T*>(a.out) + pair * d_v;
    for (std::int64_t c = 0; c < d_v; ++c) out[c] = narrow<T>(sum[static_cast<std::size_t>(c)]);
  });
}

template <class T>
void weigh_parts(const DecodeWeighParts& a) {
  using A = Arithmetic<T>;
  const std::int64_t d_v = a.config->head_dim_v;
  std::vector<A> sum(static_cast<std::size_t>(d_v));
  for_each_pair(a, [&](std::int64_t pair) {
    const T* const gate = static_cast<const T*>(a.gate) + 3 * pair;
    std::fill(sum.begin(), sum.end(), A{0});
    const auto add = [&](const void* out, const void* own, const void* all, int branch) {
      const A part = static_cast<const A*>(own)[pair];
      if (part == nothing_seen<A>) return;
      const A factor =
          gate_value(a.config->gate, widen(gate[branch])) * std::exp(part - static_cast<const A*>(all)[pair]);
      add_scaled(static_cast<const A*>(out) + pair * d_v, factor, sum);
    };
    add(a.o_cmp, a.lse_cmp, a.all_lse_cmp, 0);
    add(a.o_win, a.lse_win, a.all_lse_win, 2);
    std::copy(sum.begin(), sum.end(), static_cast<A*>(a.out) + pair * d_v);
  });
}

template <class A>
void merge_candidates(const DecodeMergeCandidates& a) {
  const std::int64_t groups = a.config->num_kv_heads, count = a.config->select_count;
  BestBlocks<A> best;
  for_each_row(a, [&](std::int64_t row, const DecodeSequence& sequence) {
    const SelectionRule rule(*a.config, sequence.position + row - sequence.row);
    for (std::int64_t item = row * groups * count; item < (row + 1) * groups * count; item += count) {
      best.start(rule);
      for (std::int64_t rank = 0; rank < a.ranks; ++rank)
        for (std::int64_t i = item; i < item + count; ++i) {
          const std::int64_t block = of_rank<std::int32_t>(a.candidates, rank)[i];
          if (block >= 0) best.offer({of_rank<A>(a.scores, rank)[i], block});
        }
      best.write(a.selected + item, count);
    }
  });
}

}  // namespace

template <>
void run_op(const DecodeMergeSums& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) {
    using A = Arithmetic<T>;
    for_each_pair(
        a, [&](std::int64_t pair) { static_cast<A*>(a.log_sum_exp)[pair] = merged_sum<A>(a.parts, a.ranks, pair); });
  });
}

template <>
void run_op(const DecodeMergeCandidates& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { merge_candidates<Arithmetic<T>>(a); });
}

template <>
void run_op(const DecodeWeighParts& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { weigh_parts<T>(a); });
}

template <>
void run_op(const DecodeMergeParts& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { merge_parts<T>(a); });
}

}  // namespace cpnsa::cpu
