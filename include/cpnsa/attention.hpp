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

struct StepRecord;

/// How a rank gets the selected blocks of other ranks. `fetch` moves only the (block, KV head) pairs that its queries
/// selected. `gather` moves all blocks that its queries can reach, one KV head at a time, without waiting for the
/// ranks' block requests. `automatic` chooses between them in each call from the block requests of all ranks. `pull`
/// sends nothing but the sums of parameters' gradients: each rank shows its part in a window of its workspace, and the
/// others read from it what they need, one KV head at a time. It needs a communicator with Communicator::one_sided().
enum class Exchange { automatic, fetch, gather, pull };
constexpr auto names_of(Exchange) {
  return std::to_array<std::string_view>({"auto", "fetch", "gather", "pull"});
}

/// The options of a layer, the same on every rank.
struct AttentionOptions {
  DType dtype = DType::f32;
  Exchange exchange = Exchange::automatic;
  std::optional<DType> gradient_dtype{};  ///< type of dq, dk, dv, dgate: dtype (default) or accumulate_dtype(dtype)
  /// Type of the gradients of the compressors' parameters: accumulate_dtype(dtype) (default), or dtype, which adds one
  /// element of accumulate_dtype(dtype) per parameter to workspace_bytes().
  std::optional<DType> parameter_gradient_dtype{};
  bool backward = true;  ///< whether backward() will be called; if not, nothing is saved
  /// If true, other ranks' blocks are sent again for backward(). If false, the forward saves them, and saved_bytes()
  /// grows by all blocks that the rank's queries can reach, for every KV head.
  bool refetch_blocks = true;
  /// If true, backward() recomputes the outputs of the branches, which runs three of the forward's ops again, instead
  /// of reading saved ones: 3 rows H d_v elements less in saved_bytes(), as many more in workspace_bytes().
  bool recompute_branches = false;
  /// If true, backward() may overwrite the saved outputs of the branches with sums of gradients once it has read them:
  /// up to 4 rows H d_qk bytes less in workspace_bytes(). Each forward then allows one backward.
  bool reuse_saved = false;
  bool sum_parameter_gradients = false;  ///< whether backward() sums the compressors' gradients over the ranks
  bool timing = false;                   ///< whether Statistics::seconds is measured, by events around each stage
  /// Makes the first forward() of each layer check that all ranks hold the same compressor parameters, before anything
  /// is computed with them: MismatchError names the parameter otherwise. Waits for the device once.
  bool compare_parameters = true;
  /// Declares that inputs have AttentionInputs::q_cmp.
  bool compressed_query = false;
  /// Declares that inputs may have attention sinks.
  bool sinks = false;
  /// Declares that inputs have AttentionInputs::selected, which takes the place of importance and top-n.
  bool given_selection = false;
};

/// The keys or the values of the compressed, selected and window branch. The three views may be equal.
struct BranchTensors {
  TensorView cmp;
  TensorView slc;
  TensorView win;
};

/// The parameters of one compressor, or their gradients. The compressor of Config decides which ones are given.
struct CompressorTensors {
  TensorView pos;     ///< [G, l, d], optional
  TensorView weight;  ///< [G, l d, d], linear
  TensorView w1;      ///< [G, l d, hidden], mlp
  TensorView b1;      ///< [G, hidden], mlp
  TensorView w2;      ///< [G, hidden, d], mlp
  TensorView b2;      ///< [G, d], mlp
};

/// Rotates summaries of keys before attention and importance, as rotary embeddings do: with x the first and y the
/// second channel of pair p, summary i of each document becomes x cos[i, p] - y sin[i, p] and x sin[i, p] + y cos[i,
/// p]. The tables have the accumulating type, a row for each summary of the longest document at least, and no
/// gradients; the channels behind the pairs are left alone.
struct SummaryRotation {
  TensorView cos;            ///< [summaries of a document, pairs], at most d_qk / 2 pairs
  TensorView sin;            ///< the same shape
  bool interleaved = false;  ///< pair p: channels 2p and 2p + 1; otherwise p and p + pairs
};

/// This rank's rows, in the order of its Partition ranges, and the compressors' parameters, the same on every rank. All
/// tensors have the layer's type.
struct AttentionInputs {
  TensorView q;      ///< [rows, H, d_qk]
  BranchTensors k;   ///< [rows, G, d_qk]
  BranchTensors v;   ///< [rows, G, d_v]
  TensorView gate;   ///< [rows, H, 3]: compressed, selected, window
  TensorView q_cmp;  ///< [rows, H, d_qk]: the query of the compressed branch and of importance, if compressed_query
  CompressorTensors compress_k;
  CompressorTensors compress_v;
  /// [H], optional, if AttentionOptions::sinks: a logit per head that takes part in the softmax of the selected or of
  /// the window branch and has no value.
  TensorView sink_slc;
  TensorView sink_win;
  SummaryRotation summary_rotation{};  ///< optional
  /// int32 [rows, G, n] in device memory, if AttentionOptions::given_selection: the blocks of each row and KV head, in
  /// their documents, ascending, none beyond the row's own, padded with -1; at least one. The host reads and checks it
  /// in each forward, which waits for the stream.
  const std::int32_t* selected = nullptr;
  /// The caller's own number of the layer, where one Attention serves several: ranks that call them in different orders
  /// get a MismatchError. A backward has that of its forward.
  std::int64_t layer = 0;
};

