#pragma once

#include <cstddef>
#include <cstdint>

#include "cpnsa/attention.hpp"
#include "src/planning/at.hpp"
#include "src/planning/checked.hpp"
#include "src/planning/plan.hpp"

namespace cpnsa {

/// The facts about a layer that only its device knows.
struct DeviceFacts {
  std::size_t scratch_bytes = 0;   ///< Device::scratch_bytes()
  bool combines_selected = false;  ///< Device::combines_selected()
};

/// Sizes that a layer's buffers are laid out from.
struct LayerSizes {
  LayerSizes(const Config& config, const planning::Plan& plan, const AttentionOptions& options,
             const DeviceFacts& facts);

  std::size_t element;      ///< bytes of one element of the layer's type
  std::size_t accumulated;  ///< bytes of one element of the accumulating type
  std::int64_t rows;
  std::int64_t q_heads;
  std::int64_t kv_heads;
  std::int64_t k_width;            ///< G d_qk, elements of a token's keys
  std::int64_t v_width;            ///< G d_v
  std::int64_t out_width;          ///< H d_v
  std::int64_t slot_elements;      ///< of one pool slot
  bool saves_blocks;               ///< whether the blocks that the forward fetched are saved for the backward
  bool saves_branches;             ///< whether the branches' outputs are
  bool reuses_branches;            ///< whether the backward sums gradients where the branches' outputs were
  bool combines_selected;          ///< whether the selected branch's stage combines the branches
  bool forward_stores_o_selected;  ///< whether anything but that stage reads the forward's o_slc

  std::int64_t token_width() const { return k_width + v_width; }  ///< a token on the wire: keys, then values
  static std::size_t bytes(std::int64_t rows, std::int64_t width, std::size_t element) {
    return checked_bytes(rows, width, element);
  }
};

/// The part of a layer that never changes, on one rank: pure data, without a device.
struct LayerPlan {
  /// `plan`, of the same configuration and options, must outlive it.
  LayerPlan(const Config& config, const AttentionOptions& options, const planning::Plan& plan,
            const DeviceFacts& facts);
  LayerPlan(const LayerPlan&) = delete;
  LayerPlan& operator=(const LayerPlan&) = delete;

  const Config config;
  const AttentionOptions options;
  const planning::Plan& plan;
  const DType accumulate;      ///< accumulate_dtype(options.dtype)
  const DType gradient_dtype;  ///< of dq, dk, dv, dgate
  const DType parameter_gradient_dtype;
  const LayerSizes sizes;
  const std::size_t scratch_bytes;
  const std::int64_t parameter_elements;  ///< of both compressors and the sinks
  std::size_t saved_bytes = 0;            ///< of one SavedForward
  std::size_t forward_bytes = 0;          ///< of a forward's workspace
  std::size_t backward_bytes = 0;

  int rank() const { return plan.rank; }
  int ranks() const { return plan.layout.ranks(); }
  bool alone() const { return ranks() == 1; }  ///< nothing travels
  std::int64_t own_summaries() const { return at(plan.layout.own_summaries, rank()); }
  bool has_branch(int branch) const { return config.has_branch(branch); }
  bool needs_summaries() const { return planning::Plan::needs_summaries(config, options); }
  bool sums_parameters() const { return options.sum_parameter_gradients && !alone(); }
  /// True if the ranks read each other's windows in place of exchanging messages.
  bool pulls() const { return options.exchange == Exchange::pull && !alone(); }
  /// True if the host reads the need matrix before blocks are exchanged.
  bool reads_needs() const {
    return plan.blocks.any_reachable() && options.exchange != Exchange::gather && options.exchange != Exchange::pull;
  }

  std::int64_t need_words() const;  ///< of one rank's part of the need matrix
  std::size_t need_bytes() const { return to_size(need_words()) * sizeof(std::uint32_t); }
  std::size_t list_bytes() const;  ///< of one schedule's table and packed lists, at most
  std::size_t selected_bytes() const;

  /// The arguments of one of the device's stages, with what every stage is told.
  template <class Arguments>
  Arguments arguments(void* scratch) const {
    Arguments arguments{};
    arguments.config = &config;
    arguments.dtype = options.dtype;
    arguments.scratch = scratch;
    return arguments;
  }
};

/// The sizes that Device::scratch_bytes() is called with.
ProblemSize problem_size(const Config& config, const AttentionOptions& options, const planning::Plan& plan);

}  // namespace cpnsa
