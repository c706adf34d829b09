// config.json: read, validated and described, or refused.

#include <cstdlib>

#include "cpnsa/error.hpp"
#include "tests/fuzz/input_file.hpp"
#include "tools/config_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const cpnsa::Config config = cpnsa::tool::read_config(cpnsa::test::input_file(data, size)).with_defaults();
    config.validate();
    if (config.describe().empty() || config.num_q_heads % config.num_kv_heads != 0) std::abort();
  } catch (const cpnsa::Error&) {  // refused
  }
  return 0;
}
