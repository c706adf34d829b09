#include "tests/support/oracle.hpp"

#include "tests/support/naive.hpp"

namespace cpnsa::test {
namespace {

using naive::attend;
using naive::Attended;

enum Branch { compressed, selected_blocks, window, branch_count };

template <class Real>
using Reals = std::vector<Real>;

template <class Real>
Reals<Real> widen(const Values& values) {
  return {values.begin(), values.end()};
}

template <class Real>
Values narrow(const Reals<Real>& values) {
  return {values.begin(), values.end()};
}

template <class Real>
class Oracle {
 public:
  Oracle(const Problem& problem, DType storage)
      : problem_(problem),
        config_(problem.config),
        storage_(storage),
        scale_(problem.config.softmax_scale ? static_cast<Real>(*problem.config.softmax_scale)
                                            : 1 / std::sqrt(static_cast<Real>(problem.config.head_dim_qk))) {
    for_each_tensor([](auto, Reals<Real>& to, const Values& from) { to = widen<Real>(from); }, inputs_, problem.inputs);
    if (problem.shared_k) inputs_.k.slc = inputs_.k.win = inputs_.k.cmp;
    if (problem.shared_v) inputs_.v.slc = inputs_.v.win = inputs_.v.cmp;
    std::int64_t summaries = 0;
    for (std::size_t document = 1; document < problem.cu_seqlens.size(); ++document) {
      first_summary_.push_back(summaries);
      summaries += config_.summaries_of(problem.cu_seqlens[document] - problem.cu_seqlens[document - 1]);
    }
    summaries_k_.resize(static_cast<std::size_t>(summaries * config_.num_kv_heads * config_.head_dim_qk));
    summaries_v_.resize(static_cast<std::size_t>(summaries * config_.num_kv_heads * config_.head_dim_v));
  }

  OracleForward forward(const std::vector<std::int32_t>* selected) {
    compress();
    OracleForward result;
    result.summaries_k = narrow(summaries_k_);
    result.summaries_v = narrow(summaries_v_);
    for_each_row([&](std::int64_t row, std::int64_t position, const Range& document) {
      for (std::int64_t head = 0; head < config_.num_kv_heads; ++head)
        select_for(row, position, document, head, result);
      const std::vector<std::int32_t>& chosen = selected ? *selected : result.selected;
      for (std::int64_t head = 0; head < config_.num_q_heads; ++head)
        forward_of(row, position, document, head, chosen, result);
    });
    return result;
  }

  Tensors backward(const std::vector<std::int32_t>& selected, SummaryGradients* summaries) {
    compress();
    for_each_tensor([](auto, Reals<Real>& gradient, const Reals<Real>& input) { gradient.assign(input.size(), 0); },
                    gradients_, inputs_);
    dsummaries_k_.assign(summaries_k_.size(), 0);
    dsummaries_v_.assign(summaries_v_.size(), 0);
    dout_ = widen<Real>(problem_.dout);
    for_each_row([&](std::int64_t row, std::int64_t position, const Range& document) {
      for (std::int64_t head = 0; head < config_.num_q_heads; ++head)
        backward_of(row, position, document, head, selected);
    });
    if (!problem_.rotation_cos.empty()) rotate(dsummaries_k_, -1, DType::f64);
    compress_backward();
    if (summaries) *summaries = {narrow(dsummaries_k_), narrow(dsummaries_v_)};
    if (problem_.shared_k) sum_branches(gradients_.k);
    if (problem_.shared_v) sum_branches(gradients_.v);
    Tensors result;
    for_each_tensor([](auto, Values& to, const Reals<Real>& from) { to = narrow(from); }, result, gradients_);
    return result;
  }

 private:
  struct Range {
    std::int64_t begin, length, first_summary, summaries;
  };

  // Pointers to the keys and values of a branch that one query head reads, and to their gradients.
  struct Attention {
    naive::Rows<Real> keys, values;
    naive::MutableRows<Real> dkeys, dvalues;
  };

