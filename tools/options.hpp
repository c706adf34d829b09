#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "cpnsa/attention.hpp"
#include "cpnsa/communicator.hpp"
#include "cpnsa/config.hpp"
#include "cpnsa/names.hpp"
#include "cpnsa/partition.hpp"

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
  Selection selection = Selection::random;
  std::uint64_t seed = 1;
  std::filesystem::path json;  ///< empty: no JSON

  std::string describe() const;
};

}  // namespace cpnsa::tool
