#include "src/forecast/demand.hpp"

#include <algorithm>

#include "src/planning/at.hpp"

namespace cpnsa::forecasts {
namespace {

// A block that is chosen so often on average is missed with a probability below 1e-8.
constexpr double surely_chosen = 20;

constexpr std::int64_t run = 64;         ///< neighbouring queries that share picks under PickPattern::local
constexpr std::int64_t neighbours = 16;  ///< of which bench counts the different blocks

// Blocks that 16 neighbouring queries choose beyond those of one: 47 different ones with n 16, as bench measures them
// at 64K tokens, docs/performance.md.
constexpr std::int64_t own_picks(std::int64_t count) {
  return count * 31 / 16;
}

/// splitmix64.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  /// Below `limit`, which is at most 2^31.
  std::int64_t below(std::int64_t limit) {
    state_ += 0x9e3779b97f4a7c15ull;
    std::uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    return static_cast<std::int64_t>((x >> 32) * static_cast<std::uint64_t>(limit) >> 32);
  }

 private:
  std::uint64_t state_;
};

/// Marks the picks of one run of a rank's tokens.
class RunSampler {
 public:
  RunSampler(const Config& config, planning::NeedMatrix& needs, Random& random)
      : config_(config), needs_(needs), random_(random) {}

  void mark(const planning::OwnedRun& owned, const planning::Document& document, PickPattern picks) {
    const std::int64_t step = picks == PickPattern::random ? 1 : neighbours;
    const std::int64_t first = owned.begin - document.begin, last = owned.end() - document.begin;
    const std::int64_t blocks = (last - 1) / config_.select_block + 1;
    const std::int64_t choices =
        std::max<std::int64_t>(0, config_.select_count - config_.init_blocks - config_.local_blocks);
    mark_forced(owned.rank, document, first, last);
    const std::int64_t draws = picks == PickPattern::random ? choices : own_picks(choices);
    const double rows_per_step = static_cast<double>(last - first) / static_cast<double>(step);
    if (rows_per_step * static_cast<double>(draws) >= surely_chosen * static_cast<double>(blocks) ||
        blocks <= config_.select_count)
      return mark_all(owned.rank, document, blocks);
    for (std::int64_t token = first; token < last; token += step) {
      const std::int64_t visible = token / config_.select_block + 1;
      for (std::int64_t group = 0; group < config_.num_kv_heads; ++group) {
        for (std::int64_t draw = 0; draw < draws; ++draw)
          needs_.want(owned.rank, document.block + random_.below(visible), group);
        if (picks == PickPattern::local && (token - first) % run < step)
          for (std::int64_t draw = 0; draw < choices; ++draw)
            needs_.want(owned.rank, document.block + random_.below(visible), group);
      }
    }
  }

 private:
  void mark_all(int rank, const planning::Document& document, std::int64_t blocks) {
    for (std::int64_t block = 0; block < blocks; ++block)
      for (std::int64_t group = 0; group < config_.num_kv_heads; ++group)
        needs_.want(rank, document.block + block, group);
  }

  void mark_forced(int rank, const planning::Document& document, std::int64_t first, std::int64_t last) {
    const std::int64_t begin = first / config_.select_block, end = (last - 1) / config_.select_block + 1;
    const auto want = [&](std::int64_t block) {
      for (std::int64_t group = 0; group < config_.num_kv_heads; ++group)
        needs_.want(rank, document.block + block, group);
    };
    for (std::int64_t block = 0; block < std::min(config_.init_blocks, end); ++block) want(block);
    for (std::int64_t block = std::max<std::int64_t>(0, begin - config_.local_blocks + 1); block < end; ++block)
      want(block);
  }

  const Config& config_;
  planning::NeedMatrix& needs_;
  Random& random_;
};

}  // namespace

planning::NeedMatrix sample_needs(const Config& config, const planning::Layout& layout, PickPattern picks,
                                  std::uint64_t seed) {
  planning::NeedMatrix needs(layout.ranks(), layout.blocks, config.num_kv_heads);
  Random random(seed);
  RunSampler sampler(config, needs, random);
  for (const auto& runs : layout.runs)
    for (const planning::OwnedRun& owned : runs) sampler.mark(owned, layout.document_of(owned), picks);
  return needs;
}

}  // namespace cpnsa::forecasts
