#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace cpnsa::test {

/// A folder of its own that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder();
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

void write_file(const std::filesystem::path& path, std::string_view bytes);
std::string read_file(const std::filesystem::path& path);

/// Names of a folder's files and folders, ascending, hidden ones included.
std::vector<std::string> names_in(const std::filesystem::path& folder);

/// A NumPy file's bytes, put together by hand: magic, version 1.0, length, the dictionary, data.
std::string npy_bytes(std::string_view dictionary, std::string_view data);
/// The dictionary that NumPy writes, e.g. for ("<f4", "(3, 4)").
std::string npy_dictionary(std::string_view descr, std::string_view shape, bool fortran_order = false);
std::string npy_file(std::string_view descr, const std::vector<std::int64_t>& shape, std::string_view data);

/// Little-endian bytes of the numbers.
template <class Number>
std::string bytes_of(const std::vector<Number>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)};
}

/// The extents of every tensor file of the layer that write_layer() writes.
const std::map<std::string, std::vector<std::int64_t>>& layer_shapes();
inline constexpr std::int64_t layer_tokens = 70;

/// A float32 tensor of pseudorandom numbers.
void write_random_tensor(const std::filesystem::path& path, const std::vector<std::int64_t>& shape);

/// A small valid layer: three documents, an mlp compressor, shared keys and values, dout.
void write_layer(const std::filesystem::path& folder);
/// Its config.json, with `key` set to the JSON text `value` (added where it is missing, taken out where it is empty).
std::string layer_config(const std::string& key = {}, const std::string& value = {});

}  // namespace cpnsa::test
