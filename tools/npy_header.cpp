#include "tools/npy_header.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string>

namespace cpnsa::tool {
namespace {

constexpr std::size_t max_header_bytes = std::size_t{1} << 20;
constexpr std::size_t max_extents = 32;

[[noreturn]] void fail(const std::string& found, std::string_view expected) {
  throw NpyFormatError(fmt::format("found {}, expected {}", found, expected));
}

std::string quote(std::string_view text) {
  constexpr std::size_t longest = 40;
  std::string quoted = "'";
  for (const char c : text.substr(0, longest)) quoted += c >= ' ' && c <= '~' ? c : '?';
  return quoted + (text.size() > longest ? "...'" : "'");
}

// Reads the header's text from left to right.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  NpyArray parse() {
    std::optional<NpyType> type;
    std::optional<bool> fortran_order;
    std::optional<std::vector<std::int64_t>> shape;

    take('{');
    while (!try_take('}')) {
      const std::string_view key = quoted_text();
      take(':');
      const bool seen =
          (key == "descr" && type) || (key == "fortran_order" && fortran_order) || (key == "shape" && shape);
      if (seen) fail("the header key " + quote(key) + " twice", "it once");
      if (key == "descr")
        type = parse_type();
      else if (key == "fortran_order")
        fortran_order = parse_bool();
      else if (key == "shape")
        shape = parse_shape();
      else
        fail("the header key " + quote(key), "descr, fortran_order and shape");
      if (!try_take(',')) {
        take('}');
        break;
      }
    }
    skip_space();
    if (!text_.empty()) fail(quote(text_) + " after the header's dictionary", "only spaces");

    if (!type) fail("no descr in the header", "one of '<f2' '<f4' '<f8' '<i4' '<i8'");
    if (!fortran_order) fail("no fortran_order in the header", "fortran_order False");
    if (!shape) fail("no shape in the header", "a tuple of extents");
    if (*fortran_order) fail("Fortran order", "C order");
    check_size(*type, *shape);
    return {*type, *std::move(shape)};
  }

 private:
  void skip_space() {
    const std::size_t begin = text_.find_first_not_of(" \t\r\n");
    text_.remove_prefix(std::min(begin, text_.size()));
  }

  bool try_take(char c) {
    skip_space();
    if (text_.empty() || text_.front() != c) return false;
    text_.remove_prefix(1);
    return true;
  }

  void take(char c) {
    if (!try_take(c)) fail_here(fmt::format("'{}'", c));
  }

  [[noreturn]] void fail_here(std::string_view expected) {
    fail(text_.empty() ? "the header's end" : quote(text_) + " in the header", expected);
  }

  std::string_view quoted_text() {
    skip_space();
    if (text_.empty() || (text_.front() != '\'' && text_.front() != '"')) fail_here("a quoted string");
    const std::size_t end = text_.find(text_.front(), 1);
    if (end == std::string_view::npos) fail_here("a quoted string");
    const std::string_view inside = text_.substr(1, end - 1);
    text_.remove_prefix(end + 1);
    return inside;
  }

  NpyType parse_type() {
    constexpr std::string_view expected = "one of '<f2' '<f4' '<f8' '<i4' '<i8'";
    skip_space();
    if (!text_.empty() && text_.front() == '[') fail("a structured descr", expected);
    const std::string_view descr = quoted_text();
    for (const NpyType type : {NpyType::f2, NpyType::f4, NpyType::f8, NpyType::i4, NpyType::i8})
      if (descr.size() == 3 && descr.front() == '<' && descr.substr(1) == name_of(type)) return type;
    std::string found = "descr " + quote(descr);
    if (descr.starts_with('>')) found += " (big endian)";
    if (descr.find('O') != std::string_view::npos) found += " (pickled objects)";
    fail(found, expected);
  }

  bool parse_bool() {
    skip_space();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (!text_.starts_with(word)) continue;
      text_.remove_prefix(word.size());
      return value;
    }
    fail_here("True or False");
  }

  std::vector<std::int64_t> parse_shape() {
    std::vector<std::int64_t> shape;
    take('(');
    while (!try_take(')')) {
      skip_space();
      std::int64_t extent = 0;
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), extent);
      if (error != std::errc() || extent < 0) fail_here("an extent from 0 to 2^63 - 1");
      text_.remove_prefix(static_cast<std::size_t>(end - text_.data()));
      shape.push_back(extent);
      if (shape.size() > max_extents) fail("more than 32 extents", "at most 32");
      if (!try_take(',')) {
        take(')');
        break;
      }
    }
    return shape;
  }

  static void check_size(NpyType type, const std::vector<std::int64_t>& shape) {
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return;
    std::int64_t bytes = static_cast<std::int64_t>(size_of(type));
    for (const std::int64_t extent : shape)
      if (__builtin_mul_overflow(bytes, extent, &bytes))
        fail(NpyArray{type, shape}.describe(), "a shape of fewer than 2^63 bytes");
  }

  std::string_view text_;
};

}  // namespace

NpyPreamble read_npy_preamble(const File& file, std::uint64_t size) {
  constexpr std::string_view magic("\x93NUMPY", 6);
  constexpr std::size_t min_bytes = 10;  // magic, version and the shorter kind of header length
  if (size < min_bytes) fail(fmt::format("{} bytes", size), "a NumPy file, which has at least 10");
  std::array<char, 12> bytes{};
  file.read_at(bytes.data(), std::min<std::size_t>(size, bytes.size()), 0);
  if (std::string_view(bytes.data(), magic.size()) != magic)
    fail("the first bytes " + quote({bytes.data(), magic.size()}), "the magic '\\x93NUMPY' of a NumPy file");

  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned major = byte(6), minor = byte(7);
  if (major < 1 || major > 3 || minor != 0) fail(fmt::format("format version {}.{}", major, minor), "1.0, 2.0 or 3.0");
  const NpyPreamble preamble = major == 1
                                   ? NpyPreamble{10, byte(8) | std::size_t{byte(9)} << 8}
                                   : NpyPreamble{12, byte(8) | std::size_t{byte(9)} << 8 | std::size_t{byte(10)} << 16 |
                                                         std::size_t{byte(11)} << 24};
  if (preamble.header_bytes > max_header_bytes)
    fail(fmt::format("a header of {} bytes", preamble.header_bytes), fmt::format("at most {}", max_header_bytes));
  if (preamble.header_offset + preamble.header_bytes > size)
    fail(fmt::format("a file of {} bytes (truncated)", size),
         fmt::format("at least the {} of its header", preamble.header_offset + preamble.header_bytes));
  return preamble;
}

NpyArray parse_npy_header(std::string_view text) {
  return HeaderParser(text).parse();
}

}  // namespace cpnsa::tool
