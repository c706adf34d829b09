#include "kernels/cuda/device.hpp"

// The dispatch page: which kernel runs, for every op. Hopper's kernels (sm90) run where they serve the layer, those
// for every GPU (sm80) elsewhere; nothing else in this folder decides it. common/ has the kernels that are the same for
// both, decode/ those that decode, for every GPU.

#include <algorithm>

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/run_op.hpp"
#include "kernels/cuda/decode/run_op.hpp"
#include "kernels/cuda/schedule/segment_schedule.hpp"
#include "kernels/cuda/sm80/run_op.hpp"
#include "kernels/cuda/sm80/shapes.hpp"
#include "kernels/cuda/sm90/run_op.hpp"
#include "kernels/cuda/sm90/selection/select_blocks_plan.hpp"
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
void CudaDevice::enqueue(const PullBlocks& a, Stream s) {
  sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const AddPulledBlocks& a, Stream s) {
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
void CudaDevice::enqueue(const AddSinks& a, Stream s) {
  sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const AddSinksBackward& a, Stream s) {
  sm80::run_op(a, native(s));
}
template <>
void CudaDevice::enqueue(const RotateRows& a, Stream s) {
  cuda::run_op(a, native(s));
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

template <>
void CudaDevice::enqueue(const PrepareDecode& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}
template <>
void CudaDevice::enqueue(const DecodeAppend& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}
template <>
void CudaDevice::enqueue(const DecodeCompress& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}
template <>
void CudaDevice::enqueue(const DecodeCompressedAttention& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}
template <>
void CudaDevice::enqueue(const DecodeSelectBlocks& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}
template <>
void CudaDevice::enqueue(const DecodeTokenAttention& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}
template <>
void CudaDevice::enqueue(const DecodeMergeSums& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}
template <>
void CudaDevice::enqueue(const DecodeMergeCandidates& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}
template <>
void CudaDevice::enqueue(const DecodeWeighParts& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}
template <>
void CudaDevice::enqueue(const DecodeMergeParts& a, Stream s) {
  decode::run_op(a, gpu_, native(s));
}

void CudaDevice::check_decode_supported(const Config& config, DType dtype, std::int64_t page) const {
  decode::check_limits(config, dtype, page);
}

std::size_t CudaDevice::decode_scratch_bytes(const DecodeSize& size) const {
  return decode::scratch_bytes(size);
}

std::size_t CudaDevice::decode_schedule_bytes(const DecodeSize& size) const {
  return decode::schedule_bytes(size);
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
    const int dense = sm90::dense_row(config);
    for (const int row : {dense, sm90::index_of(config), sm90::any_heads_row(config)}) {
      if (row < 0) continue;
      const std::vector<int> queries = sm90::query_tiles(sm90::shapes[row], config.heads_per_group());
      sizes.queries.insert(sizes.queries.end(), queries.begin(), queries.end());
    }
    std::int64_t end = 0;
    for (const Segment& segment : segments) end = std::max(end, segment.position + segment.rows);
    for (const int queries :
         {sm90::any_heads_select_queries(config), sm90::selected_attention_queries(config, DType::bf16, end),
          sm90::selected_query_gradients_queries(config, DType::bf16, end)})
      if (queries > 0) sizes.queries.push_back(queries);
    sizes.keys = sm90::shapes[dense].key_gradients.keys;
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
