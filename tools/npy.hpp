#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/dtype.hpp"
#include "tools/files.hpp"

namespace cpnsa::tool {

/// Element types of NumPy files that the command reads or writes, all little endian.
enum class NpyType { f2, f4, f8, i4, i8 };
constexpr auto names_of(NpyType) {
  return std::to_array<std::string_view>({"f2", "f4", "f8", "i4", "i8"});
}
using cpnsa::name_of;
std::size_t size_of(NpyType);
constexpr bool is_float(NpyType type) {
  return type == NpyType::f2 || type == NpyType::f4 || type == NpyType::f8;
}

/// An array's type and shape, as the header of a NumPy file (format 1.0, 2.0 or 3.0) holds them.
struct NpyArray {
  NpyType type = NpyType::f4;
  std::vector<std::int64_t> shape;

  std::uint64_t elements() const;
  std::string describe() const;  ///< "f4 [700, 4, 16]"
  std::string header() const;    ///< a file's first bytes, of format 1.0, padded to a multiple of 64
};

/// A NumPy file whose header and length were found right: C order, little endian, a supported type, and as many bytes
/// as its shape says. It is opened for each reading, so that many of them need no descriptors.
class NpyFile {
 public:
  /// ArgumentError naming the path, what was found and what was expected.
  explicit NpyFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const NpyArray& array() const { return array_; }

  /// Elements [first, first + count), converted to `dtype` with one rounding to nearest even. The type must be a float.
  void read(std::int64_t first, std::int64_t count, DType dtype, void* destination) const;
  /// All elements; the type must be an integer.
  std::vector<std::int64_t> read_integers() const;

 private:
  std::filesystem::path path_;
  NpyArray array_;
  std::uint64_t data_offset_ = 0;
};

/// `count` floats as a layer's type, rounded once to nearest even.
void narrow(const float* source, DType dtype, void* destination, std::int64_t count);
/// `count` elements of a layer's type as the float32 (float64 for f64) that results are written in.
void widen(const void* source, DType dtype, void* destination, std::int64_t count);
/// The type that results of a layer are written in.
constexpr NpyType result_type(DType dtype) {
  return dtype == DType::f64 ? NpyType::f8 : NpyType::f4;
}

}  // namespace cpnsa::tool
