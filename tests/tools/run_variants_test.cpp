// `cpnsa run` over the optional files of a layer's variants, compared with the oracle: q_cmp.npy, sink_slc.npy and
// sink_win.npy; and what of them the other commands refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <type_traits>

#include "tests/support/npy.hpp"
#include "tests/support/tolerance.hpp"
#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

Problem problem_of(const ProblemOptions& options, BranchSet branches = BranchSet::all) {
  Config config;
  config.num_q_heads = 4, config.num_kv_heads = 2, config.head_dim_qk = 6, config.head_dim_v = 5;
  config.compress_block = 8, config.compress_stride = 4, config.select_block = 8, config.select_count = 3;
  config.window = 11, config.compressor = Compressor::linear, config.branches = branches;
  return make_problem(config.with_defaults(), {0, 61, 110}, 1, options);
}

// Names as the files have them: k and v where the branches share them.
std::string file_of(const Problem& problem, const schema::Tensor& tensor) {
  const std::string name = tensor.name.str();
  if (name == "k_cmp" && problem.shared_k) return std::string("k.npy");
  if (name == "v_cmp" && problem.shared_v) return std::string("v.npy");
  return name + ".npy";
}

void write(const Problem& problem, const fs::path& folder) {
  fs::create_directories(folder);
  nlohmann::json keys;
  schema::for_each_key(problem.config, [&]<class Value>(const schema::ConfigKey& key, const Value& value) {
    if constexpr (NamedEnum<Value>)
      keys[std::string(key.name)] = name_of(value);
    else if constexpr (std::is_same_v<Value, std::int64_t>)
      if (!key.hidden_width) keys[std::string(key.name)] = value;
  });
  write_file(folder / "config.json", keys.dump());
  const auto floats = [&](const std::string& name, const Shape& shape, const Values& values) {
    write_file(folder / name, npy_file("<f8", shape, bytes_of(values)));
  };
  for_each_tensor(
      [&](const schema::Tensor& tensor, const Values& values, const Shape& shape) {
        if (!values.empty()) floats(file_of(problem, tensor), shape, values);
      },
      problem.inputs, shapes_of(problem.config, problem.tokens()));
  floats("dout.npy", {problem.tokens(), problem.config.num_q_heads, problem.config.head_dim_v}, problem.dout);
  write_file(folder / "cu_seqlens.npy",
             npy_file("<i8", {static_cast<std::int64_t>(problem.cu_seqlens.size())}, bytes_of(problem.cu_seqlens)));
}

void expect_right(const Problem& problem, const Launcher& launcher) {
  SCOPED_TRACE(launcher.name + ", " + describe(problem));
  const TemporaryFolder folder;
  const fs::path in = folder.path() / "in", out = folder.path() / "out";
  write(problem, in);
  const Outcome outcome = run_command(launcher, {"run", "--in", in, "--out", out, "--dtype", "f64", "--device", "cpu"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");

  std::vector<std::int32_t> selected;
  if (problem.config.has_branch(1)) {
    const Values indices = read_npy(out / "selected.npy").values;
    selected.assign(indices.begin(), indices.end());
  }
  const Truth truth(problem, DType::f64, selected);
  if (problem.config.has_branch(1)) {
    EXPECT_TRUE(truth.selection_is_right());
  }
  EXPECT_TRUE(truth.out_agrees(read_npy(out / "out.npy").values));
  Tensors gradients;
  int count = 0;
  for_each_tensor(
      [&](const schema::Tensor& tensor, Values& gradient, const Values& input) {
        const fs::path path = out / ("d" + file_of(problem, tensor));
        ASSERT_EQ(fs::exists(path), !input.empty()) << path;
        if (input.empty()) return;
        gradient = read_npy(path).values;
        ++count;
      },
      gradients, problem.inputs);
  EXPECT_GT(count, 4);
  EXPECT_TRUE(truth.gradients_agree(gradients));
}

TEST(RunVariants, FilesOfVariantsAreReadAndHaveGradients) {
  for (const Launcher& launcher : {one_rank(), threads(3)}) {
    expect_right(problem_of({.q_cmp = true, .sinks = true}), launcher);
    expect_right(problem_of({.shared_k = false, .shared_v = false, .q_cmp = true}), launcher);
    Problem one_sink = problem_of({.sinks = true});
    one_sink.inputs.sink_slc = {};
    expect_right(one_sink, launcher);
  }
}

TEST(RunVariants, Processes) {
  const std::optional<Launcher> launcher = processes(2);
  if (launcher) expect_right(problem_of({.q_cmp = true, .sinks = true}), *launcher);
}

TEST(RunVariants, BranchesThatAreOff) {
  expect_right(problem_of({.q_cmp = true}, BranchSet::cmp_win), threads(2));
  Problem windows = problem_of({.sinks = true}, BranchSet::win);
  windows.inputs.sink_slc = {};
  expect_right(windows, one_rank());
}

TEST(RunVariants, WhatALayerDoesNotReadIsRefused) {
  const TemporaryFolder folder;
  const fs::path in = folder.path() / "in", out = folder.path() / "out";
  const auto expect_error = [&](const char* command, const std::string& text) {
    const Outcome outcome = run_command(threads(2), {command, "--in", in, "--out", out});
    EXPECT_NE(outcome.status, 0);
    ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(text));
    EXPECT_FALSE(fs::exists(out));
  };
  write(problem_of({.sinks = true}, BranchSet::cmp_win), in);
  expect_error("run", "sink_slc: found one, expected none: the layer's branches are cmp_win");
  write(problem_of({.sinks = true}), in);
  expect_error("decode", "sink_slc: found");
  fs::remove(in / "sink_slc.npy");
  write_random_tensor(in / "sink_win.npy", {5});
  expect_error("run", "sink_win.npy: found f4 [5], expected floats [num_q_heads = 4]");
  fs::remove(in / "sink_win.npy");
  write_random_tensor(in / "q_cmp.npy", {110, 4, 6});
  expect_error("decode", "q_cmp: found");
  write_random_tensor(in / "q_cmp.npy", {110, 4, 5});
  expect_error("run", "q_cmp.npy: found f4 [110, 4, 5], expected floats [T = 110");
}

}  // namespace
}  // namespace cpnsa::test