/// Gradients, overwritten, in the shapes of AttentionInputs. Those of q, k, v and gate have gradient_dtype and must be
/// given; those of parameters have parameter_gradient_dtype, and are computed only if given. Branches whose gradient
/// views are the same memory get the sum of their gradients.
struct AttentionGradients {
  TensorView q;
  BranchTensors k;
  BranchTensors v;
  TensorView gate;
  TensorView q_cmp;  ///< that of q_cmp; the same memory as q gets the sum of both
  CompressorTensors compress_k;
  CompressorTensors compress_v;
  TensorView sink_slc;
  TensorView sink_win;
};

/// The kinds of data that a rank receives; indices of Statistics::bytes_received.
enum class Traffic {
  summaries,
  halo,
  blocks,
  refetched_blocks,  ///< blocks sent again for the backward; some are sent twice if it recomputes the branches
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

/// The parts of a step that are timed, in the order of a step; indices of Statistics::seconds. With
/// AttentionOptions::recompute_branches the branches' forward ops in a backward count as that branch's backward.
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

/// The work of the last forward(), and of the backward() after it, on this rank.
struct Statistics {
  Exchange exchange = Exchange::fetch;                        ///< the exchange that was used; never automatic
  std::array<std::int64_t, traffic_kinds> bytes_received{};   ///< by Traffic
  std::array<std::int64_t, traffic_kinds> bytes_predicted{};  ///< by Traffic, from the plan
  std::int64_t blocks_needed = 0;    ///< (block, KV head) pairs that the rank's queries selected and it does not own
  std::int64_t blocks_fetched = 0;   ///< (block, KV head) pairs received by the forward
  std::int64_t workspace_bytes = 0;  ///< maximum memory of the rank beyond the caller's tensors
  std::array<double, stage_count> seconds{};  ///< by Stage; zero unless AttentionOptions::timing
};

/// The state that a forward saves for its backward: device memory of Attention::saved_bytes(), which the caller owns,
/// and the block requests of the ranks. Use one per forward whose backward is still to come.
class SavedForward {
 public:
  SavedForward();
  ~SavedForward();
  SavedForward(SavedForward&&) noexcept;
  SavedForward& operator=(SavedForward&&) noexcept;

  void* memory =
      nullptr;  ///< saved_bytes() of device memory, aligned as a workspace is; set by the caller before forward()

 private:
  friend class Attention;
  struct State;
  std::unique_ptr<State> state_;
};

/// One attention layer over a sequence sharded by `partition` over the ranks of `communicator`.
///
/// The constructor plans: it validates, checks that every rank was given the same configuration, partition and options,
/// and allocates small index lists on the device. forward() and backward() enqueue on `stream` and on streams of the
/// layer, and allocate nothing. They wait on the host in two cases: forward() reads the ranks' block requests once (not
/// with Exchange::gather and pull), and transports that work on the host wait for the data that they move.
///
/// The constructor, forward() and backward() are collective. An error on one rank is an exception on every rank. Not
/// thread-safe. The device and the communicator must outlive the layer. Two runs of the same setting give equal bits;
/// the selection is the same for every number of ranks, partition, transport and exchange mode.
class Attention {
 public:
  /// Errors: ConfigError, ArgumentError (a partition for another number of ranks or block size), UnsupportedError,
  /// MismatchError, CommunicationError, DeviceError.
  Attention(const Config& config, const Partition& partition, Device& device, Communicator& communicator,
            const AttentionOptions& options);
  /// Waits for the last step, up to the communicator's deadline. A step that is still pending then (on a borrowed
  /// communicator, which only its owner can abort) is abandoned, and the memory that it uses is not freed.
  ~Attention();
  Attention(Attention&&) noexcept;

  std::int64_t rows() const;            ///< this rank's tokens
  std::size_t workspace_bytes() const;  ///< device memory for one forward or one backward, reusable between them
  std::size_t saved_bytes() const;      ///< device memory of one SavedForward; 0 without AttentionOptions::backward

  /// Computes out [rows, H, d_v], of the layer's type, and if `selected` is not null, the selected blocks: int32 [rows,
  /// G, n] in device memory, indices in their documents, ascending, padded with -1. `workspace` is device memory of
  /// workspace_bytes(), 256-byte aligned, on the CPU 64-byte aligned at least; tensors are aligned to their elements,
  /// on CUDA to 16 bytes. `saved` is null exactly if options.backward is false.
  /// `log_sum_exp`: the log-sum-exps of the branches whose views are given, [rows, H] of the accumulating type, natural
  /// logarithms, with the sink; -infinity for a row that sees no key.
  ///
  /// Errors: ArgumentError, MismatchError, CommunicationError, DeviceError.
  void forward(const AttentionInputs& inputs, const TensorView& out, std::int32_t* selected, SavedForward* saved,
               void* workspace, Stream stream, const BranchTensors& log_sum_exp = {});

  /// Gradients of sum(out * dout) with the selection held fixed. `inputs` and `saved` are those of the forward. With
  /// AttentionOptions::reuse_saved the backward writes to the saved memory, and `saved` serves no other.
  void backward(const AttentionInputs& inputs, const TensorView& dout, SavedForward& saved,
                const AttentionGradients& gradients, void* workspace, Stream stream);

  /// For callers that check their own arguments first, as bindings do: takes the place of this rank's next forward() or
  /// backward(), which it cannot make because of `problem`; the other ranks' throws ArgumentError with it. Throws
  /// nothing.
  void refuse(std::string_view problem) noexcept;

  /// Waits for the last step. Errors: CommunicationError, DeviceError.
  Statistics statistics();

  /// This rank's part of the last step, stage by stage (cpnsa/step_record.hpp); has no spans unless
  /// AttentionOptions::timing. Waits for the last step. Errors: CommunicationError, DeviceError.
  StepRecord record();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cpnsa
