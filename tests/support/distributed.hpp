#pragma once

#include <array>
#include <optional>
#include <vector>

#include "cpnsa/attention.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/device_buffer.hpp"
#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// The options that a test runs a layer with; see AttentionOptions.
struct LayerSetting {
  DType dtype = DType::f64;
  Exchange exchange = Exchange::automatic;
  bool backward = true;
  bool refetch_blocks = true;
  bool recompute_branches = false;
  bool reuse_saved = false;
  bool sum_parameter_gradients = true;
  bool timing = false;
  bool log_sum_exp = false;                         ///< whether LayerResult has the log-sum-exps
  std::optional<DType> gradient_dtype{};            ///< of dq, dk, dv and dgate; accumulate_dtype() unless given
  std::optional<DType> parameter_gradient_dtype{};  ///< accumulate_dtype() unless given
};

/// The results of a layer in the order of the packed sequence, the same on every rank.
struct LayerResult {
  Values out;
  std::vector<std::int32_t> selected;
  std::array<Values, 3> log_sum_exp;  ///< [T, H] by branch
  Tensors gradients;  ///< those of parameters: rank 0's if the library sums them, else the sum over the ranks
  std::vector<Tensors> parameters_of;  ///< each rank's parameter gradients; the other tensors are empty
  std::vector<Statistics> statistics;  ///< each rank's
};

/// One rank's tensors of a problem in device memory. Inputs are filled in, all else is poisoned.
class RankTensors {
 public:
  RankTensors(const Problem& problem, const Partition& partition, int rank, const LayerSetting& setting,
              Device& device);

  AttentionInputs inputs;
  TensorView dout;
  TensorView out;
  std::int32_t* selected = nullptr;
  BranchTensors log_sum_exp;
  AttentionGradients gradients;

  Values out_values() const { return out_.values(setting_.dtype); }
  std::vector<std::int32_t> selected_indices() const { return selected_.indices(); }
  std::array<Values, 3> log_sum_exp_values() const;
  Tensors gradient_values() const;
  /// Whether the bits of every input are unchanged.
  bool inputs_unchanged() const;

 private:
  struct Tensor {
    DeviceBuffer buffer;
    std::vector<std::byte> content;
    DType dtype;
  };

  LayerSetting setting_;
  TensorSet<Tensor> input_memory_, gradient_memory_;
  Tensor dout_, cos_, sin_;
  DeviceBuffer out_, selected_, given_selection_;
  std::array<DeviceBuffer, 3> log_sum_exp_;
};

/// Workspace and saved memory of a layer, poisoned.
class LayerMemory {
 public:
  LayerMemory(const Attention& layer, Device& device);
  void* workspace() const { return workspace_.data(); }
  void poison_workspace() { workspace_.poison(); }
  SavedForward saved;

 private:
  DeviceBuffer workspace_, saved_memory_;
};

AttentionOptions options_of(const LayerSetting& setting);

/// Forward and backward of a problem over the ranks of the partition. Collective where ranks are processes.
LayerResult run_distributed(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                            const DeviceBackend& device, const TransportBackend& transport);

/// The part of one rank of run_distributed(), for callers that have a communicator.
LayerResult run_rank(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                     const DeviceBackend& device, Communicator& communicator);

/// Collects the results from the ranks' tensors after their steps. Collective.
LayerResult collect(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                    const RankTensors& tensors, const Statistics& statistics, Communicator& communicator);

}  // namespace cpnsa::test
