#include "cpnsa/info.hpp"

namespace cpnsa {

const BuildInfo& build_info() {
  static constexpr BuildInfo info{CPNSA_BUILD_VERSION, CPNSA_BUILD_COMMIT, CPNSA_BUILD_COMPILER, CPNSA_BUILD_TYPE,
                                  CPNSA_BUILD_CPU_ARCH};
  return info;
}

}  // namespace cpnsa
