#include "kernels/cuda/profiler/ranges.hpp"

#include <nvtx3/nvToolsExt.h>

namespace cpnsa::cuda {
namespace {

// Where no profiler is attached a range costs a look at a pointer.
nvtxDomainHandle_t domain() {
  static const nvtxDomainHandle_t handle = nvtxDomainCreateA("cpnsa");
  return handle;
}

}  // namespace

void begin_range(const char* name) {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  nvtxDomainRangePushEx(domain(), &attributes);
}

void end_range() noexcept {
  nvtxDomainRangePop(domain());
}

}  // namespace cpnsa::cuda
