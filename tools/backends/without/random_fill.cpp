#include "cpnsa/error.hpp"
#include "tools/backends/backends.hpp"

namespace cpnsa::tool::backends {

void fill_on_card(void*, DType, const RandomRows&, std::int64_t, std::int64_t, Stream) {
  throw UnsupportedError("random numbers: found a card, expected none: this build has no CUDA (cmake --preset cuda)");
}

}  // namespace cpnsa::tool::backends
