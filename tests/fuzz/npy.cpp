// A .npy file: its header, its length and its numbers.

#include "tools/npy.hpp"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "cpnsa/error.hpp"
#include "tests/fuzz/input_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace cpnsa;
  try {
    const tool::NpyFile file(test::input_file(data, size));
    const tool::NpyArray& array = file.array();
    if (array.elements() * size_of(array.type) > size) std::abort();  // more than the file holds
    if (!is_float(array.type)) {
      if (file.read_integers().size() != array.elements()) std::abort();
      return 0;
    }
    std::vector<double> numbers(static_cast<std::size_t>(array.elements()));
    file.read(0, static_cast<std::int64_t>(numbers.size()), DType::f64, numbers.data());
  } catch (const Error&) {  // refused
  }
  return 0;
}
