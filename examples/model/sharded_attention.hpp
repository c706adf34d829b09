#pragma once

#include <memory>
#include <vector>

#include "cpnsa/attention.hpp"
#include "examples/model/compressor.hpp"
#include "examples/model/tensor.hpp"

namespace model {

/// The inputs of attention for this rank's rows, or their gradients; narrow. `k` and `v` have one tensor for each
/// branch (compressed, selected, window), or one that all three share.
struct AttentionTensors {
  Tensor q;               // [rows, H d_qk]
  std::vector<Tensor> k;  // [rows, G d_qk]
  std::vector<Tensor> v;  // [rows, G d_v]
  Tensor gate;            // [rows, H 3]
};

/// How a layer of the model attends.
struct AttentionKind {
  cpnsa::Config config;
  cpnsa::AttentionOptions options;
  int key_value_pairs = 3;  ///< 3: each branch has keys and values of its own; 1: shared
  FirstSummaries first_summaries = FirstSummaries::random;
  bool gated = true;  ///< false: the window branch alone, gates 0, 0, 1

  /// NSA with small blocks, for sequences of a few thousand tokens.
  static AttentionKind nsa(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim);
  /// The same model with causal attention to every token, as a window that is the whole sequence.
  AttentionKind full(std::int64_t tokens) const;
};

/// Memory for one forward or one backward at a time, of any of the layers.
class Workspace {
 public:
  explicit Workspace(Operations& operations) : operations_(operations) {}

  void reserve(std::size_t bytes) {
    if (bytes > memory_.bytes()) memory_ = Memory(), memory_ = Memory(operations_, bytes);
  }
  void* data() const { return memory_.data(); }

 private:
  Operations& operations_;
  Memory memory_;
};

/// One cpnsa::Attention with its memory: the one place of the examples' model that calls the library's forward and
/// backward.
class ShardedAttention {
 public:
  ShardedAttention(Parameters& parameters, const AttentionKind& kind, const cpnsa::Partition& partition,
                   cpnsa::Communicator& communicator, Workspace& workspace);

  const Tensor& forward(AttentionTensors inputs);     ///< [rows, H d_v]
  AttentionTensors backward(const TensorView& dout);  ///< compressor gradients go to the Parameters
  const Tensor& out() const { return out_; }          ///< of the last forward
  cpnsa::Statistics statistics() { return attention_.statistics(); }

 private:
  cpnsa::BranchTensors branches(const std::vector<Tensor>& tensors, std::int64_t dim) const;
  cpnsa::AttentionInputs arguments() const;

  AttentionKind kind_;
  Operations& operations_;
  cpnsa::Attention attention_;
  Workspace& workspace_;
  std::unique_ptr<Compressor> compress_k_, compress_v_;  // none where the compressor has no parameters
  AttentionTensors inputs_;
  Tensor out_;
  Memory saved_memory_;
  cpnsa::SavedForward saved_;
};

}  // namespace model
