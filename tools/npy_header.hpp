#pragma once

#include <cstdint>
#include <stdexcept>
#include <string_view>

#include "tools/files.hpp"
#include "tools/npy.hpp"

namespace cpnsa::tool {

/// An error of a header: "found ..., expected ...".
class NpyFormatError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct NpyPreamble {
  std::uint64_t header_offset = 0;  ///< bytes before the header's text
  std::size_t header_bytes = 0;     ///< bytes of the header's text
};

/// Reads magic, version and header length of a file of `size` bytes.
NpyPreamble read_npy_preamble(const File& file, std::uint64_t size);

/// Parses a header's text, the literal of a Python dictionary with the keys descr, fortran_order and shape. The element
/// count and its size in bytes fit in 63 bits.
NpyArray parse_npy_header(std::string_view text);

}  // namespace cpnsa::tool
