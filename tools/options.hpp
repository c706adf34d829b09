#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "cpnsa/attention.hpp"
#include "cpnsa/communicator.hpp"
#include "cpnsa/config.hpp"

namespace cpnsa::tool {

enum class DeviceKind { automatic, cpu, cuda };
enum class TransportKind { automatic, threads, mpi, nccl };
enum class PartitionKind { contiguous, zigzag, zigzag_per_document };
enum class Selection { random, local };

constexpr std::string_view name_of(DeviceKind kind) {
  return kind == DeviceKind::automatic ? "auto" : kind == DeviceKind::cpu ? "cpu" : "cuda";
}
constexpr std::string_view name_of(TransportKind kind) {
  switch (kind) {
    case TransportKind::automatic: return "auto";
    case TransportKind::threads: return "threads";
    case TransportKind::mpi: return "mpi";
    case TransportKind::nccl: return "nccl";
  }
  return "?";
}
constexpr std::string_view name_of(PartitionKind kind) {
  switch (kind) {
    case PartitionKind::contiguous: return "contiguous";
    case PartitionKind::zigzag: return "zigzag";
    case PartitionKind::zigzag_per_document: return "zigzag_per_document";
  }
  return "?";
}
constexpr std::string_view name_of(Selection selection) {
  return selection == Selection::random ? "random" : "local";
}

/// Where and how a layer runs: what `cpnsa run` and `cpnsa bench` have in common.
struct ExecutionOptions {
  DeviceKind device = DeviceKind::automatic;
  TransportKind transport = TransportKind::automatic;
  std::optional<int> ranks;  ///< under mpirun its number of processes, otherwise 1
  PartitionKind partition = PartitionKind::contiguous;
  Exchange exchange = Exchange::automatic;
  std::optional<DType> dtype;                                      ///< the device's default unless given
  std::int64_t deadline = Communicator::default_deadline.count();  ///< seconds that a rank waits for the others
  bool backward = true;
  bool keep_blocks = false;         ///< AttentionOptions::refetch_blocks is its opposite
  bool recompute_branches = false;  ///< as in AttentionOptions

  AttentionOptions attention_options(DType dtype) const;
  std::string describe() const;  ///< on one line: what every rank must have been given alike
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
