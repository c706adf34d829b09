#include "tests/tools/test_files.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>

namespace cpnsa::test {

namespace fs = std::filesystem;

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (fs::temp_directory_path() / "cpnsa-test-XXXXXX").string();
  if (!::mkdtemp(pattern.data())) throw std::runtime_error("no temporary folder: " + pattern);
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void write_file(const fs::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string npy_bytes(std::string_view dictionary, std::string_view data) {
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(dictionary.size() & 0xff);
  bytes += static_cast<char>(dictionary.size() >> 8);
  return bytes.append(dictionary).append(data);
}

std::string npy_dictionary(std::string_view descr, std::string_view shape, bool fortran_order) {
  return fmt::format("{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}\n", descr, fortran_order ? "True" : "False",
                     shape);
}

std::string npy_file(std::string_view descr, const std::vector<std::int64_t>& shape, std::string_view data) {
  return npy_bytes(npy_dictionary(descr, fmt::format("({},)", fmt::join(shape, ", "))), data);
}

const std::map<std::string, std::vector<std::int64_t>>& layer_shapes() {
  constexpr std::int64_t H = 2, G = 1, dk = 8, dv = 6, l = 8, hidden = 5;
  static const std::map<std::string, std::vector<std::int64_t>> shapes{
      {"q", {layer_tokens, H, dk}},
      {"k", {layer_tokens, G, dk}},
      {"v", {layer_tokens, G, dv}},
      {"gate", {layer_tokens, H, 3}},
      {"dout", {layer_tokens, H, dv}},
      {"compress_k_pos", {G, l, dk}},
      {"compress_k_w1", {G, l * dk, hidden}},
      {"compress_k_b1", {G, hidden}},
      {"compress_k_w2", {G, hidden, dk}},
      {"compress_k_b2", {G, dk}},
      {"compress_v_w1", {G, l * dv, hidden + 1}},
      {"compress_v_b1", {G, hidden + 1}},
      {"compress_v_w2", {G, hidden + 1, dv}},
      {"compress_v_b2", {G, dv}},
  };
  return shapes;
}

void write_random_tensor(const fs::path& path, const std::vector<std::int64_t>& shape) {
  std::mt19937 engine(static_cast<unsigned>(std::hash<std::string>()(path.filename().string())));
  std::normal_distribution<float> normal;
  std::vector<float> numbers(
      static_cast<std::size_t>(std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>())));
  std::generate(numbers.begin(), numbers.end(), [&] { return normal(engine); });
  write_file(path, npy_file("<f4", shape, bytes_of(numbers)));
}

void write_layer(const fs::path& folder) {
  fs::create_directories(folder);
  write_file(folder / "config.json", layer_config());
  for (const auto& [name, shape] : layer_shapes()) write_random_tensor(folder / (name + ".npy"), shape);
  write_file(folder / "cu_seqlens.npy", npy_file("<i4", {4}, bytes_of<std::int32_t>({0, 41, 42, layer_tokens})));
}

std::string layer_config(const std::string& key, const std::string& value) {
  std::map<std::string, std::string> keys{{"num_q_heads", "2"},      {"num_kv_heads", "1"},   {"head_dim_qk", "8"},
                                          {"head_dim_v", "6"},       {"compress_block", "8"}, {"compress_stride", "4"},
                                          {"select_block", "8"},     {"select_count", "4"},   {"window", "12"},
                                          {"activation", "\"relu\""}};
  if (!key.empty()) keys[key] = value;
  std::vector<std::string> members;
  for (const auto& [name, text] : keys)
    if (!text.empty()) members.push_back(fmt::format("\"{}\": {}", name, text));
  return fmt::format("{{\n{}\n}}\n", fmt::join(members, ",\n"));
}

}  // namespace cpnsa::test
