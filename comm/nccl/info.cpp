#include "cpnsa/nccl/info.hpp"

#include <fmt/format.h>
#include <nccl.h>

#include <string>

namespace cpnsa::nccl {
namespace {

std::string version_text(int version) {
  return version > 0 ? fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100) : "";
}

}  // namespace

LibraryVersion library_version() {
  int found = 0;
  if (ncclGetVersion(&found) != ncclSuccess) found = 0;
  return {"NCCL", version_text(NCCL_VERSION_CODE), version_text(found)};
}

}  // namespace cpnsa::nccl
