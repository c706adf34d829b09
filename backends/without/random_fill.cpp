#include "backends/backends.hpp"
#include "backends/without/refuse.hpp"

namespace cpnsa::backends {

void fill_random(void*, DType, const RandomRows&, std::int64_t, std::int64_t, Stream) {
  refuse("CUDA", "CPNSA_CUDA");
}

}  // namespace cpnsa::backends
