#pragma once

// The memory and the time of decoding on a number of ranks, computed without running it: `cpnsa plan --decode` and the
// function forecast_decode() of Python. docs/planning.md describes the model.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/decoder.hpp"
#include "cpnsa/forecast.hpp"

namespace cpnsa {

/// Bytes that a device asks of a decoder's caller besides the library's own: Device::decode_scratch_bytes() and
/// Device::decode_schedule_bytes().
struct DecodeMemory {
  std::size_t scratch_bytes = 0;  ///< part of the workspace
  std::size_t schedule_bytes = 0;
};

/// The time of a layer's step: fixed_seconds, and the bytes that the step must read over bytes_per_second.
struct DecodeModel {
  std::string name;
  std::string source;  ///< where the numbers are from
  double fixed_seconds = 0;
  double bytes_per_second = 0;   ///< 0: times are not forecast
  std::size_t memory_bytes = 0;  ///< of the GPU, without what CUDA and NCCL take; 0 if not known
};

/// The built-in models: "h200", "h100". Throws ArgumentError for other names.
DecodeModel built_in_decode(std::string_view name);

/// Bytes that a layer's step of `sequences` sequences of `length` tokens, `queries` of them new, cannot avoid reading
/// on all ranks together: the visible summaries, the selected tokens and the window of every sequence, and the
/// compressor's weights if a sequence completes a summary.
double decode_read_bytes(const Config& config, DType dtype, std::int64_t sequences, std::int64_t queries,
                         std::int64_t length);

struct DecodeForecastOptions {
  /// The steps: max_sequences sequences of max_length tokens each, max_tokens new ones in all.
  DecoderOptions decoder;
  /// The device's bytes for a decoder, e.g. cuda::decode_memory(). Without it they are left out.
  std::function<DecodeMemory(const DecodeSize&)> memory;
};

/// One rank; bytes of one layer.
struct DecodeRankForecast {
  int rank = 0;
  PageCounts pages;                 ///< that the sequences fill at max_length
  std::vector<MemoryPart> cache;    ///< pools by part
  std::size_t cache_bytes = 0;      ///< KvCacheLayout::bytes() of these pages
  std::size_t workspace_bytes = 0;  ///< Decoder::workspace_bytes(); layers share it
  std::size_t schedule_bytes = 0;   ///< Decoder::schedule_bytes(); layers share it
};

struct DecodeForecast {
  int ranks = 0;
  bool device_counted = false;  ///< false: without the device's scratch and schedule
  int messages = 0;             ///< of a layer's step
  std::array<std::int64_t, decode_traffic_kinds> bytes_received{};  ///< of a rank in a layer's step
  std::vector<DecodeRankForecast> of_ranks;                         ///< the first, the last and the fullest at least
  std::size_t max_cache_bytes = 0;
  double read_bytes = 0;       ///< of all ranks
  double compute_seconds = 0;  ///< of a layer's step
  double message_seconds = 0;  ///< which nothing hides

  double seconds() const { return compute_seconds + message_seconds; }
  /// Memory of a rank for so many layers.
  std::size_t rank_bytes(std::int64_t layers) const;
};

/// Plans the decoder on the ranks and on no device. Throws what the constructors of Decoder throw for such a
/// configuration.
DecodeForecast forecast_decode(const Config& config, int ranks, const DecodeForecastOptions& options,
                               const DecodeModel& model, const NetworkModel& network);

}  // namespace cpnsa
