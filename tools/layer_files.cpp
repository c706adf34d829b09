#include "tools/layer_files.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cpnsa/error.hpp"
#include "cpnsa/schema.hpp"
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
    config_.compress_hidden_k = read_hidden(schema::Extent::hidden_k);
    config_.compress_hidden_v = read_hidden(schema::Extent::hidden_v);
  }

  const std::int64_t tokens = read_tokens();
  for (const LayerTensor& tensor : layer_tensors(config_, tokens, branches_are_separate(), true))
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
  for (const schema::Tensor& tensor : schema::tensors) {
    if (tensor.shared.empty()) continue;
    const std::string one = fmt::format("{}.npy", tensor.shared);
    if (has(std::string(tensor.shared)) && (shared.empty() || shared.back() != one)) shared.push_back(one);
    if (has(tensor.name.str())) separate.push_back(fmt::format("{}.npy", tensor.name.view()));
  }
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

// The width of the hidden layer is not a key of the configuration: it is an extent of the first parameter that has it.
std::int64_t LayerFiles::read_hidden(schema::Extent hidden) const {
  for (const schema::Tensor& tensor : schema::tensors) {
    const auto extent = std::find(tensor.shape.begin(), tensor.shape.end(), hidden);
    if (extent == tensor.shape.end()) continue;
    const NpyFile parameter(file(tensor.name.str()));
    std::vector<std::string> extents;
    for (const schema::Extent one : tensor.shape)
      extents.push_back(one == hidden ? std::string(name_of(one))
                                      : fmt::format("{} = {}", name_of(one), size_of(one, config_, 0)));
    const std::string expected =
        fmt::format("floats [{}] with {} from 1 to {}", fmt::join(extents, ", "), name_of(hidden), schema::max_extent);
    expect_extents(parameter, tensor.shape.size(), expected);
    const std::int64_t width = parameter.array().shape[static_cast<std::size_t>(extent - tensor.shape.begin())];
    if (width < 1 || width > schema::max_extent) fail(parameter.path(), parameter.array().describe(), expected);
    return width;
  }
  return 0;
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
  for (const schema::Tensor& tensor : schema::tensors)
    if (!tensor.used_by(config_.compressor) && has(tensor.name.str()))
      fail(file(tensor.name.str()), "a parameter",
           fmt::format("none of this name with compressor \"{}\"", name_of(config_.compressor)));
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
