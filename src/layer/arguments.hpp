#pragma once

#include <cstdint>

#include "cpnsa/attention.hpp"
#include "src/layer/layer_plan.hpp"

namespace cpnsa {

/// The arguments of Attention::forward().
struct ForwardArguments {
  const AttentionInputs& inputs;
  const TensorView& out;
  std::int32_t* selected;     ///< or null
  const SavedForward* saved;  ///< or null
  void* workspace;
  const BranchTensors& log_sum_exp;  ///< views of the branches whose log-sum-exps are wanted

  void* saved_memory() const { return saved ? saved->memory : nullptr; }
};

/// The arguments of Attention::backward().
struct BackwardArguments {
  const AttentionInputs& inputs;
  const TensorView& dout;
  void* saved_memory;
  const AttentionGradients& gradients;
  void* workspace;
};

/// Checks everything that a caller can get wrong, before anything is planned or enqueued. Errors: ConfigError,
/// ArgumentError, UnsupportedError.
void validate_layer(const Config& config, const Partition& partition, Device& device, Communicator& communicator,
                    const AttentionOptions& options);
void validate_forward(const LayerPlan& layer, const Device& device, const ForwardArguments& given);
/// Checks AttentionInputs::selected, if the layer has one, on the host; waits for the stream.
void validate_selection(const LayerPlan& layer, Device& device, Communicator& communicator,
                        const std::int32_t* selected, Stream stream);
void validate_backward(const LayerPlan& layer, const Device& device, const BackwardArguments& given);

}  // namespace cpnsa
