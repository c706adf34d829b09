#include "tests/support/npy.hpp"

#include <cstring>
#include <fstream>
#include <iterator>
#include <regex>
#include <stdexcept>
#include <string>

namespace cpnsa::test {
namespace {

template <class Element>
Values read_elements(const std::string& bytes, std::size_t offset, std::size_t count) {
  Values values(count);
  for (std::size_t i = 0; i < count; ++i) {
    Element element;
    std::memcpy(&element, bytes.data() + offset + i * sizeof element, sizeof element);
    values[i] = static_cast<double>(element);
  }
  return values;
}

}  // namespace

NpyArray read_npy(const std::filesystem::path& path) {
  const auto fail = [&](const std::string& what) { throw std::runtime_error(path.string() + ": " + what); };
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot be read");
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  constexpr std::size_t preamble = 10;  // bytes before the header in format version 1
  if (bytes.size() < preamble || bytes.substr(0, 7) != "\x93NUMPY\x01") fail("not a NumPy file of version 1");
  const std::size_t header_bytes =
      static_cast<unsigned char>(bytes[8]) + 256u * static_cast<std::size_t>(static_cast<unsigned char>(bytes[9]));
  const std::string header = bytes.substr(preamble, header_bytes);

  std::smatch match;
  if (!std::regex_search(header, match,
                         std::regex(R"('descr': '<([fi][48])', 'fortran_order': False, 'shape': \(([^)]*)\))")))
    fail("unexpected header " + header);
  const std::string type = match[1], extents = match[2];

  NpyArray array;
  const std::regex number("[0-9]+");
  for (std::sregex_iterator it(extents.begin(), extents.end(), number), end; it != end; ++it)
    array.shape.push_back(std::stoll(it->str()));
  const auto count = static_cast<std::size_t>(elements_of(array.shape));
  const std::size_t offset = preamble + header_bytes;
  if (bytes.size() != offset + count * static_cast<std::size_t>(type[1] - '0')) fail("wrong length");
  if (type == "f4") array.values = read_elements<float>(bytes, offset, count);
  if (type == "f8") array.values = read_elements<double>(bytes, offset, count);
  if (type == "i4") array.values = read_elements<std::int32_t>(bytes, offset, count);
  if (type == "i8") array.values = read_elements<std::int64_t>(bytes, offset, count);
  return array;
}

}  // namespace cpnsa::test
