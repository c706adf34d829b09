#include "src/forecast/memory.hpp"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "src/layer/buffers.hpp"

namespace cpnsa::forecasts {
namespace {

/// Lays buffers out over addresses that are never read, and names the pieces by where their pointers lie. Pointers are
/// given in the order of the layout; one that lies in an earlier piece, as reused memory does, begins none.
class Pieces {
 public:
  Arena& arena() { return arena_; }

  void begin(std::string name, const void* pointer) {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    if (address < base) return;  // not laid out
    const std::size_t offset = address - base;
    if (!starts_.empty() && offset < starts_.back().second) return;
    starts_.emplace_back(std::move(name), offset);
  }

  std::vector<MemoryPart> parts() const {
    std::vector<MemoryPart> parts;
    for (std::size_t i = 0; i < starts_.size(); ++i) {
      const std::size_t end = i + 1 < starts_.size() ? starts_[i + 1].second : arena_.used();
      if (const std::size_t bytes = end - starts_[i].second; bytes > 0) parts.push_back({starts_[i].first, bytes});
    }
    return parts;
  }

 private:
  static constexpr std::uintptr_t base = Arena::alignment;
  Arena arena_{reinterpret_cast<void*>(base)};
  std::vector<std::pair<std::string, std::size_t>> starts_;
};

void name_branches(Pieces& pieces, const BranchBuffers& branches) {
  pieces.begin("branch outputs", branches.out[cmp]);
  pieces.begin("log-sum-exps", branches.log_sum_exp[cmp]);
}

void name_exchange(Pieces& pieces, const ExchangeBuffers& exchange) {
  pieces.begin("blocks sent", exchange.send);
  pieces.begin("block pools", exchange.pools[0]);
  pieces.begin("block lists", exchange.table);
}

void name_saved(Pieces& pieces, const SavedBuffers& saved) {
  pieces.begin("summaries", saved.summaries.k);
  pieces.begin("halos", saved.summary_halo.k);
  name_branches(pieces, saved.branches);
  pieces.begin("blocks of other ranks", saved.blocks);
  pieces.begin("selected indices", saved.selected);
}

std::vector<MemoryPart> saved_parts(const LayerPlan& layer) {
  Pieces pieces;
  name_saved(pieces, SavedBuffers(pieces.arena(), layer));
  return pieces.parts();
}

std::vector<MemoryPart> forward_parts(const LayerPlan& layer) {
  Pieces pieces;
  const ForwardWindow window(pieces.arena(), layer);
  pieces.begin("window", window.blocks.k);
  if (!layer.options.backward) name_saved(pieces, SavedBuffers(pieces.arena(), layer));
  const ForwardBuffers buffers(pieces.arena(), layer, window);
  name_exchange(pieces, buffers.exchange);
  name_branches(pieces, buffers.branches);
  pieces.begin("halo messages", layer.pulls() ? buffers.summary_halo.receive : buffers.summary_halo.send);
  pieces.begin("gathered summaries", buffers.gathered);
  pieces.begin("need matrix", buffers.needs);
  pieces.begin("scratch", buffers.scratch);
  return pieces.parts();
}

std::vector<MemoryPart> backward_parts(const LayerPlan& layer) {
  Pieces pieces;
  const BackwardWindow window(pieces.arena(), layer);
  pieces.begin("window", window.blocks.k);
  const BackwardBuffers buffers(pieces.arena(), layer, {}, window);
  name_exchange(pieces, buffers.exchange);
  name_branches(pieces, buffers.branches);
  pieces.begin("row weights", buffers.weights);
  pieces.begin("gradient sums", buffers.dgate);
  pieces.begin("block gradients", buffers.dpools[0]);
  pieces.begin("returned block gradients", buffers.returned_blocks[0]);
  pieces.begin("summary gradients", buffers.dsummaries.k);
  pieces.begin("halo gradients", buffers.dsummary_halo.k);
  pieces.begin("halo messages", layer.pulls() ? buffers.summary_halo.receive : buffers.summary_halo.send);
  pieces.begin("parameter gradients", buffers.parameter_sums);
  pieces.begin("scratch", buffers.scratch);
  return pieces.parts();
}

}  // namespace

void add_memory(const LayerPlan& layer, RankForecast& rank) {
  rank.saved_bytes = layer.saved_bytes;
  rank.workspace_bytes = std::max(layer.forward_bytes, layer.backward_bytes);
  rank.scratch_bytes = layer.scratch_bytes;
  if (layer.options.backward) rank.saved = saved_parts(layer);
  rank.forward = forward_parts(layer);
  if (layer.options.backward) rank.backward = backward_parts(layer);
}

}  // namespace cpnsa::forecasts
