#include "tools/npy.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "cpnsa/error.hpp"
#include "tools/npy_header.hpp"
#include "tools/number_formats.hpp"

namespace cpnsa::tool {
namespace {

static_assert(std::endian::native == std::endian::little, "the command reads and writes little-endian files");

constexpr std::size_t chunk_bytes = std::size_t{1} << 20;

template <class To, class From>
void convert(const void* source, void* destination, std::int64_t count) {
  const auto* from = static_cast<const From*>(source);
  auto* to = static_cast<To*>(destination);
  for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(static_cast<double>(from[i]));
}

template <class From>
void convert_to(DType dtype, const void* source, void* destination, std::int64_t count) {
  switch (dtype) {
    case DType::f64: return convert<double, From>(source, destination, count);
    case DType::f32: return convert<float, From>(source, destination, count);
    case DType::bf16: return convert<BFloat16, From>(source, destination, count);
    case DType::f16: return convert<Half, From>(source, destination, count);
  }
}

void convert(NpyType from, DType to, const void* source, void* destination, std::int64_t count) {
  switch (from) {
    case NpyType::f2: return convert_to<Half>(to, source, destination, count);
    case NpyType::f4: return convert_to<float>(to, source, destination, count);
    case NpyType::f8: return convert_to<double>(to, source, destination, count);
    case NpyType::i4:
    case NpyType::i8: throw ArgumentError(fmt::format("found an array of {}, expected floats", name_of(from)));
  }
}

}  // namespace

std::size_t size_of(NpyType type) {
  constexpr std::array<std::size_t, 5> sizes{2, 4, 8, 4, 8};
  return sizes[static_cast<std::size_t>(type)];
}

std::uint64_t NpyArray::elements() const {
  std::uint64_t elements = 1;
  for (const std::int64_t extent : shape) elements *= static_cast<std::uint64_t>(extent);
  return elements;
}

std::string NpyArray::describe() const {
  return fmt::format("{} [{}]", name_of(type), fmt::join(shape, ", "));
}

std::string NpyArray::header() const {
  std::string text = fmt::format("{{'descr': '<{}', 'fortran_order': False, 'shape': ({}{}), }}", name_of(type),
                                 fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  constexpr std::size_t preamble = 10, alignment = 64;
  text.append((alignment - (preamble + text.size() + 1) % alignment) % alignment, ' ');
  text += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(text.size() & 0xff);
  bytes += static_cast<char>(text.size() >> 8);
  return bytes + text;
}

NpyFile::NpyFile(const std::filesystem::path& path) : path_(path) {
  const File file = File::open(path);
  const std::uint64_t size = file.size();
  try {
    const NpyPreamble preamble = read_npy_preamble(file, size);
    std::string text(preamble.header_bytes, '\0');
    file.read_at(text.data(), text.size(), preamble.header_offset);
    array_ = parse_npy_header(text);
    data_offset_ = preamble.header_offset + preamble.header_bytes;
  } catch (const NpyFormatError& error) {
    throw ArgumentError(fmt::format("{}: {}", path.string(), error.what()));
  }

  const std::uint64_t expected = array_.elements() * size_of(array_.type), found = size - data_offset_;
  if (found != expected)
    throw ArgumentError(fmt::format("{}: found {} bytes of data ({}), expected {} for {}", path.string(), found,
                                    found < expected ? "truncated" : "trailing bytes", expected, array_.describe()));
}

void NpyFile::read(std::int64_t first, std::int64_t count, DType dtype, void* destination) const {
  const File file = File::open(path_);
  const std::size_t element = size_of(array_.type), wide = cpnsa::size_of(dtype);
  std::vector<std::byte> chunk(std::min(chunk_bytes, static_cast<std::size_t>(count) * element));
  auto* to = static_cast<std::byte*>(destination);
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t now = std::min(count - done, static_cast<std::int64_t>(chunk.size() / element));
    file.read_at(chunk.data(), static_cast<std::size_t>(now) * element,
                 data_offset_ + static_cast<std::uint64_t>(first + done) * element);
    convert(array_.type, dtype, chunk.data(), to + static_cast<std::size_t>(done) * wide, now);
    done += now;
  }
}

std::vector<std::int64_t> NpyFile::read_integers() const {
  const File file = File::open(path_);
  const std::size_t count = array_.elements();
  std::vector<std::int64_t> integers(count);
  if (array_.type == NpyType::i8) {
    file.read_at(integers.data(), count * sizeof(std::int64_t), data_offset_);
  } else {
    std::vector<std::int32_t> narrow(count);
    file.read_at(narrow.data(), count * sizeof(std::int32_t), data_offset_);
    std::copy(narrow.begin(), narrow.end(), integers.begin());
  }
  return integers;
}

void narrow(const float* source, DType dtype, void* destination, std::int64_t count) {
  convert_to<float>(dtype, source, destination, count);
}

void widen(const void* source, DType dtype, void* destination, std::int64_t count) {
  switch (dtype) {
    case DType::f64: return convert<double, double>(source, destination, count);
    case DType::f32: return convert<float, float>(source, destination, count);
    case DType::bf16: return convert<float, BFloat16>(source, destination, count);
    case DType::f16: return convert<float, Half>(source, destination, count);
  }
}

}  // namespace cpnsa::tool
