#include <algorithm>
#include <vector>

#include "kernels/cpu/decode_schedule.hpp"
#include "kernels/cpu/importance.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/selection_rule.hpp"

namespace cpnsa::cpu {
namespace {

/// The blocks [begin, end) of a sequence, whose summaries follow one another among this rank's rows.
struct BlockChunk {
  std::int64_t begin;
  std::int64_t end;
  std::int64_t page;  ///< token page that holds them; 0 if this rank holds all summaries
};

template <class T>
class DecodeBlockSelector {
 public:
  using A = Arithmetic<T>;

  explicit DecodeBlockSelector(const DecodeSelectBlocks& arguments)
      : a_(arguments),
        config_(*arguments.config),
        trailing_(trailing_strides(config_)),
        strides_per_block_(config_.select_block / config_.compress_stride),
        rows_(config_),
        keys_(config_.head_dim_qk),
        importance_(queries() * chunk_stride()) {
    rules_.resize(static_cast<std::size_t>(queries()));
    best_.resize(static_cast<std::size_t>(queries()));
  }

  std::int64_t queries() const { return rows_.queries(); }

  void select(const DecodeSequence& sequence, const QueryTile& tile) {
    for (std::int64_t i = 0; i < tile.count; ++i) {
      rule(i) = SelectionRule(config_, tile.position(i));
      best(i).start(rule(i));
    }
    const SelectionRule& last = rule(tile.count - 1);  // has the most causal blocks
    if (last.chooses()) {
      rows_.start(tile, static_cast<const T*>(a_.q));
      for_each_chunk({last.first(), last.last()}, [&](const BlockChunk& chunk) { score(sequence, tile, chunk); });
    }
    for (std::int64_t i = 0; i < tile.count; ++i) write(tile, i);
  }

 private:
  static constexpr std::int64_t max_summaries = 1024;

  std::int64_t blocks_per_chunk() const { return std::max<std::int64_t>(1, max_summaries / strides_per_block_); }
  /// Room for the importances of a chunk's summaries, and for the padding of the last key tile.
  std::int64_t chunk_stride() const { return blocks_per_chunk() * strides_per_block_ + trailing_ + key_tile; }

  SelectionRule& rule(std::int64_t query) { return rules_[static_cast<std::size_t>(query)]; }
  BestBlocks<A>& best(std::int64_t query) { return best_[static_cast<std::size_t>(query)]; }

  /// Calls function(BlockChunk) for the given blocks that this rank scores.
  template <class Function>
  void for_each_chunk(ColumnRange blocks, Function&& function) const {
    const PagedSummaries& summaries = a_.summaries;
    const std::int64_t step = summaries.ranks == 1 ? blocks.end : summaries.strides / strides_per_block_;
    for (std::int64_t begin = blocks.begin; begin < blocks.end;) {
      const std::int64_t page = begin / step, page_end = std::min(blocks.end, (page + 1) * step);
      if (page % summaries.ranks != summaries.rank) begin = page_end;
      for (; begin < page_end; begin += blocks_per_chunk())
        function(BlockChunk{begin, std::min(page_end, begin + blocks_per_chunk()), page});
      begin = page_end;
    }
  }

  void score(const DecodeSequence& sequence, const QueryTile& tile, const BlockChunk& chunk) {
    // Summaries i that overlap the chunk: those from `first` on, up to its end.
    const std::int64_t first = std::max<std::int64_t>(0, chunk.begin * strides_per_block_ - trailing_);
    const std::int64_t end =
        std::min(chunk.end * strides_per_block_, visible_summaries(config_, tile.position(tile.count - 1)));
    std::fill_n(importance_.data(), tile.count * chunk_stride(), A{0});
    for (std::int64_t at = first; at < end; at += key_tile) score_tile(sequence, tile, chunk, first, at, end);
    for (std::int64_t i = 0; i < tile.count; ++i)
      if (rule(i).chooses()) offer(i, chunk, first, visible_summaries(config_, tile.position(i)));
  }

  void score_tile(const DecodeSequence& sequence, const QueryTile& tile, const BlockChunk& chunk, std::int64_t first,
                  std::int64_t at, std::int64_t end) {
    const auto keys = rows_of_group(static_cast<const T*>(a_.summaries.k), config_, tile.group, config_.head_dim_qk);
    const auto sums = heads_of_group(static_cast<const A*>(a_.log_sum_exp), config_, tile.group, 1);
    const std::int64_t count = std::min(key_tile, end - at), x = at + trailing_;
    const std::int64_t row = first_summary_row(a_.summaries, chunk.page) + x - chunk.page * a_.summaries.strides;
    for_each_summary_run(a_.summaries, sequence.slot, row, count, at, [&](const PageRun& run) {
      keys_.load(keys.from(run.row), ColumnRange{run.begin - at, run.end - at});
    });
    for (std::int64_t i = 0; i < tile.count; ++i) {
      const std::int64_t seen = std::min(count, visible_summaries(config_, tile.position(i)) - at);
      if (rule(i).chooses() && seen > 0)
        rows_.compute(i, keys_, seen, sums.row(tile.row(i)), importance_.data() + i * chunk_stride() + at - first);
    }
  }

  /// Offers the chunk's blocks with their scores: sums over their summaries in ascending order.
  void offer(std::int64_t query, const BlockChunk& chunk, std::int64_t first, std::int64_t visible) {
    const std::int64_t s = config_.compress_stride, l = config_.compress_block, m = config_.select_block;
    const A* const importance = importance_.data() + query * chunk_stride();
    for (std::int64_t block = chunk.begin; block < std::min(chunk.end, rule(query).last()); ++block) {
      A score{0};
      const std::int64_t begin = std::max<std::int64_t>(0, block * strides_per_block_ - trailing_);
      for (std::int64_t i = begin; i < std::min((block + 1) * strides_per_block_, visible); ++i) {
        const std::int64_t overlap = std::min(i * s + l, (block + 1) * m) - std::max(i * s, block * m);
        score += static_cast<A>(overlap) / static_cast<A>(s) * importance[i - first];
      }
      best(query).offer({score, block});
    }
  }

  void write(const QueryTile& tile, std::int64_t query) {
    const std::int64_t count = config_.select_count;
    const std::int64_t item = (tile.row(query) * config_.num_kv_heads + tile.group) * count;
    if (a_.selected) {
      best(query).write(a_.selected + item, count);
      return;
    }
    A* const scores = static_cast<A*>(a_.scores) + item;
    std::int32_t* const candidates = a_.candidates + item;
    std::fill_n(scores, count, A{0});
    std::fill_n(candidates, count, -1);
    std::int64_t i = 0;
    for (const BlockCandidate<A>& candidate : best(query).candidates()) {
      scores[i] = candidate.score;
      candidates[i++] = static_cast<std::int32_t>(candidate.block);
    }
  }

  const DecodeSelectBlocks& a_;
  const Config& config_;
  std::int64_t trailing_;
  std::int64_t strides_per_block_;
  Importance<T> rows_;
  ColumnPanel<A> keys_;
  Buffer<A> importance_;  // [queries, chunk_stride()]
  std::vector<SelectionRule> rules_;
  std::vector<BestBlocks<A>> best_;
};

}  // namespace

template <>
void run_op(const DecodeSelectBlocks& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) {
    DecodeBlockSelector<T> selector(a);
    for_each_decode_tile(a, selector.queries(), [&](const DecodeSequence& sequence, const QueryTile& tile) {
      selector.select(sequence, tile);
    });
  });
}

}  // namespace cpnsa::cpu
