#include "src/steps/gradient_sums.hpp"

#include <algorithm>
#include <vector>

#include "src/layer/parameters.hpp"

namespace cpnsa {
namespace {

/// Calls function(branch) for each that sums where none before it does.
template <class Function>
void for_each_sum(const std::array<void*, 3>& sums, const Function& function) {
  for (std::size_t branch = 0; branch < 3; ++branch) {
    const auto own = sums.begin() + static_cast<std::ptrdiff_t>(branch);
    if (std::find(sums.begin(), own, *own) == own) function(branch);
  }
}

}  // namespace

GradientSums::GradientSums(const LayerPlan& layer, Device& device, const AttentionGradients& wanted,
                           const BackwardBuffers& workspace)
    : parameters(wanted), layer_(layer), device_(device), wanted_(wanted) {
  const bool in_place = layer.gradient_dtype == layer.accumulate;
  q = in_place ? wanted.q.data : workspace.dq;
  const bool own_query = layer.options.compressed_query && wanted.q_cmp.data != wanted.q.data;
  q_cmp = !own_query ? q : in_place ? wanted.q_cmp.data : workspace.dq_cmp;
  gate = in_place ? wanted.gate.data : workspace.dgate;
  const auto choose = [&](const BranchTensors& views, const std::array<void*, 3>& own, std::array<void*, 3>& chosen) {
    const std::array<void*, 3> caller{views.cmp.data, views.slc.data, views.win.data};
    for (std::size_t branch = 0; branch < 3; ++branch) {
      const auto first = std::find(caller.begin(), caller.end(), caller[branch]);
      chosen[branch] = in_place ? caller[branch] : at(own, first - caller.begin());
    }
  };
  choose(wanted.k, workspace.dk, k);
  choose(wanted.v, workspace.dv, v);

  if (layer_.parameter_gradient_dtype == layer_.accumulate) return;
  own_parameters_ = workspace.parameter_sums;
  Arena memory(own_parameters_);
  parameters = parameters_in(memory, wanted, layer_.accumulate);
  own_parameter_bytes_ = memory.used();
}

void GradientSums::zero(Stream stream) const {
  const auto zero_bytes = [&](void* memory, std::size_t bytes) {
    if (bytes > 0) device_.fill_zero(memory, bytes, stream);
  };
  const auto zero_rows = [&](void* memory, std::int64_t width) {
    zero_bytes(memory, LayerSizes::bytes(layer_.plan.rows, width, layer_.sizes.accumulated));
  };
  zero_rows(q, layer_.config.num_q_heads * layer_.config.head_dim_qk);
  if (q_cmp != q) zero_rows(q_cmp, layer_.config.num_q_heads * layer_.config.head_dim_qk);
  for_each_sum(k, [&](std::size_t branch) { zero_rows(k[branch], layer_.sizes.k_width); });
  for_each_sum(v, [&](std::size_t branch) { zero_rows(v[branch], layer_.sizes.v_width); });
  if (own_parameters_) return zero_bytes(own_parameters_, own_parameter_bytes_);
  for_each_parameter(parameters, [&](const TensorView& view) { zero_bytes(view.data, view.bytes()); });
}

void GradientSums::convert(Stream stream) const {
  std::vector<Conversion> arrays;
  const auto add = [&](const TensorView& view, const void* sum) {
    arrays.push_back({view.data, sum, view.elements()});
  };
  const auto add_branches = [&](const BranchTensors& views, const std::array<void*, 3>& sums) {
    const std::array views_of{&views.cmp, &views.slc, &views.win};
    for_each_sum(sums, [&](std::size_t branch) { add(*views_of[branch], sums[branch]); });
  };
  if (layer_.gradient_dtype != layer_.accumulate) {
    add(wanted_.q, q);
    if (q_cmp != q) add(wanted_.q_cmp, q_cmp);
    add(wanted_.gate, gate);
    add_branches(wanted_.k, k);
    add_branches(wanted_.v, v);
  }
  if (own_parameters_) {
    std::vector<const void*> sums;
    for_each_parameter(parameters, [&](const TensorView& view) { sums.push_back(view.data); });
    auto sum = sums.begin();
    for_each_parameter(wanted_, [&](const TensorView& view) { add(view, *sum++); });
  }
  if (!arrays.empty()) device_.run(Convert{layer_.options.dtype, layer_.accumulate, arrays}, stream);
}

}  // namespace cpnsa
