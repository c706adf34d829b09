#include "cpnsa/info.hpp"

#include <string>
#include <vector>

#include "backends/backends.hpp"
#include "c/boundary.hpp"
#include "c/parameters.hpp"

using namespace cpnsa::c;

namespace {

using cpnsa::LibraryVersion;

/// The texts of cpnsa_info, made once.
struct Texts {
  std::string version{cpnsa::build_info().version};
  std::string commit{cpnsa::build_info().commit};
  std::string compiler{cpnsa::build_info().compiler};
  std::string cpu_arch{cpnsa::build_info().cpu_arch};
  std::vector<LibraryVersion> cuda = cpnsa::backends::cuda_versions();
  std::vector<LibraryVersion> nccl = cpnsa::backends::nccl_versions();

  static const char* of(const std::vector<LibraryVersion>& all, std::size_t index,
                        std::string LibraryVersion::*member) {
    return index < all.size() ? (all[index].*member).c_str() : "";
  }
};

}  // namespace

cpnsa_status cpnsa_get_info(cpnsa_info* info) {
  return guarded(__func__, [&] {
    check_struct_size("info", not_null(info, "info").struct_size, sizeof(cpnsa_info), sizeof(cpnsa_info));
    static const Texts texts;
    const std::size_t size = info->struct_size;
    const cpnsa_info known{size,
                           texts.version.c_str(),
                           texts.commit.c_str(),
                           texts.compiler.c_str(),
                           texts.cpu_arch.c_str(),
                           Texts::of(texts.cuda, 0, &LibraryVersion::compiled),
                           Texts::of(texts.cuda, 0, &LibraryVersion::found),
                           Texts::of(texts.cuda, 1, &LibraryVersion::found),
                           Texts::of(texts.nccl, 0, &LibraryVersion::compiled),
                           Texts::of(texts.nccl, 0, &LibraryVersion::found),
                           cpnsa::backends::cuda_devices(),
                           0};
    std::memcpy(info, &known, std::min(size, sizeof known));
  });
}

cpnsa_status cpnsa_get_kernels(const cpnsa_config* config, int32_t dtype, int32_t capability, cpnsa_kernel* kernels,
                               size_t capacity, size_t* count) {
  return guarded(__func__, [&] {
    thread_local std::vector<cpnsa::OpKernel> found;
    not_null(count, "count") = 0;
    found = cpnsa::backends::cuda_kernels_of(to_config(config), to_enum<cpnsa::DType>(dtype, "dtype"), capability);
    *count = found.size();
    if (!kernels || capacity < found.size()) return;
    for (std::size_t i = 0; i < found.size(); ++i)
      kernels[i] = {found[i].op.data(), name_of(found[i].family).data(), found[i].reason.c_str()};
  });
}
