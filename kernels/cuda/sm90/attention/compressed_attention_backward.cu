#include "kernels/cuda/sm90/attention/gradient_launch.cuh"
#include "kernels/cuda/sm90/attention/summary_source.cuh"
#include "kernels/cuda/sm90/run_op.hpp"

namespace cpnsa::cuda::sm90 {
namespace {

/// A tile's part of the queries that see its summaries, in stages that do not cross the end of a run.
template <class Shape>
class SummaryQueries {
 public:
  static constexpr bool is_scattered = false;
  static constexpr bool is_ordered = true;

  struct Parameters : QueryGradientMaps {
    CUtensorMap keys[1];
    CUtensorMap values[1];
    OrderedAccumulation order;
    SummaryRule rule;
    const SummaryKeyTile* tiles;
    const QueryRun* runs;
    float* dkeys;    ///< [C, G, d_qk]
    float* dvalues;  ///< [C, G, d_v]
  };
  struct Plan : KeyPlan {
    SummaryKeyTile tile;
  };

  template <class T>
  __device__ static Plan plan(const GradientProblem<T>& a, const Parameters& parameters, unsigned ticket) {
    const typename Shape::Rows rows(a.heads_per_group);
    Plan plan{};
    plan.tile = parameters.tiles[ticket / a.num_kv_heads];
    const SummaryKeyTile& tile = plan.tile;
    plan.keys = tile.summaries;
    plan.group = static_cast<int>(ticket % a.num_kv_heads);
    plan.head = plan.group;
    plan.row = static_cast<int>(tile.row);
    plan.dkey_step = a.num_kv_heads * a.d_qk;
    plan.dvalue_step = a.num_kv_heads * a.d_v;
    plan.dkeys = parameters.dkeys + (tile.row * a.num_kv_heads + plan.group) * a.d_qk;
    plan.dvalues = parameters.dvalues + (tile.row * a.num_kv_heads + plan.group) * a.d_v;
    plan.slot = static_cast<std::int64_t>(tile.slot) * a.num_kv_heads + plan.group;
    plan.turn = static_cast<unsigned>(tile.turn);
    for (int run = tile.run_begin; run < tile.run_end; ++run) {
      const std::int64_t queries = queries_of(tile, parameters.runs[run]);
      plan.stages += static_cast<int>((max(std::int64_t{0}, queries) + rows.queries() - 1) / rows.queries());
    }
    return plan;
  }

  template <class T>
  __device__ SummaryQueries(const GradientProblem<T>& a, const Parameters& parameters, const Plan& plan)
      : rows_(a.heads_per_group),
        parameters_(parameters),
        tile_(plan.tile),
        run_(parameters.runs + plan.tile.run_begin) {}

  __device__ void next() {
    left_ -= rows_.queries();
    row_ += rows_.queries();
    position_ += rows_.queries();
    while (left_ <= 0) {
      left_ = static_cast<int>(queries_of(tile_, *run_));
      const std::int64_t skipped = max(std::int64_t{0}, tile_.query_begin - run_->first);
      row_ = static_cast<int>(run_->row + skipped);
      position_ = static_cast<int>(run_->position + skipped);
      ++run_;
    }
  }
  __device__ int row(int query) const { return row_ + query; }
  __device__ KeyRange visible(int query) const {
    if (query >= left_) return {0, 0};
    return {0, min(tile_.summaries, parameters_.rule.visible(position_ + query) - tile_.summary)};
  }

 private:
  typename Shape::Rows rows_;
  /// Number of queries of a run in the tile's part.
  __device__ static std::int64_t queries_of(const SummaryKeyTile& tile, const QueryRun& run) {
    return min(run.first + run.queries, tile.query_end) - max(run.first, tile.query_begin);
  }

  const Parameters& parameters_;
  const SummaryKeyTile& tile_;
  const QueryRun* run_;  // the next one
  int left_ = 0;         // queries from the stage's first on, in the run
  int row_ = 0;
  int position_ = 0;
};

}  // namespace

std::size_t compressed_attention_backward_scratch_bytes(const ProblemSize& size) {
  // A tile of keys has at least one summary, and each of two consumer warpgroups has turns of its own.
  return size.backward ? OrderedAccumulation::bytes(2 * size.summaries * size.config->num_kv_heads) : 0;
}

template <>
void run_op(const CompressedAttentionBackward& a, const Gpu& gpu, cudaStream_t stream) {
  const SummaryRule rule(*a.config);
  visit_dense_shape<QueryGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using Walk = SummaryWalk<Shape::keys>;
    const auto [keys, values] = summary_maps(a, Shape::keys);
    launch_query_gradients<Shape, Walk>(a, typename Walk::Parameters{{keys}, {values}, rule}, gpu, stream);
  });
  visit_dense_shape<KeyTileShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using Walk = SummaryQueries<Shape>;
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const ListView<SummaryKeyTile> tiles = schedule.summary_key_tiles();
    if (tiles.count == 0) return;
    const std::int64_t groups = a.config->num_kv_heads;
    check(cudaMemsetAsync(a.scratch, 0,
                          OrderedAccumulation::bytes(schedule.summary_slots() * groups * Shape::consumers), stream),
          "cudaMemsetAsync");
    const auto [keys, values] = summary_maps(a, Shape::keys);
    const typename Walk::Parameters parameters{key_row_maps<Shape, Walk>(a),
                                               {keys},
                                               {values},
                                               OrderedAccumulation(a.scratch),
                                               rule,
                                               tiles.device,
                                               schedule.query_runs(),
                                               static_cast<float*>(a.dkeys),
                                               static_cast<float*>(a.dvalues)};
    launch_key_gradients<Shape, Walk>(a, parameters, tiles.count * groups, stream);
  });
}

}  // namespace cpnsa::cuda::sm90
