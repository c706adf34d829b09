#include "kernels/cuda/common/ordered_accumulation.cuh"
#include "kernels/cuda/schedule/key_tiles.hpp"
#include "kernels/cuda/sm80/attention/gradient_launch.cuh"
#include "kernels/cuda/sm80/attention/row_cursor.cuh"
#include "kernels/cuda/sm80/attention/summary_source.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 2)
    compressed_query_gradients_kernel(GradientProblem<typename Shape::T> a, Summaries<Shape> summaries) {
  extern __shared__ __align__(1024) unsigned char shared[];
  // The last tiles see most: they start first.
  const QueryTile tile = a.tiles[gridDim.x - 1 - blockIdx.x];
  const HeadSlice slice(a, blockIdx.y);
  const SummarySource<Shape> source(a, tile, a.segments[tile.segment], slice.group, summaries);
  add_query_gradients<Shape>(a, tile, slice, source, ptx::shared_address(shared));
}

/// The tile's part of the rows that see its summaries.
template <class Shape>
class SummaryRows {
 public:
  __device__ SummaryRows(const AttentionProblem<typename Shape::T>& a, const SummaryKeyTile& tile, const QueryRun* runs,
                         int group, const SummaryRule& rule)
      : heads_(a.num_q_heads),
        tile_(tile),
        run_(runs + tile.run_begin - 1),
        last_run_(runs + tile.run_end - 1),
        rule_(rule),
        first_head_(group * a.heads_per_group),
        rows_(a.heads_per_group) {}

  __device__ bool next() {
    rows_.advance(Shape::rows);
    while (rows_.done()) {
      if (run_ == last_run_) return false;
      ++run_;
      rows_.start(static_cast<int>(max(run_->first, tile_.query_begin)),
                  static_cast<int>(min(run_->first + run_->queries, tile_.query_end)));
    }
    return true;
  }
  __device__ std::int64_t head_row(int index) const {
    const int query = rows_.query_of(index);
    return query < rows_.end ? (run_->row + query - run_->first) * heads_ + first_head_ + rows_.head_of(index) : -1;
  }
  __device__ KeyRange visible(int index) const {
    const int seen = rule_.visible(static_cast<int>(run_->position + rows_.query_of(index) - run_->first));
    return {0, min(tile_.summaries, seen - tile_.summary)};
  }

 private:
  int heads_;
  SummaryKeyTile tile_;
  const QueryRun* run_;  // that the rows are of; before the first at the start
  const QueryRun* last_run_;
  SummaryRule rule_;
  int first_head_;
  RowCursor rows_;
};

struct SummaryGradients {
  const SummaryKeyTile* tiles;
  const QueryRun* runs;
  float* dkeys;    ///< [C, G, d_qk]
  float* dvalues;  ///< [C, G, d_v]
  OrderedAccumulation order;
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads)
    compressed_key_gradients_kernel(GradientProblem<typename Shape::T> a, Summaries<Shape> summaries,
                                    SummaryGradients gradients) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const unsigned ticket = gradients.order.next_ticket();
  const SummaryKeyTile& tile = gradients.tiles[ticket / a.num_kv_heads];
  const int group = static_cast<int>(ticket % a.num_kv_heads);
  const auto row = [&](auto* tensor, int dim, int r) -> decltype(tensor) {
    return r < tile.summaries ? tensor + ((tile.row + r) * a.num_kv_heads + group) * dim : nullptr;
  };
  KeyGradients<Shape> keys(a, shared);
  keys.load_keys([&](int r) { return row(summaries.keys, a.d_qk, r); },
                 [&](int r) { return row(summaries.values, a.d_v, r); });
  keys.template walk<SummaryRows<Shape>>(a, tile, gradients.runs, group, summaries.rule);

  const std::int64_t slot = static_cast<std::int64_t>(tile.slot) * a.num_kv_heads + group;
  gradients.order.acquire(slot, tile.turn);
  keys.add_to([&](int r) { return row(gradients.dkeys, a.d_qk, r); },
              [&](int r) { return row(gradients.dvalues, a.d_v, r); });
  gradients.order.release(slot, tile.turn);
}

}  // namespace

std::size_t compressed_attention_backward_scratch_bytes(const ProblemSize& size) {
  // A tile of keys has at least one summary.
  return size.backward ? OrderedAccumulation::bytes(size.summaries * size.config->num_kv_heads) : 0;
}

template <>
void run_op(const CompressedAttentionBackward& a, cudaStream_t stream) {
  visit_shape<QueryGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    launch_query_gradients<Shape>(compressed_query_gradients_kernel<Shape>, a, Shape::shared_bytes,
                                  a.config->num_kv_heads, stream, summary_tensors<Shape>(a));
  });
  visit_shape<KeyGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const ListView<SummaryKeyTile> tiles = schedule.summary_key_tiles();
    if (tiles.count == 0) return;
    check(cudaMemsetAsync(a.scratch, 0, OrderedAccumulation::bytes(schedule.summary_slots() * a.config->num_kv_heads),
                          stream),
          "cudaMemsetAsync");
    const SummaryGradients gradients{tiles.device, schedule.query_runs(), static_cast<float*>(a.dkeys),
                                     static_cast<float*>(a.dvalues), OrderedAccumulation(a.scratch)};
    const dim3 grid(static_cast<unsigned>(tiles.count * a.config->num_kv_heads));
    launch_key_gradients<Shape>(compressed_key_gradients_kernel<Shape>, a, grid, stream, summary_tensors<Shape>(a),
                                gradients);
  });
}

}  // namespace cpnsa::cuda::sm80
