#include "cpnsa/cuda/info.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <string>

#include "cpnsa/cuda/device.hpp"
#include "cpnsa/error.hpp"
#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/gpu.hpp"
#include "kernels/cuda/common/limits.hpp"
#include "kernels/cuda/decode/run_op.hpp"
#include "kernels/cuda/sm90/run_op.hpp"

namespace cpnsa::cuda {
namespace {

std::string version_text(int version) {
  return version > 0 ? fmt::format("{}.{}", version / 1000, version % 1000 / 10) : "";
}

std::string uuid_text(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (int i = 0; i < 16; ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

std::string list_of_tiles() {
  std::string text;
  for (const HopperTile& tile : hopper_tiles())
    text += fmt::format("{}({}, {})", text.empty() ? "" : ", ", tile.head_dim_qk, tile.head_dim_v);
  return text;
}

/// The choice for one op of a layer on one GPU.
class Choice {
 public:
  Choice(const Config& config, DType dtype, const Gpu& gpu) : config_(config), dtype_(dtype), gpu_(gpu) {}

  /// `page`: where the op's own conditions are described.
  template <class Op>
  OpKernel of(std::string_view name, const char* page) const {
    Op op{};
    op.config = &config_;
    op.dtype = dtype_;
    if (!gpu_.is_hopper())
      return {name, KernelFamily::portable, gpu_.capability > 90 ? "there are no kernels for this GPU alone" : ""};
    if (sm90::serves(op)) return {name, KernelFamily::hopper, ""};
    if (sm90::serves(config_, dtype_))
      return {name, KernelFamily::portable,
              fmt::format("Hopper's kernel of this op needs other hyperparameters: {}", page)};
    return {name, KernelFamily::portable,
            fmt::format("found head dimensions {} and {}, softmax scale {}, expected for Hopper's kernels a positive "
                        "scale and head dimensions that one of the tiles (head_dim_qk, head_dim_v) {} holds",
                        config_.head_dim_qk, config_.head_dim_v, config_.scale(), list_of_tiles())};
  }

 private:
  const Config& config_;
  DType dtype_;
  Gpu gpu_;
};

}  // namespace

std::vector<LibraryVersion> library_versions() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  static_cast<void>(cudaGetLastError());
  return {{"CUDA runtime", version_text(CUDART_VERSION), version_text(runtime)},
          {"CUDA driver", "", version_text(driver)}};
}

std::vector<GpuInfo> gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return {};
  }
  int current = 0;
  if (count > 0) check(cudaGetDevice(&current), "cudaGetDevice");
  std::vector<GpuInfo> all;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    int clock_khz = 0;
    check(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, index), "cudaDeviceGetAttribute");
    std::size_t free_bytes = 0, memory_bytes = 0;
    check(cudaSetDevice(index), "cudaSetDevice");
    check(cudaMemGetInfo(&free_bytes, &memory_bytes), "cudaMemGetInfo");
    all.push_back(
        {index, 10 * properties.major + properties.minor, properties.name, uuid_text(properties.uuid),
         fmt::format("{:04x}:{:02x}:{:02x}", properties.pciDomainID, properties.pciBusID, properties.pciDeviceID),
         properties.multiProcessorCount, memory_bytes, free_bytes, clock_khz / 1000, properties.ECCEnabled != 0});
  }
  if (count > 0) check(cudaSetDevice(current), "cudaSetDevice");
  return all;
}

std::vector<OpKernel> kernels_of(const Config& given, DType dtype, int capability) {
  if (capability < 80)
    throw UnsupportedError(fmt::format("cuda device: found compute capability {}.{}, supported are 8.0 and later",
                                       capability / 10, capability % 10));
  const Config config = given.with_defaults();
  config.validate();
  check_limits(config, dtype);
  const Choice choice(config, dtype, {capability, 1});
  constexpr const char *compressed = "docs/kernels/compressed_attention.md", *selection = "docs/kernels/selection.md",
                       *selected = "docs/kernels/selected_attention.md", *window = "docs/kernels/window_attention.md";
  return {choice.of<CompressedAttention>("compressed_attention", compressed),
          choice.of<SelectBlocks>("select_blocks", selection),
          choice.of<SelectedAttention>("selected_attention", selected),
          choice.of<WindowAttention>("window_attention", window),
          choice.of<CompressedAttentionBackward>("compressed_attention_backward", compressed),
          choice.of<SelectedAttentionBackward>("selected_attention_backward", selected),
          choice.of<WindowAttentionBackward>("window_attention_backward", window)};
}

DecodeMemory decode_memory(const DecodeSize& size) {
  return {decode::scratch_bytes(size), decode::schedule_bytes(size)};
}

}  // namespace cpnsa::cuda