  template <class Visit>
  void for_each_document(Visit visit) const {
    const auto& bounds = problem_.cu_seqlens;
    for (std::size_t i = 1; i < bounds.size(); ++i)
      visit(Range{bounds[i - 1], bounds[i] - bounds[i - 1], first_summary_[i - 1],
                  config_.summaries_of(bounds[i] - bounds[i - 1])});
  }

  template <class Visit>
  void for_each_row(Visit visit) const {
    for_each_document([&](const Range& document) {
      for (std::int64_t position = 0; position < document.length; ++position)
        visit(document.begin + position, position, document);
    });
  }

  // Calls visit(row of the summaries, KV head, first token row) for every summary.
  template <class Visit>
  void for_each_summary(Visit visit) const {
    for_each_document([&](const Range& document) {
      for (std::int64_t i = 0; i < document.summaries; ++i)
        for (std::int64_t head = 0; head < config_.num_kv_heads; ++head)
          visit(document.first_summary + i, head, document.begin + i * config_.compress_stride);
    });
  }

  template <class Container>
  static auto* row_of(Container& tensor, std::int64_t row, std::int64_t head, std::int64_t num_heads,
                      std::int64_t dim) {
    return tensor.empty() ? nullptr : tensor.data() + (row * num_heads + head) * dim;
  }

  // One KV head's share of each parameter, or null for one that was not given.
  template <class Pointer, class Container>
  naive::GroupParameters<Pointer> head_parameters(CompressorSet<Container>& set, std::int64_t head) {
    naive::GroupParameters<Pointer> own;
    schema::for_each_compressor_member(
        [&](auto, Pointer& to, Container& from) {
          to = row_of(from, head, 0, 1, static_cast<std::int64_t>(from.size()) / config_.num_kv_heads);
        },
        own, set);
    return own;
  }

  naive::Summary<Real> summary_of(const Reals<Real>& input, CompressorSet<Reals<Real>>& parameters, std::int64_t dim,
                                  std::int64_t hidden, std::int64_t head, std::int64_t token) {
    naive::Rows<Real> tokens;
    for (std::int64_t i = 0; i < config_.compress_block; ++i)
      tokens.push_back(row_of(input, token + i, head, config_.num_kv_heads, dim));
    return {config_, dim, hidden, head_parameters<const Real*>(parameters, head), tokens, storage_};
  }

  void compress() {
    const auto compress_one = [&](const Reals<Real>& input, CompressorSet<Reals<Real>>& parameters, std::int64_t dim,
                                  std::int64_t hidden, Reals<Real>& summaries) {
      for_each_summary([&](std::int64_t summary, std::int64_t head, std::int64_t token) {
        const Reals<Real> value = summary_of(input, parameters, dim, hidden, head, token).value();
        std::copy(value.begin(), value.end(), row_of(summaries, summary, head, config_.num_kv_heads, dim));
      });
    };
    compress_one(inputs_.k.cmp, inputs_.compress_k, config_.head_dim_qk, config_.compress_hidden_k, summaries_k_);
    compress_one(inputs_.v.cmp, inputs_.compress_v, config_.head_dim_v, config_.compress_hidden_v, summaries_v_);
    if (!problem_.rotation_cos.empty()) rotate(summaries_k_, 1, storage_);
  }

  // Every pair of channels as a complex number, times cos + i sin of its angle.
  void rotate(Reals<Real>& summaries, Real sign, DType storage) const {
    const std::int64_t summaries_of_all = config_.summaries_of(problem_.tokens());  // as of one document
    const std::int64_t pairs = static_cast<std::int64_t>(problem_.rotation_cos.size()) / summaries_of_all;
    for_each_document([&](const Range& document) {
      for (std::int64_t i = 0; i < document.summaries * config_.num_kv_heads * pairs; ++i) {
        const std::int64_t pair = i % pairs, head = i / pairs % config_.num_kv_heads;
        const std::int64_t summary = i / pairs / config_.num_kv_heads;
        Real* const row =
            row_of(summaries, document.first_summary + summary, head, config_.num_kv_heads, config_.head_dim_qk);
        Real& x = row[problem_.rotation_interleaved ? 2 * pair : pair];
        Real& y = row[problem_.rotation_interleaved ? 2 * pair + 1 : pairs + pair];
        const auto at = static_cast<std::size_t>(summary * pairs + pair);
        const Real c = static_cast<Real>(problem_.rotation_cos[at]),
                   s = sign * static_cast<Real>(problem_.rotation_sin[at]);
        const Real rotated = x * c - y * s;
        y = round_to(storage, x * s + y * c);
        x = round_to(storage, rotated);
      }
    });
  }

