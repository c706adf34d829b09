#pragma once

#include <optional>
#include <vector>

#include "cpnsa/attention.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/device_buffer.hpp"
#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// How a layer is run.
struct LayerSetting {
  DType dtype = DType::f64;
  Exchange exchange = Exchange::automatic;
  bool backward = true;
  bool refetch_blocks = true;
  bool recompute_branches = false;
  bool reuse_saved = false;
  bool sum_parameter_gradients = true;
  bool timing = false;
  std::optional<DType> gradient_dtype{};            ///< of dq, dk, dv and dgate; the accumulating type unless given
  std::optional<DType> parameter_gradient_dtype{};  ///< the accumulating type unless given
};

/// What a layer computed, in the packed sequence's order. Every rank has all of it.
struct LayerResult {
  Values out;
  std::vector<std::int32_t> selected;
  Tensors gradients;                   ///< parameters': rank 0's if summed by the library, else the ranks' sum
  std::vector<Tensors> parameters_of;  ///< each rank's parameter gradients; the other tensors are empty
  std::vector<Statistics> statistics;  ///< each rank's
};

/// One rank's tensors of a problem in device memory: inputs filled in, everything else poisoned.
class RankTensors {
 public:
  RankTensors(const Problem& problem, const Partition& partition, int rank, const LayerSetting& setting,
              Device& device);

  AttentionInputs inputs;
  TensorView dout;
  TensorView out;
  std::int32_t* selected = nullptr;
  AttentionGradients gradients;

  Values out_values() const { return out_.values(setting_.dtype); }
  std::vector<std::int32_t> selected_indices() const { return selected_.indices(); }
  Tensors gradient_values() const;
  /// Whether every input still holds the bits it was given.
  bool inputs_unchanged() const;

 private:
  struct Tensor {
    DeviceBuffer buffer;
    std::vector<std::byte> content;
    DType dtype;
  };

  LayerSetting setting_;
  TensorSet<Tensor> input_memory_, gradient_memory_;
  Tensor dout_;
  DeviceBuffer out_, selected_;
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

/// The same for what one rank of a communicator does, if the caller has one.
LayerResult run_rank(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                     const DeviceBackend& device, Communicator& communicator);

/// What the ranks' tensors hold after their steps, whoever ran those.
LayerResult collect(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                    const RankTensors& tensors, const Statistics& statistics, Communicator& communicator);

}  // namespace cpnsa::test
