#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "cpnsa/communicator.hpp"
#include "cpnsa/config.hpp"
#include "cpnsa/device.hpp"
#include "cpnsa/names.hpp"
#include "cpnsa/partition.hpp"
#include "cpnsa/tensor_view.hpp"

namespace cpnsa {

/// How selected blocks of other ranks are brought in: `fetch` moves only the (block, KV head) pairs that the rank's
/// queries selected; `gather` brings one KV head after another whole, without reading the demand; `automatic` decides
/// a call at a time from the demand matrix, all ranks alike.
enum class Exchange { automatic, fetch, gather };
constexpr auto names_of(Exchange) {
  return std::to_array<std::string_view>({"auto", "fetch", "gather"});
}

struct AttentionOptions {
  DType dtype = DType::f32;
  Exchange exchange = Exchange::automatic;
  std::optional<DType> gradient_dtype{};  ///< of dq, dk, dv, dgate: dtype (default) or accumulate_dtype(dtype)
  /// Of the compressors' gradients: accumulate_dtype(dtype) (default), or dtype, for parameters in as many elements of
  /// the accumulating type more of workspace_bytes().
  std::optional<DType> parameter_gradient_dtype{};
  bool backward = true;  ///< whether backward() will be called: sizes the workspace and what is saved
  /// Whether backward() has other ranks' blocks sent once more; if not, the forward keeps them, and saved_bytes() grows
  /// by all blocks that the rank's queries can reach, of every KV head.
  bool refetch_blocks = true;
  /// Whether backward() computes the branches' outputs again instead of finding them saved: 3 rows H d_v elements less
  /// in saved_bytes(), as many more in workspace_bytes(), for three of the forward's stages once more.
  bool recompute_branches = false;
  /// Whether backward() may sum gradients where the forward saved the branches' outputs, once it has read those: up to
  /// 4 rows H d_qk bytes less in workspace_bytes(). Each forward then has one backward.
  bool reuse_saved = false;
  bool sum_parameter_gradients = false;  ///< whether backward() also sums the compressor's gradients over the ranks
  bool timing = false;                   ///< whether Statistics::seconds is measured (events around each stage)
};

/// The keys or the values of the three branches. The same view may be given for all three.
struct BranchTensors {
  TensorView cmp;
  TensorView slc;
  TensorView win;
};

/// Parameters, or gradients of parameters, of one compressor; shapes in docs/algorithm.md.
struct CompressorTensors {
  TensorView pos;     ///< [G, l, d], optional
  TensorView weight;  ///< [G, l d, d], linear
  TensorView w1;      ///< [G, l d, hidden], mlp
  TensorView b1;      ///< [G, hidden], mlp
  TensorView w2;      ///< [G, hidden, d], mlp
  TensorView b2;      ///< [G, d], mlp
};

/// This rank's rows, in the order of its Partition ranges; all of the layer's type.
struct AttentionInputs {
  TensorView q;     ///< [rows, H, d_qk]
  BranchTensors k;  ///< [rows, G, d_qk]
  BranchTensors v;  ///< [rows, G, d_v]
  TensorView gate;  ///< [rows, H, 3]: compressed, selected, window
  CompressorTensors compress_k;
  CompressorTensors compress_v;
};

/// Gradients, overwritten. Those of q, k, v and gate have AttentionOptions::gradient_dtype and must be given; those of
/// parameters have parameter_gradient_dtype, and one not given is not computed. Branches whose gradient views are the
/// same memory get their sum.
struct AttentionGradients {
  TensorView q;
  BranchTensors k;
  BranchTensors v;
  TensorView gate;
  CompressorTensors compress_k;
  CompressorTensors compress_v;
};

/// What a rank receives and when; indices of Statistics::bytes_received.
enum class Traffic {
  summaries,
  halo,
  blocks,
  refetched_blocks,  ///< the same blocks once more, for the backward; some twice where it recomputes the branches
  block_gradients,
  summary_gradients,
  halo_gradients,
  parameter_gradients,
  control
};
constexpr auto names_of(Traffic) {
  return std::to_array<std::string_view>({"summaries", "halo", "blocks", "refetched_blocks", "block_gradients",
                                          "summary_gradients", "halo_gradients", "parameter_gradients", "control"});
}
inline constexpr int traffic_kinds = static_cast<int>(enum_names<Traffic>.size());

/// Stages in the order of a step; indices of Statistics::seconds.
enum class Stage {
  exchange_halo,
  compress,
  gather_summaries,
  window,
  compressed,
  select,
  demand,
  fetch_blocks,
  selected,
  combine,
  combine_backward,
  window_backward,
  refetch_blocks,
  selected_backward,
  return_block_gradients,
  compressed_backward,
  reduce_summary_gradients,
  compress_backward,
  return_halo_gradients,
  finish_gradients
};
constexpr auto names_of(Stage) {
  return std::to_array<std::string_view>({"exchange_halo",
                                          "compress",
                                          "gather_summaries",
                                          "window",
                                          "compressed",
                                          "select",
                                          "demand",
                                          "fetch_blocks",
                                          "selected",
                                          "combine",
                                          "combine_backward",
                                          "window_backward",
                                          "refetch_blocks",
                                          "selected_backward",
                                          "return_block_gradients",
                                          "compressed_backward",
                                          "reduce_summary_gradients",
                                          "compress_backward",
                                          "return_halo_gradients",
                                          "finish_gradients"});
}
inline constexpr int stage_count = static_cast<int>(enum_names<Stage>.size());

/// What the last forward() and the backward() after it did on this rank.
struct Statistics {
  Exchange exchange = Exchange::fetch;                        ///< what was done; never automatic
  std::array<std::int64_t, traffic_kinds> bytes_received{};   ///< by Traffic
  std::array<std::int64_t, traffic_kinds> bytes_predicted{};  ///< what the plan said would be received
  std::int64_t blocks_needed = 0;    ///< (block, KV head) pairs that the rank's queries selected and it does not own
  std::int64_t blocks_fetched = 0;   ///< (block, KV head) pairs received by the forward
  std::int64_t workspace_bytes = 0;  ///< most memory beyond the caller's tensors that the rank held
  std::array<double, stage_count> seconds{};  ///< by Stage; zero unless AttentionOptions::timing
};

/// What a forward leaves for its backward: device memory that the caller owns, of Attention::saved_bytes(), and the
/// demand the ranks agreed on. One per forward whose backward is still to come.
class SavedForward {
 public:
  SavedForward();
  ~SavedForward();
  SavedForward(SavedForward&&) noexcept;
  SavedForward& operator=(SavedForward&&) noexcept;

