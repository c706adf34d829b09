#pragma once

#include <cstdint>
#include <vector>

#include "cpnsa/decoder.hpp"
#include "cpnsa/page_allocator.hpp"
#include "tests/support/device_buffer.hpp"
#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// The tokens [begin, begin + count) of a document, appended in one step. If the document's sequence is longer than
/// `begin`, it is cut back first.
struct Piece {
  std::int64_t document;
  std::int64_t begin;
  std::int64_t count;
};

/// The first `tokens` tokens of document `to`, which equal those of `from`, are taken over from its sequence.
struct Fork {
  std::int64_t from;
  std::int64_t to;
  std::int64_t tokens;
};

/// One step of a server: what happens to sequences before it, and its batch.
struct ServerStep {
  std::vector<Piece> pieces;
  std::vector<Fork> forks{};
};

/// Every document by `count` tokens a step, all documents at once.
std::vector<ServerStep> steps_of(const Problem& problem, std::int64_t count);
/// Documents that join at random steps, in pieces of 1, of a few, and of up to `max_chunk` tokens; sometimes cut back.
std::vector<ServerStep> random_steps(const Problem& problem, Random& random, std::int64_t max_chunk);

struct ServerSetting {
  DType dtype = DType::f64;
  std::int64_t page = 0;
  std::int64_t summary_page = 0;
  bool replicate_summaries = false;
  bool checked = true;
  bool drops_pages = false;  ///< gives back pages that no later step reads; then nothing is cut back
  std::uint64_t seed = 1;    ///< of the order of pages, slots and sequences in the batch
};

/// The results in the order of the packed sequence.
struct ServerResult {
  Values out;                          ///< [T, H, d_v]
  std::vector<std::int32_t> selected;  ///< [T, G, n]
  Values log_sum_exp;                  ///< [T, 3, H]
  std::int64_t rows = 0;               ///< computed, those that were computed again included
  std::int64_t differences = 0;        ///< rows that had other bits when they were computed again
  DecodeStatistics statistics;         ///< of this rank
  std::int64_t expected_bytes = 0;     ///< what Decoder::bytes_per_step() says of all steps
};

/// A server in a test: one layer's cache, whose sequences are the problem's documents. Memory starts as NaN.
class DecodeServer {
 public:
  DecodeServer(const Problem& problem, const ServerSetting& setting, Device& device, Communicator& communicator,
               const std::vector<ServerStep>& steps);

  ServerResult run();

 private:
  struct Rows;

  void start(const ServerStep& step);
  void step(const ServerStep& step);
  void store(const std::vector<std::int64_t>& tokens);
  DeviceBuffer table(CachePart part);

  const Problem& problem_;
  ServerSetting setting_;
  Device& device_;
  const std::vector<ServerStep>& steps_;
  Random random_;
  Decoder decoder_;
  PageAllocator pages_;
  PageCounts counts_;
  DeviceBuffer cache_memory_, workspace_, schedule_;
  KvCache cache_;
  std::vector<std::int64_t> slots_;    ///< of each document
  std::vector<std::int64_t> lengths_;  ///< of each document's sequence
  TensorSet<DeviceBuffer> parameters_;
  DeviceBuffer out_, selected_, log_sum_exp_;
  std::vector<bool> stored_;
  ServerResult result_;
};

}  // namespace cpnsa::test
