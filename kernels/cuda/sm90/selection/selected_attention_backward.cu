#include "kernels/cuda/common/selected_parts.cuh"
#include "kernels/cuda/sm90/attention/gradient_launch.cuh"
#include "kernels/cuda/sm90/run_op.hpp"
#include "kernels/cuda/sm90/selection/block_maps.cuh"
#include "kernels/cuda/sm90/selection/selected_query_gradients.hpp"

namespace cpnsa::cuda::sm90 {
namespace {

/// Each block has its own queries, so a thread block takes one, or 64 tokens of one.
static_assert(tokens_per_block == selected_tile_keys);
template <class T, int Dqk, int Dv, int Heads>
using BlockShape = KeyGradientShape<T, Dqk, Dv, Heads, tokens_per_block>;

/// A part of the queries that selected a block: rows anywhere, each copied by itself.
template <class Shape>
class SelectingQueries {
 public:
  static constexpr bool is_scattered = true;
  static constexpr bool is_ordered = true;

  struct Parameters : QueryGradientMaps, BlockMaps {
    SelectedTensors<typename Shape::T> tensors;
    SelectedGradients gradients;
    OrderedAccumulation order;
  };
  struct Plan : KeyPlan {
    BlockTile tile;
    const std::int32_t* rows;
    int count;
  };

  template <class T>
  __device__ static Plan plan(const GradientProblem<T>& a, const Parameters& parameters, unsigned ticket) {
    const SelectedPart part(a, parameters.tensors, parameters.gradients, ticket);
    const BlockRows<float> sums(parameters.gradients.tensors, part.group);
    const bool own = part.at >= 0;
    const typename Shape::Rows rows(a.heads_per_group);
    Plan plan{};
    plan.tile = part.tile;
    plan.rows = part.rows;
    plan.count = part.count;
    plan.keys = part.tile.keys;
    plan.stages = (part.count + rows.queries() - 1) / rows.queries();
    plan.map = own ? 0 : 1;
    plan.head = own ? part.group : part.tile.first;
    plan.row = own ? part.at + part.tile.first : -1 - part.at;
    plan.group = part.group;
    plan.dkey_step = own ? a.num_kv_heads * a.d_qk : a.d_qk;
    plan.dvalue_step = own ? a.num_kv_heads * a.d_v : a.d_v;
    plan.dkeys = sums.key(part.at, part.tile.first);
    plan.dvalues = sums.value(part.at, part.tile.first);
    plan.slot = part.slot;
    plan.turn = part.turn;
    return plan;
  }

  template <class T>
  __device__ SelectingQueries(const GradientProblem<T>& a, const Parameters&, const Plan& plan)
      : rows_(a.heads_per_group), plan_(plan), first_(-rows_.queries()) {}

  __device__ void next() { first_ += rows_.queries(); }
  __device__ int row(int query) const { return plan_.rows[min(first_ + query, plan_.count - 1)]; }
  __device__ KeyRange visible(int query) const {
    return {0, first_ + query < plan_.count ? plan_.tile.seen_by(row(query)) : 0};
  }

 private:
  typename Shape::Rows rows_;
  const Plan& plan_;
  int first_;
};

}  // namespace

template <>
void run_op(const SelectedAttentionBackward& a, const Gpu& gpu, cudaStream_t stream) {
  selected_query_gradients(a, gpu, stream);
  if (cuda_schedule(a.queries).rows == 0 || a.group_begin == a.group_end) return;
  const SelectedParts parts = list_selected_parts(a, stream);
  visit_shape<BlockShape, true>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using Walk = SelectingQueries<Shape>;
    const auto tensors = selected_tensors<typename Shape::T>(a, 0);
    const typename Walk::Parameters parameters{key_row_maps<Shape, Walk>(a), block_maps(a, tokens_per_block), tensors,
                                               selected_gradients(a, parts.lists, tensors),
                                               OrderedAccumulation(parts.lists.rest)};
    launch_key_gradients<Shape, Walk>(a, parameters, parts.count, stream);
  });
}

}  // namespace cpnsa::cuda::sm90
