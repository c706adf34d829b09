#include "kernels/cuda/device.hpp"

// The dispatch page: which kernel runs, for every op. Hopper's kernels (sm90) run where they serve the layer, those
// for every GPU (sm80) elsewhere; nothing else in this folder decides it. common/ has the kernels that are the same for
// both.

#include <algorithm>

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/run_op.hpp"
#include "kernels/cuda/schedule/segment_schedule.hpp"
#include "kernels/cuda/sm80/run_op.hpp"
#include "kernels/cuda/sm80/shapes.hpp"
#include "kernels/cuda/sm90/run_op.hpp"
#include "kernels/cuda/sm90/shapes.hpp"

namespace cpnsa::cuda {
namespace {

cudaStream_t native(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

}  // namespace

template <class... Layer>
bool CudaDevice::on_hopper(const Layer&... layer) const {
  return gpu_.is_hopper() && sm90::serves(layer...);
}

template <>
void CudaDevice::enqueue(const CompressedAttention& a, Stream s) {
  on_hopper(a) ? sm90::run_op(a, gpu_, native(s)) : sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const SelectBlocks& a, Stream s) {
  on_hopper(a) ? sm90::run_op(a, gpu_, native(s)) : sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const SelectedAttention& a, Stream s) {
  on_hopper(a) ? sm90::run_op(a, gpu_, native(s)) : sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const WindowAttention& a, Stream s) {
  on_hopper(a) ? sm90::run_op(a, gpu_, native(s)) : sm80::run_op(a, native(s));
}

template <>
void CudaDevice::enqueue(const CompressedAttentionBackward& a, Stream s) {
  on_hopper(a) ? sm90::run_op(a, gpu_, native(s)) : sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const SelectedAttentionBackward& a, Stream s) {
  on_hopper(a) ? sm90::run_op(a, gpu_, native(s)) : sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const WindowAttentionBackward& a, Stream s) {
  on_hopper(a) ? sm90::run_op(a, gpu_, native(s)) : sm80::run_op(a, native(s));
}

template <>
void CudaDevice::enqueue(const Compress& a, Stream s) {
  sm80::run_op(a, *handles_, native(s));
}
template <>
void CudaDevice::enqueue(const CompressBackward& a, Stream s) {
  sm80::run_op(a, *handles_, native(s));
}
template <>
void CudaDevice::enqueue(const MarkNeeds& a, Stream s) {
  sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const PackBlocks& a, Stream s) {
  sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const AddBlocks& a, Stream s) {
  sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const CombineBranches& a, Stream s) {
  sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const CombineBranchesBackward& a, Stream s) {
  sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const CopyRows& a, Stream s) {
  cuda::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const AddRows& a, Stream s) {
  cuda::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const Convert& a, Stream s) {
  cuda::run_op(a, native(s));
}

bool CudaDevice::combines_selected(const Config& config, DType dtype, const SegmentSchedule& queries) const {
  SelectedAttention a{};
  a.config = &config;
  a.dtype = dtype;
  a.queries = &queries;
  return on_hopper(a);
}

std::unique_ptr<SegmentSchedule> CudaDevice::schedule(std::span<const Segment> segments, const Config& config) {
  activate();
  TileSizes sizes{sm80::query_tiles(config), sm80::keys_per_tile};  // some stages of a layer may run on sm80's kernels
  if (on_hopper(config, DType::bf16)) {
    const std::vector<int> queries = sm90::query_tiles(sm90::shapes[sm90::index_of(config)]);
    sizes.queries.insert(sizes.queries.end(), queries.begin(), queries.end());
    sizes.keys = sm90::keys_per_tile;
  }
  return std::make_unique<CudaSegmentSchedule>(segments, config, sizes);
}

std::size_t CudaDevice::scratch_bytes(const ProblemSize& size) const {
  check(cudaSetDevice(index_), "cudaSetDevice");  // what CUB needs depends on the GPU
  return std::max({sizeof(unsigned),              // tickets of persistent kernels
                   sm80::compress_scratch_bytes(size), sm80::selected_attention_backward_scratch_bytes(size),
                   on_hopper(*size.config, size.dtype) ? sm90::compressed_attention_backward_scratch_bytes(size)
                                                       : sm80::compressed_attention_backward_scratch_bytes(size)});
}

}  // namespace cpnsa::cuda