  void compress_backward() {
    const auto backward_one = [&](const Reals<Real>& input, CompressorSet<Reals<Real>>& parameters, std::int64_t dim,
                                  std::int64_t hidden, const Reals<Real>& dsummaries, Reals<Real>& dinput,
                                  CompressorSet<Reals<Real>>& dparameters) {
      for_each_summary([&](std::int64_t summary, std::int64_t head, std::int64_t token) {
        const Real* gradient = row_of(dsummaries, summary, head, config_.num_kv_heads, dim);
        Reals<Real> dvalue;
        for (std::int64_t c = 0; c < dim; ++c) dvalue.push_back(round_to(storage_, gradient[c]));
        naive::MutableRows<Real> dtokens;
        for (std::int64_t i = 0; i < config_.compress_block; ++i)
          dtokens.push_back(row_of(dinput, token + i, head, config_.num_kv_heads, dim));
        summary_of(input, parameters, dim, hidden, head, token)
            .backward(dvalue, dtokens, head_parameters<Real*>(dparameters, head));
      });
    };
    backward_one(inputs_.k.cmp, inputs_.compress_k, config_.head_dim_qk, config_.compress_hidden_k, dsummaries_k_,
                 gradients_.k.cmp, gradients_.compress_k);
    backward_one(inputs_.v.cmp, inputs_.compress_v, config_.head_dim_v, config_.compress_hidden_v, dsummaries_v_,
                 gradients_.v.cmp, gradients_.compress_v);
  }

  std::int64_t visible_summaries(std::int64_t position, const Range& document) const {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < document.summaries; ++i)
      if (i * config_.compress_stride + config_.compress_block - 1 <= position) ++count;
    return count;
  }

  Attention branch(Branch which, std::int64_t position, const Range& document, std::int64_t head,
                   const std::int32_t* chosen) {
    Attention result;
    const std::int64_t visible = which == compressed ? visible_summaries(position, document) : 0;
    const auto add = [&](Reals<Real>& keys, Reals<Real>& values, Reals<Real>& dkeys, Reals<Real>& dvalues,
                         std::int64_t row) {
      const std::int64_t num_kv_heads = config_.num_kv_heads;
      result.keys.push_back(row_of(keys, row, head, num_kv_heads, config_.head_dim_qk));
      result.values.push_back(row_of(values, row, head, num_kv_heads, config_.head_dim_v));
      result.dkeys.push_back(row_of(dkeys, row, head, num_kv_heads, config_.head_dim_qk));
      result.dvalues.push_back(row_of(dvalues, row, head, num_kv_heads, config_.head_dim_v));
    };
    switch (which) {
      case compressed:
        for (std::int64_t i = 0; i < visible; ++i)
          add(summaries_k_, summaries_v_, dsummaries_k_, dsummaries_v_, document.first_summary + i);
        break;
      case selected_blocks:
        for (std::int64_t slot = 0; slot < config_.select_count; ++slot)
          for (std::int64_t u = chosen[slot] * config_.select_block;
               chosen[slot] >= 0 && u < (chosen[slot] + 1) * config_.select_block && u <= position; ++u)
            add(inputs_.k.slc, inputs_.v.slc, gradients_.k.slc, gradients_.v.slc, document.begin + u);
        break;
      default:
        for (std::int64_t u = std::max<std::int64_t>(0, position - config_.window + 1); u <= position; ++u)
          add(inputs_.k.win, inputs_.v.win, gradients_.k.win, gradients_.v.win, document.begin + u);
    }
    return result;
  }

