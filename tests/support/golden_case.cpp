#include "tests/support/golden_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <type_traits>

#include "tests/support/npy.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;

const fs::path cases = CPNSA_TEST_GOLDEN_CASES;

void read(const nlohmann::json& json, std::int64_t& value) {
  value = json;
}
void read(const nlohmann::json& json, std::optional<double>& value) {
  value = json.get<double>();
}
template <NamedEnum Enum>
void read(const nlohmann::json& json, Enum& value) {
  value = value_named<Enum>(json.get<std::string>()).value();
}

Config read_config(const fs::path& path) {
  const nlohmann::json json = nlohmann::json::parse(std::ifstream(path));
  Config config;
  std::size_t found = 0;
  schema::for_each_key(config, [&](const schema::ConfigKey& key, auto& value) {
    const auto entry = json.find(std::string(key.name));
    constexpr bool number = std::is_same_v<decltype(value), std::int64_t&>;
    if (entry == json.end() && number && !key.hidden_width)
      throw std::runtime_error("golden case: no " + std::string(key.name) + " in " + path.string());
    if (entry == json.end()) return;
    read(*entry, value);
    ++found;
  });
  if (found != json.size()) throw std::runtime_error("golden case: unknown keys in " + path.string());
  return config;
}

// Reads every tensor that the folder has as <prefix><name>.npy; k.npy and v.npy are keys and values shared by the
// branches.
Tensors read_tensors(const fs::path& folder, const std::string& prefix) {
  Tensors tensors;
  for_each_tensor(
      [&](const schema::Tensor& tensor, Values& values) {
        std::string name = tensor.name.str();
        const auto path_of = [&](const std::string& stem) { return folder / fmt::format("{}{}.npy", prefix, stem); };
        if (name == "k_cmp" && fs::exists(path_of("k")))
          name = std::string("k");  // GCC 12 warns of overlapping copies if a literal is assigned
        if (name == "v_cmp" && fs::exists(path_of("v"))) name = std::string("v");
        if (fs::exists(path_of(name))) values = read_npy(path_of(name)).values;
      },
      tensors);
  return tensors;
}

}  // namespace

std::vector<std::string> golden_case_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(cases)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

GoldenCase read_golden_case(const std::string& name) {
  const fs::path in = cases / name / "in", expected = cases / name / "expected";
  GoldenCase golden;
  golden.name = name;

  Problem& problem = golden.problem;
  problem.config = read_config(in / "config.json");
  problem.inputs = read_tensors(in, "");
  problem.dout = read_npy(in / "dout.npy").values;
  problem.shared_k = problem.inputs.k.slc.empty();
  problem.shared_v = problem.inputs.v.slc.empty();
  problem.cu_seqlens = {0, read_npy(in / "q.npy").shape[0]};
  if (fs::exists(in / "cu_seqlens.npy")) {
    const Values bounds = read_npy(in / "cu_seqlens.npy").values;
    problem.cu_seqlens.assign(bounds.begin(), bounds.end());
  }
  if (problem.config.compressor == Compressor::mlp) {
    problem.config.compress_hidden_k = read_npy(in / "compress_k_w1.npy").shape[2];
    problem.config.compress_hidden_v = read_npy(in / "compress_v_w1.npy").shape[2];
  }

  golden.out = read_npy(expected / "out.npy").values;
  const Values selected = read_npy(expected / "selected.npy").values;
  golden.selected.assign(selected.begin(), selected.end());
  golden.margin = read_npy(expected / "margin.npy").values;
  golden.gradients = read_tensors(expected, "d");
  return golden;
}

}  // namespace cpnsa::test
