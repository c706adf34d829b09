#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/communicator.hpp"
#include "cpnsa/config.hpp"
#include "cpnsa/names.hpp"
#include "cpnsa/partition.hpp"
#include "tools/decode_steps.hpp"

namespace cpnsa::tool {

using cpnsa::name_of;

enum class DeviceKind { automatic, cpu, cuda };
constexpr auto names_of(DeviceKind) {
  return std::to_array<std::string_view>({"auto", "cpu", "cuda"});
}

enum class TransportKind { automatic, threads, mpi, nccl };
constexpr auto names_of(TransportKind) {
  return std::to_array<std::string_view>({"auto", "threads", "mpi", "nccl"});
}

enum class Selection { random, local };
constexpr auto names_of(Selection) {
  return std::to_array<std::string_view>({"random", "local"});
}

/// -J [FILE]
struct JsonOutput {
  bool wanted = false;
  std::filesystem::path file;  ///< empty: standard output, in place of text
};

/// Where and how a layer runs: what `cpnsa run` and `cpnsa bench` have in common.
struct ExecutionOptions {
  DeviceKind device = DeviceKind::automatic;
  TransportKind transport = TransportKind::automatic;
  std::optional<int> ranks;  ///< under mpirun its number of processes, otherwise 1
  PartitionKind partition = PartitionKind::contiguous;
  Exchange exchange = Exchange::automatic;
  std::optional<DType> dtype;            ///< the device's default unless given
  std::optional<std::int64_t> deadline;  ///< seconds that a rank waits for the others
  bool backward = true;
  bool keep_blocks = false;         ///< AttentionOptions::refetch_blocks is its opposite
  bool recompute_branches = false;  ///< as in AttentionOptions

  AttentionOptions attention_options(DType dtype) const;
  std::chrono::milliseconds deadline_or_default() const;  ///< without the flag initial_deadline()
  std::string describe() const;                           ///< on one line: what every rank must have been given alike
};

struct RunOptions {
  ExecutionOptions execution;
  std::filesystem::path in;
  std::filesystem::path out;
};

struct DecodeOptions {
  ExecutionOptions execution;
  std::filesystem::path in;
  std::filesystem::path out;
  DecodeFeed feed;
  std::int64_t page = 0;  ///< tokens; 0: the smallest
  bool replicate_summaries = false;

  std::string describe() const;
};

struct InfoOptions {
  JsonOutput json;
  Config config;  ///< head counts of 0: no configuration is given
  std::int64_t hidden = 0;
  DType dtype = DType::bf16;
};

struct PlanOptions {
  JsonOutput json;
  Config config;  ///< head counts and dimensions of 0 stand for those of `cpnsa bench` on a GPU
  std::int64_t hidden = 0;
  std::int64_t tokens = 128 << 10;
  std::int64_t documents = 1;
  std::int64_t layers = 1;
  std::vector<std::int64_t> ranks{8};
  std::string gpu = "h200";
  std::filesystem::path measured;  ///< JSON of `cpnsa bench`; empty: the built-in numbers of the GPU
  std::filesystem::path links;     ///< JSON of `cpnsa doctor`; empty: built-in
  std::optional<double> memory_gib;
  std::optional<double> other_gib;
  DeviceKind device = DeviceKind::cuda;
  DType dtype = DType::bf16;
  PartitionKind partition = PartitionKind::zigzag;
  Exchange exchange = Exchange::automatic;
  Selection selection = Selection::random;
  bool separate_kv = false;
  bool backward = true;
  bool keep_blocks = false;
  bool recompute_branches = false;
  bool decode = false;               ///< decoding steps of sequences of `tokens` tokens each
  std::int64_t batch = 1;            ///< with `decode`: sequences of a step
  std::int64_t queries = 1;          ///< with `decode`: tokens that a step appends to each
  std::int64_t page = 0;             ///< with `decode`: tokens of a page; 0: select_block
  bool replicate_summaries = false;  ///< with `decode`
};

struct DoctorOptions {
  ExecutionOptions execution;
  JsonOutput json;
  std::int64_t bytes = 4 << 20;  ///< of a large message
  std::int64_t iterations = 5;
};

struct BenchOptions {
  ExecutionOptions execution;
  Config config;                      ///< head counts and dimensions of 0 stand for the device's default
  std::optional<std::int64_t> begin;  ///< tokens of the first row
  std::optional<std::int64_t> end;    ///< tokens of the last row, at most
  std::int64_t factor = 2;            ///< from row to row
  std::int64_t documents = 1;         ///< packed into a row's tokens, equally long but for one token
  std::optional<std::int64_t> iterations;
  std::optional<std::int64_t> warmups;
  std::int64_t hidden = 0;  ///< of the mlp compressors; 0 stands for 2 * head_dim
  bool separate_kv = false;
  bool decode = false;       ///< times decoding steps, whose sequences have `begin` to `end` tokens each
  std::int64_t batch = 1;    ///< with `decode`: sequences of a step
  std::int64_t queries = 1;  ///< with `decode`: tokens that a step appends to each
  std::int64_t page = 0;     ///< with `decode`: tokens of a page; 0: select_block
  bool graph = false;        ///< with `decode`: a step is captured once and then replayed
  Selection selection = Selection::random;
  std::uint64_t seed = 1;
  std::filesystem::path json;   ///< empty: no JSON
  std::filesystem::path trace;  ///< of the last row's last step, for chrome://tracing; empty: none

  std::string describe() const;
};

}  // namespace cpnsa::tool