  const Real* query_of(std::int64_t row, std::int64_t head, Branch which) const {
    return row_of(which == compressed && !inputs_.q_cmp.empty() ? inputs_.q_cmp : inputs_.q, row, head,
                  config_.num_q_heads, config_.head_dim_qk);
  }

  const std::int32_t* chosen_by(const std::vector<std::int32_t>& selected, std::int64_t row,
                                std::int64_t kv_head) const {
    return selected.data() + (row * config_.num_kv_heads + kv_head) * config_.select_count;
  }

  void select_for(std::int64_t row, std::int64_t position, const Range& document, std::int64_t kv_head,
                  OracleForward& result) {
    const std::int64_t heads_per_group = config_.heads_per_group();
    Reals<Real> importance(static_cast<std::size_t>(visible_summaries(position, document)), 0);  // P
    const Attention attention = branch(compressed, position, document, kv_head, nullptr);
    for (std::int64_t head = kv_head * heads_per_group; head < (kv_head + 1) * heads_per_group; ++head) {
      const Attended<Real> attended = attend(query_of(row, head, compressed), attention.keys, attention.values,
                                             config_.head_dim_qk, config_.head_dim_v, scale_, storage_);
      for (std::size_t i = 0; i < importance.size(); ++i) importance[i] += attended.probabilities[i];
    }
    Reals<Real> scores(static_cast<std::size_t>(position / config_.select_block + 1), 0);  // S
    for (std::size_t block = 0; block < scores.size(); ++block)
      for (std::size_t i = 0; i < importance.size(); ++i) {
        const Real weight =
            naive::overlap_weight<Real>(config_, static_cast<std::int64_t>(i), static_cast<std::int64_t>(block));
        if (weight > 0)
          scores[block] += weight * importance[i];  // a NaN affects only the blocks that its summary overlaps
      }
    const naive::Selection selection = naive::select(config_, position, scores);
    result.scores.push_back(narrow(scores));
    result.selected.insert(result.selected.end(), selection.blocks.begin(), selection.blocks.end());
    result.margin.push_back(selection.margin);
  }

  // The gates g0, g1, g2.
  std::vector<Real> gates(std::int64_t row, std::int64_t head) const {
    const Real* gate = row_of(inputs_.gate, row, head, config_.num_q_heads, 3);
    std::vector<Real> result(gate, gate + 3);
    if (config_.gate == GateKind::logits)
      for (Real& value : result) value = 1 / (1 + std::exp(-value));
    return result;
  }

  Attention branch_of(Branch which, std::int64_t row, std::int64_t position, const Range& document, std::int64_t head,
                      const std::vector<std::int32_t>& selected) {
    const std::int64_t kv_head = head / config_.heads_per_group();
    return branch(which, position, document, kv_head, chosen_by(selected, row, kv_head));
  }

  const Real* sink_of(Branch which, std::int64_t head) const {
    if (which == compressed) return nullptr;
    return row_of(which == window ? inputs_.sink_win : inputs_.sink_slc, head, 0, 1, 1);
  }

  // A branch's output, rounded as a plain implementation stores it.
  Attended<Real> attended_by(std::int64_t row, std::int64_t head, Branch which, const Attention& attention) const {
    Attended<Real> result = attend(query_of(row, head, which), attention.keys, attention.values, config_.head_dim_qk,
                                   config_.head_dim_v, scale_, storage_, sink_of(which, head));
    for (Real& value : result.out) value = round_to(storage_, value);
    return result;
  }

  void forward_of(std::int64_t row, std::int64_t position, const Range& document, std::int64_t head,
                  const std::vector<std::int32_t>& selected, OracleForward& result) {
    Values* const outs[] = {&result.o_cmp, &result.o_slc, &result.o_win};
    Values* const lses[] = {&result.lse_cmp, &result.lse_slc, &result.lse_win};
    const std::vector<Real> gate = gates(row, head);
    Reals<Real> out(static_cast<std::size_t>(config_.head_dim_v), 0);
    for (int which = 0; which < branch_count; ++which) {
      if (!config_.has_branch(which)) continue;
      const auto branch = static_cast<Branch>(which);
      const Attended<Real> attended =
          attended_by(row, head, branch, branch_of(branch, row, position, document, head, selected));
      for (std::size_t c = 0; c < out.size(); ++c) out[c] += gate[static_cast<std::size_t>(which)] * attended.out[c];
      outs[which]->insert(outs[which]->end(), attended.out.begin(), attended.out.end());
      lses[which]->push_back(static_cast<double>(attended.log_sum_exp));
    }
    for (const Real value : out) result.out.push_back(static_cast<double>(round_to(storage_, value)));
  }

