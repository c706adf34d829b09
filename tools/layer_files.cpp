#include "tools/layer_files.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cpnsa/error.hpp"
#include "tools/config_file.hpp"

namespace cpnsa::tool {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& found, const std::string& expected) {
  throw ArgumentError(fmt::format("{}: found {}, expected {}", path.string(), found, expected));
}

void expect_extents(const NpyFile& file, std::size_t count, const std::string& expected) {
  if (!is_float(file.array().type) || file.array().shape.size() != count)
    fail(file.path(), file.array().describe(), expected);
}

std::uint64_t hash_of(const std::vector<std::int64_t>& numbers) {  // FNV-1a, a number at a time
  std::uint64_t hash = 14695981039346656037ull;
  for (const std::int64_t number : numbers) hash = (hash ^ static_cast<std::uint64_t>(number)) * 1099511628211ull;
  return hash;
}

}  // namespace

LayerFiles::LayerFiles(const fs::path& folder, bool with_dout) : folder_(folder) {
  std::error_code problem;
  const fs::file_status status = fs::status(folder_, problem);
  if (status.type() == fs::file_type::none) fail(folder_, fmt::format("\"{}\"", problem.message()), "an input folder");
  if (!fs::is_directory(status)) fail(folder_, fs::exists(status) ? "a file" : "no such folder", "an input folder");
  const fs::path config_path = folder_ / "config.json";
  config_ = read_config(config_path);
  // The other keys are checked before the files are, which they are compared with.
  Config without_hidden = config_;
  without_hidden.compressor = Compressor::mean;
  try {
    without_hidden.validate();
  } catch (const ConfigError& error) {
    throw ArgumentError(fmt::format("{}: {}", config_path.string(), error.what()));
  }
  refuse_foreign_parameters();
  if (config_.compressor == Compressor::mlp) {
    config_.compress_hidden_k = read_hidden("compress_k_w1");
    config_.compress_hidden_v = read_hidden("compress_v_w1");
  }

  const std::int64_t tokens = read_tokens();
  for (const LayerTensor& tensor : layer_tensors(config_, tokens, branches_are_separate()))
    if (!tensor.optional || has(tensor.name)) inputs_.push_back(checked(tensor));
  if (with_dout && has("dout")) dout_ = checked(dout_tensor(config_, tokens));
  read_cu_seqlens(tokens);
}

bool LayerFiles::has(const std::string& name) const {
  std::error_code ignored;  // what cannot be looked at is reported when it is opened
  return fs::symlink_status(file(name), ignored).type() != fs::file_type::not_found;
}

bool LayerFiles::branches_are_separate() const {
  std::vector<std::string> shared, separate;
  for (const char* name : {"k", "v"})
    if (has(name)) shared.push_back(fmt::format("{}.npy", name));
  for (const char* name : {"k_cmp", "k_slc", "k_win", "v_cmp", "v_slc", "v_win"})
    if (has(name)) separate.push_back(fmt::format("{}.npy", name));
  if (!shared.empty() && !separate.empty())
    fail(folder_, fmt::format("{} and {}", fmt::join(shared, " "), fmt::join(separate, " ")),
         "either k.npy and v.npy or the six k_cmp.npy ... v_win.npy");
  return !separate.empty();
}

std::int64_t LayerFiles::read_tokens() const {
  const NpyFile q(file("q"));
  const std::string expected =
      fmt::format("floats [T, num_q_heads = {}, head_dim_qk = {}]", config_.num_q_heads, config_.head_dim_qk);
  expect_extents(q, 3, expected);
  if (q.array().shape[0] < 1) fail(q.path(), q.array().describe(), expected + " with T of at least 1");
  return q.array().shape[0];
}

// The hidden layer's width is not a key of the configuration: the first weight's last extent says it.
std::int64_t LayerFiles::read_hidden(const std::string& name) const {
  const NpyFile w1(file(name));
  const std::string expected = fmt::format(
      "floats [num_kv_heads = {}, compress_block * head_dim, hidden] with hidden "
      "from 1 to 2^31",
      config_.num_kv_heads);
  expect_extents(w1, 3, expected);
  const std::int64_t hidden = w1.array().shape[2];
  if (hidden < 1 || hidden > std::int64_t{1} << 31) fail(w1.path(), w1.array().describe(), expected);
  return hidden;
}

void LayerFiles::read_cu_seqlens(std::int64_t tokens) {
  if (!has("cu_seqlens")) {
    cu_seqlens_ = {0, tokens};
    return;
  }
  const NpyFile bounds(file("cu_seqlens"));
  const NpyArray& array = bounds.array();
  if (is_float(array.type) || array.shape.size() != 1 || array.shape[0] < 2)
    fail(bounds.path(), array.describe(), "i4 or i8 [documents + 1]");
  cu_seqlens_ = bounds.read_integers();
  if (cu_seqlens_.front() != 0) fail(bounds.path(), fmt::format("{} first", cu_seqlens_.front()), "0");
  const auto descent = std::adjacent_find(cu_seqlens_.begin(), cu_seqlens_.end(), std::greater<>());
  if (descent != cu_seqlens_.end())
    fail(bounds.path(),
         fmt::format("{} after {} at index {}", descent[1], descent[0], descent + 1 - cu_seqlens_.begin()),
         "an ascending sequence");
  if (cu_seqlens_.back() != tokens)
    fail(bounds.path(), fmt::format("{} last", cu_seqlens_.back()), fmt::format("T = {}, the rows of q.npy", tokens));
}

// A parameter that the layer would not read is a mistake in the folder or in config.json.
void LayerFiles::refuse_foreign_parameters() const {
  const std::vector<LayerTensor> known = layer_tensors(config_, 1, false);
  for (const std::string& name : all_parameter_names()) {
    const bool is_known =
        std::any_of(known.begin(), known.end(), [&](const LayerTensor& tensor) { return tensor.name == name; });
    if (!is_known && has(name))
      fail(file(name), "a parameter",
           fmt::format("none of this name with compressor \"{}\"", name_of(config_.compressor)));
  }
}

LayerFiles::Input LayerFiles::checked(const LayerTensor& tensor) const {
  NpyFile found(file(tensor.name));
  if (!is_float(found.array().type) || found.array().shape != tensor.extents())
    fail(found.path(), found.array().describe(), "floats " + tensor.describe_shape());
  return {tensor, std::move(found)};
}

std::string LayerFiles::describe() const {
  std::string text = fmt::format("T={} documents={} cu_seqlens_hash={:016x} {}", tokens(), cu_seqlens_.size() - 1,
                                 hash_of(cu_seqlens_), config_.describe());
  text += " inputs=";
  for (const Input& input : inputs_) text += input.tensor.name + ",";
  return text + fmt::format(" dout={}", dout_ ? "yes" : "no");
}

}  // namespace cpnsa::tool
