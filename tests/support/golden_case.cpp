#include "tests/support/golden_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/npy.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;

const fs::path cases = CPNSA_TEST_GOLDEN_CASES;

template <class Enum>
Enum parse(const std::string& name, std::initializer_list<Enum> choices) {
  for (const Enum choice : choices)
    if (name_of(choice) == name) return choice;
  throw std::runtime_error("golden case: unknown " + name);
}

Config read_config(const fs::path& path) {
  const nlohmann::json json = nlohmann::json::parse(std::ifstream(path));
  Config config;
  config.num_q_heads = json.at("num_q_heads");
  config.num_kv_heads = json.at("num_kv_heads");
  config.head_dim_qk = json.at("head_dim_qk");
  config.head_dim_v = json.at("head_dim_v");
  config.compress_block = json.at("compress_block");
  config.compress_stride = json.at("compress_stride");
  config.select_block = json.at("select_block");
  config.select_count = json.at("select_count");
  config.init_blocks = json.at("init_blocks");
  config.local_blocks = json.at("local_blocks");
  config.window = json.at("window");
  config.compressor = parse(json.at("compressor"), {Compressor::mean, Compressor::linear, Compressor::mlp});
  config.activation = parse(json.value("activation", "silu"), {Activation::silu, Activation::relu, Activation::gelu});
  config.gate = parse(json.at("gate"), {GateKind::logits, GateKind::values});
  return config;
}

// Every tensor that the folder has, as <prefix><name>.npy; keys and values as k.npy and v.npy where they are shared.
Tensors read_tensors(const fs::path& folder, const std::string& prefix) {
  Tensors tensors;
  for_each_tensor(
      [&](std::string name, Values& values) {
        const auto path_of = [&](const std::string& stem) { return folder / fmt::format("{}{}.npy", prefix, stem); };
        if (name == "k_cmp" && fs::exists(path_of("k")))
          name = std::string("k");  // GCC 12 warns of overlapping copies where a literal is assigned
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