  void backward_of(std::int64_t row, std::int64_t position, const Range& document, std::int64_t head,
                   const std::vector<std::int32_t>& selected) {
    const Real* dout = row_of(dout_, row, head, config_.num_q_heads, config_.head_dim_v);
    Real* dgate = row_of(gradients_.gate, row, head, config_.num_q_heads, 3);
    const std::vector<Real> gate = gates(row, head);
    for (int which = 0; which < branch_count; ++which) {
      if (!config_.has_branch(which)) continue;
      const auto branch = static_cast<Branch>(which);
      const Attention attention = branch_of(branch, row, position, document, head, selected);
      const Attended<Real> attended = attended_by(row, head, branch, attention);
      Reals<Real>& dq = branch == compressed && !gradients_.q_cmp.empty() ? gradients_.q_cmp : gradients_.q;
      Real* dquery = row_of(dq, row, head, config_.num_q_heads, config_.head_dim_qk);
      const Real weight = gate[static_cast<std::size_t>(which)];
      const Real dweight = naive::dot(dout, attended.out.data(), config_.head_dim_v);
      dgate[which] = config_.gate == GateKind::logits ? dweight * weight * (1 - weight) : dweight;
      if (weight == 0) continue;  // no gradient
      if (const Real* sink = sink_of(branch, head))
        row_of(branch == window ? gradients_.sink_win : gradients_.sink_slc, head, 0, 1, 1)[0] -=
            std::exp(*sink - attended.log_sum_exp) * weight * dweight;
      Reals<Real> dbranch;
      for (std::int64_t c = 0; c < config_.head_dim_v; ++c) dbranch.push_back(round_to(storage_, weight * dout[c]));
      naive::attend_backward(query_of(row, head, branch), attention.keys, attention.values, config_.head_dim_qk,
                             config_.head_dim_v, scale_, storage_, attended, dbranch.data(), dquery, attention.dkeys,
                             attention.dvalues);
    }
  }

  static void sum_branches(Branches<Reals<Real>>& branches) {
    for (std::size_t i = 0; i < branches.cmp.size(); ++i) branches.cmp[i] += branches.slc[i] + branches.win[i];
    branches.slc = branches.win = {};
  }

  const Problem& problem_;
  const Config& config_;
  DType storage_;
  Real scale_;
  std::vector<std::int64_t> first_summary_;
  TensorSet<Reals<Real>> inputs_, gradients_;
  Reals<Real> summaries_k_, summaries_v_, dsummaries_k_, dsummaries_v_, dout_;
};

// Calls use(Oracle) with the arithmetic of the precision.
template <class Use>
auto with_oracle(const Problem& problem, Precision precision, Use use) {
  if (precision.plain && precision.dtype != DType::f64) {
    Oracle<float> oracle(problem, precision.dtype);
    return use(oracle);
  }
  if (precision.plain || precision.dtype != DType::f64) {
    Oracle<double> oracle(problem, DType::f64);
    return use(oracle);
  }
  Oracle<long double> oracle(problem, DType::f64);
  return use(oracle);
}

}  // namespace

OracleForward oracle_forward(const Problem& problem, Precision precision, const std::vector<std::int32_t>* selected) {
  return with_oracle(problem, precision, [&](auto& oracle) { return oracle.forward(selected); });
}

Tensors oracle_backward(const Problem& problem, Precision precision, const std::vector<std::int32_t>& selected,
                        SummaryGradients* summaries) {
  return with_oracle(problem, precision, [&](auto& oracle) { return oracle.backward(selected, summaries); });
}

}  // namespace cpnsa::test
