#include "checkpoint.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>

#include "cpnsa/error.hpp"

namespace language_model {
namespace {

constexpr const char* format_name = "cpnsa-byte-language-model-1";

/// Calls visit(name, number) for the options that the shape of a model consists of.
template <class SomeOptions, class Visit>
void for_each_number(SomeOptions& options, Visit&& visit) {
  visit("tokens", options.tokens), visit("layers", options.layers), visit("width", options.width);
  visit("heads", options.heads), visit("kv_heads", options.kv_heads);
  visit("full_attention", options.full_attention);
  visit("compress_block", options.compress_block), visit("compress_stride", options.compress_stride);
  visit("select_block", options.select_block), visit("select_count", options.select_count);
  visit("window", options.window);
}

[[noreturn]] void refuse(const std::string& path, const std::string& found) {
  throw cpnsa::ArgumentError(
      fmt::format("--model: found {} in {}, expected a {} of language_model", found, path, checkpoint_name));
}

}  // namespace

std::string to_bytes(const Options& options, std::span<const double> values) {
  std::string bytes = format_name;
  for_each_number(options, [&](const char* name, auto number) {
    bytes += fmt::format(" {}={}", name, static_cast<std::int64_t>(number));
  });
  bytes += fmt::format(" values={}\n", values.size());
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  return bytes;
}

Checkpoint read_checkpoint(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string header;
  if (!std::getline(file, header)) refuse(path, errno ? std::strerror(errno) : "nothing");
  std::istringstream words(header);
  std::string word;
  if (!(words >> word) || word != format_name) refuse(path, fmt::format("\"{:.40}\" in line 1", header));
  Checkpoint checkpoint;
  std::int64_t count = 0;
  const auto read = [&](const char* name, auto& number) {
    const std::string key = fmt::format("{}=", name);
    std::int64_t value = 0;
    if (!(words >> word) || word.rfind(key, 0) != 0 || !(std::istringstream(word.substr(key.size())) >> value) ||
        value < 0 || value > (std::int64_t{1} << 31))
      refuse(path, fmt::format("\"{:.40}\" in place of {}<number>", word, key));
    number = static_cast<std::remove_reference_t<decltype(number)>>(value);
  };
  for_each_number(checkpoint.options, read);
  read("values", count);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() != static_cast<std::size_t>(count) * sizeof(double))
    refuse(path, fmt::format("{} bytes of values in place of {}", bytes.size(), count * 8));
  checkpoint.values.resize(static_cast<std::size_t>(count));
  std::memcpy(checkpoint.values.data(), bytes.data(), bytes.size());
  return checkpoint;
}

}  // namespace language_model