  void* memory = nullptr;  ///< saved_bytes() of device memory, 256-byte aligned; set by the caller before forward()

  struct State;
  State& state() { return *state_; }
  const State& state() const { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

/// One attention layer over a sequence sharded by `partition` over the ranks of `communicator`.
///
/// Construction plans: it validates, makes sure that every rank was given the same configuration, partition and
/// options, and allocates small index lists on the device. forward() and backward() only enqueue on `stream` and on one
/// stream of their own, allocate nothing, and wait on the host in two places: forward() reads the demand once (not with
/// Exchange::gather), and transports that work on the host wait for what they move.
///
/// All three are collective. What is wrong on one rank is an exception on every rank. Not thread-safe; the device and
/// communicator must outlive it. Results of two runs of the same setting are equal to the last bit; the selection is
/// equal for every rank count, partition, transport and exchange mode.
class Attention {
 public:
  /// Errors: ConfigError, ArgumentError (partition of another rank count or block size), UnsupportedError,
  /// MismatchError, CommunicationError, DeviceError.
  Attention(const Config& config, const Partition& partition, Device& device, Communicator& communicator,
            const AttentionOptions& options);
  /// Waits for the last step. One that waits for ranks that never come, on a communicator that only its owner can
  /// abort, is left behind with what it uses once the communicator's deadline is over.
  ~Attention();
  Attention(Attention&&) noexcept;

  std::int64_t rows() const;            ///< this rank's tokens
  std::size_t workspace_bytes() const;  ///< device memory for one forward or one backward, reusable between them
  std::size_t saved_bytes() const;      ///< device memory of one SavedForward; 0 without AttentionOptions::backward

  /// out [rows, H, d_v] of the layer's type; selected, if not null, int32 [rows, G, n] in device memory. `saved` is
  /// null exactly when options.backward is false.
  void forward(const AttentionInputs& inputs, const TensorView& out, std::int32_t* selected, SavedForward* saved,
               void* workspace, Stream stream);

  /// Gradients of sum(out * dout) with the selection held fixed. `inputs` and `saved` are those of the forward; what
  /// `saved` holds is spent by it with AttentionOptions::reuse_saved.
  void backward(const AttentionInputs& inputs, const TensorView& dout, const SavedForward& saved,
                const AttentionGradients& gradients, void* workspace, Stream stream);

  /// For callers that check their own arguments first, as bindings do: takes the place of this rank's next forward() or
  /// backward(), which it cannot make because of `problem`; the other ranks' throws ArgumentError with it.
  void refuse(std::string_view problem);

  /// Waits for the last step.
  Statistics statistics();

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace cpnsa
