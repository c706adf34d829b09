#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "cpnsa/attention.hpp"
#include "cpnsa/communicator.hpp"
#include "cpnsa/config.hpp"
#include "cpnsa/device.hpp"
#include "cpnsa/kv_cache.hpp"
#include "cpnsa/names.hpp"
#include "cpnsa/tensor_view.hpp"

namespace cpnsa {

/// The largest steps of a decoder, the same on every rank.
struct DecoderOptions {
  KvCacheOptions cache;
  std::int64_t max_sequences = 1;  ///< of a step
  std::int64_t max_tokens = 1;     ///< of all sequences in one step
  std::int64_t max_length = 0;     ///< tokens of a sequence, those of the step included
  /// Makes prepare() read the batch on the host and throw ArgumentError that names the sequence and the page, and makes
  /// every call compare itself with the other ranks' calls. Waits for the device, so it cannot be captured in a graph.
  /// If false, sequences that break the rules of DecodeBatch are left out of the step, nothing is read or written out
  /// of bounds, and the rows of the output that belong to them are undefined.
  bool checked = false;
  /// With more than one rank: makes the first step() of each layer (AttentionInputs::layer) check that all ranks hold
  /// the same compressor parameters, before anything is enqueued: MismatchError names the parameter otherwise. Waits
  /// for the device once, so a graph is captured after that step.
  bool compare_parameters = true;
};

/// The page table of one part of the cache. Its content may change between steps.
struct PageTable {
  const std::int32_t* pages = nullptr;  ///< device memory [num_slots, columns]: page ids, -1 where there is none
  std::int64_t columns = 0;
  std::int64_t pool_pages = 0;  ///< pages in the pools; a page id is below it
};

/// One step's sequences. Arrays are device memory of int32 and may change in place, e.g. before a captured graph is
/// replayed; numbers are the host's.
struct DecodeBatch {
  std::int64_t sequences = 0;             ///< B, at most max_sequences
  std::int64_t tokens = 0;                ///< rows of the step's tensors, at most max_tokens and at least cu_q[B]
  std::int64_t num_slots = 0;             ///< rows of the page tables
  const std::int32_t* slots = nullptr;    ///< [B]: the rows of the tables that the sequences have; null: 0, 1, ...
  const std::int32_t* lengths = nullptr;  ///< [num_slots]: tokens before the step; the caller adds those of the step
  const std::int32_t* cu_q = nullptr;  ///< [B + 1]: sequence b appends rows [cu_q[b], cu_q[b + 1]), which may be none
  PageTable cmp;                       ///< of a part that shares its pages: not given, or the same
  PageTable slc;
  PageTable win;
  PageTable summaries;
};

/// The tensors that a step writes.
struct DecodeOutputs {
  TensorView out;                    ///< [tokens, H, d_v], of the cache's type
  std::int32_t* selected = nullptr;  ///< device memory [tokens, G, n]; null: not wanted
  /// Device memory [3, tokens, H] of accumulate_dtype(), natural logarithms: compressed, selected, window; null: not
  /// wanted.
  void* log_sum_exp = nullptr;
};

/// The messages of a step; indices of DecodeStatistics::bytes_received.
enum class DecodeTraffic {
  log_sum_exps,  ///< of the compressed and the window branch
  candidates,    ///< the ranks' best blocks with their scores
  parts,         ///< of the outputs
  control
};
constexpr auto names_of(DecodeTraffic) {
  return std::to_array<std::string_view>({"log_sum_exps", "candidates", "parts", "control"});
}
inline constexpr int decode_traffic_kinds = static_cast<int>(enum_names<DecodeTraffic>.size());

/// The work of this rank since the decoder was made.
struct DecodeStatistics {
  std::int64_t steps = 0;
  std::int64_t messages = 0;                                        ///< collectives between ranks, agreements left out
  std::array<std::int64_t, decode_traffic_kinds> bytes_received{};  ///< by DecodeTraffic
};

/// Prefill and decoding of one batch shape over paged KV caches, for all layers of one configuration.
///
/// A step appends each sequence's new tokens to the cache and computes their rows of the forward (docs/inference.md).
/// For each step the caller calls prepare() once, then step() once per layer, all on one stream, and then adds the new
/// tokens to `lengths`. With more than one rank every rank is given the same queries, keys, values and gates, and holds
/// the pages that KvCacheLayout deals to it.
///
/// Both calls only enqueue: they allocate nothing, wait for nothing and copy nothing to the host (not with
/// DecoderOptions::checked, nor with transports that work on the host, nor in a layer's first step where parameters are
/// compared), so on CUDA they can be captured in a graph. The result of a sequence has the same bits in every batch and
/// on every set of pages.
///
/// The constructor is collective, and with more than one rank so are prepare() and step(). A step that fails on one
/// rank aborts the communicator, which ends the other ranks' waits; after it the decoder refuses every call. Not
/// thread-safe. The device and the communicator must outlive the decoder.
class Decoder {
 public:
  /// Errors: ConfigError, ArgumentError, UnsupportedError, MismatchError, CommunicationError, DeviceError.
  Decoder(const Config& config, const DecoderOptions& options, Device& device, Communicator& communicator);
  ~Decoder();
  Decoder(Decoder&&) noexcept;

  const KvCacheLayout& layout() const;
  std::size_t workspace_bytes() const;  ///< device memory of a step; the layers of a step may share it
  std::size_t schedule_bytes() const;   ///< device memory of a prepared step
  int messages_per_step() const;        ///< 0 on one rank, 1 with replicated summaries, else 3
  /// Bytes that a step of `tokens` rows receives from the other ranks, by DecodeTraffic, agreements left out.
  std::array<std::int64_t, decode_traffic_kinds> bytes_per_step(std::int64_t tokens) const;

  /// Prepares the step for all layers. `schedule` is device memory of schedule_bytes(), 256-byte aligned, which step()
  /// reads: a captured graph and other steps need one each. Errors: ArgumentError, MismatchError, CommunicationError.
  void prepare(const DecodeBatch& batch, void* schedule, Stream stream);

  /// One layer's part of the step prepared last: appends the rows of `inputs` ([tokens, ...]) to `cache` and writes the
  /// outputs. AttentionInputs::layer serves DecoderOptions::compare_parameters alone. `workspace` is device memory of
  /// workspace_bytes(), 256-byte aligned, on the CPU 64-byte aligned at least.
  ///
  /// Errors: ArgumentError, MismatchError before anything is enqueued; CommunicationError, DeviceError.
  void step(const AttentionInputs& inputs, const KvCache& cache, const DecodeOutputs& outputs, void* workspace,
            Stream stream);

  /// For callers that check their own arguments first, as bindings do: takes the place of this rank's next call, which
  /// it cannot make because of `problem`. Throws nothing.
  void refuse(std::string_view problem) noexcept;

  const DecodeStatistics& statistics() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cpnsa
