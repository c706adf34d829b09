// What `cpnsa run` writes beside the values, and inputs that are unusual but right.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/support/npy.hpp"
#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

class Run : public testing::Test {
 protected:
  void SetUp() override { write_layer(in()); }

  fs::path in() const { return folder_.path() / "in"; }
  fs::path out() const { return folder_.path() / "out"; }

  void run(const Launcher& launcher, const std::vector<std::string>& flags = {}) {
    std::vector<std::string> arguments{"run", "--in", in(), "--out", out(), "--device", "cpu"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome outcome = run_command(launcher, arguments);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    EXPECT_THAT(outcome.out, HasSubstr("forward"));
  }

  json stats() const { return json::parse(read_file(out() / "stats.json")); }

  TemporaryFolder folder_;
};

std::vector<std::string> all_results() {
  std::vector<std::string> names{"out.npy", "selected.npy", "stats.json"};
  for (const auto& [name, shape] : layer_shapes())
    if (name != "dout") names.push_back("d" + name + ".npy");
  std::sort(names.begin(), names.end());
  return names;
}

TEST_F(Run, WritesEveryResultInItsType) {
  run(threads(2));
  EXPECT_EQ(names_in(out()), all_results());
  EXPECT_EQ(names_in(folder_.path()), (std::vector<std::string>{"in", "out"}));
  EXPECT_THAT(read_file(out() / "out.npy"),
              HasSubstr("{'descr': '<f4', 'fortran_order': False, 'shape': (70, 2, 6), }"));
  EXPECT_THAT(read_file(out() / "selected.npy"),
              HasSubstr("{'descr': '<i4', 'fortran_order': False, 'shape': (70, 1, 4), }"));
  for (const auto& [name, shape] : layer_shapes())
    if (name != "dout") {
      EXPECT_EQ(read_npy(out() / ("d" + name + ".npy")).shape, Shape(shape.begin(), shape.end()));
    }
}

TEST_F(Run, WritesFloat64UnderF64AndFloat32UnderHalf) {
  run(one_rank(), {"--dtype", "f64"});
  EXPECT_THAT(read_file(out() / "dq.npy"), HasSubstr("'<f8'"));
  run(one_rank(), {"--dtype", "bf16"});
  EXPECT_THAT(read_file(out() / "dq.npy"), HasSubstr("'<f4'"));
  run(one_rank(), {"--dtype", "f16"});
  EXPECT_THAT(read_file(out() / "out.npy"), HasSubstr("'<f4'"));
}

TEST_F(Run, StatsHaveAnEntryARank) {
  run(threads(3), {"--partition", "zigzag", "--exchange", "gather"});
  const json found = stats();
  EXPECT_EQ(found["ranks"], 3);
  EXPECT_EQ(found["tokens"], layer_tokens);
  EXPECT_EQ(found["device"], "cpu");
  EXPECT_EQ(found["transport"], "threads");
  EXPECT_EQ(found["partition"], "zigzag");
  EXPECT_EQ(found["exchange"], "gather");
  for (const char* kind :
       {"summaries", "halo", "blocks", "block_gradients", "summary_gradients", "halo_gradients", "control"}) {
    ASSERT_EQ(found["bytes_received"][kind].size(), 3u) << kind;
    EXPECT_TRUE(found["bytes_received"][kind][0].is_number_integer()) << kind;
  }
  EXPECT_EQ(found["bytes_received"], found["bytes_predicted"]);
  for (const char* key : {"blocks_needed", "blocks_fetched", "workspace_bytes"})
    EXPECT_EQ(found[key].size(), 3u) << key;
  for (const auto& [stage, seconds] : found["seconds"].items()) EXPECT_EQ(seconds.size(), 3u) << stage;
}

TEST_F(Run, AutoSaysWhatItChose) {
  run(threads(2));
  EXPECT_THAT(stats()["exchange"], testing::AnyOf("fetch", "gather"));
}

TEST_F(Run, OneRankReceivesNothing) {
  run(one_rank());
  const json found = stats();
  for (const auto& [kind, bytes] : found["bytes_received"].items()) EXPECT_EQ(bytes, json::array({0})) << kind;
}

TEST_F(Run, WithoutDoutOrBackwardThereAreNoGradients) {
  const std::vector<std::string> forward_only{"out.npy", "selected.npy", "stats.json"};
  run(one_rank());
  run(threads(2), {"--no-backward"});
  EXPECT_EQ(names_in(out()), forward_only) << "gradients of the earlier run are left";
  fs::remove(in() / "dout.npy");
  run(threads(2));
  EXPECT_EQ(names_in(out()), forward_only);
}

TEST_F(Run, AnotherFileInTheOutputFolderStays) {
  fs::create_directory(out());
  write_file(out() / "notes.txt", "mine");
  run(one_rank());
  EXPECT_EQ(read_file(out() / "notes.txt"), "mine");
}

TEST_F(Run, OutputsDoNotDependOnRanks) {
  run(one_rank(), {"--dtype", "f64"});
  const NpyArray one = read_npy(out() / "dq.npy"), one_selected = read_npy(out() / "selected.npy");
  run(threads(4), {"--dtype", "f64", "--partition", "zigzag"});
  const NpyArray four = read_npy(out() / "dq.npy");
  EXPECT_EQ(read_npy(out() / "selected.npy").values, one_selected.values);
  for (std::size_t i = 0; i < one.values.size(); ++i) ASSERT_NEAR(one.values[i], four.values[i], 1e-12) << i;
}

TEST_F(Run, MoreRanksThanBlocks) {
  run(threads(16));
}

TEST_F(Run, OneToken) {
  for (const auto& [name, shape] : layer_shapes()) {
    std::vector<std::int64_t> single = shape;
    if (shape[0] == layer_tokens) single[0] = 1;
    write_random_tensor(in() / (name + ".npy"), single);
  }
  fs::remove(in() / "cu_seqlens.npy");
  run(threads(2));
  EXPECT_EQ(read_npy(out() / "selected.npy").values, (Values{0, -1, -1, -1}));
}

// They run; NaN goes where the maths sends it: to no other document.
TEST_F(Run, NonFiniteInputs) {
  std::vector<float> q(static_cast<std::size_t>(layer_tokens * 2 * 8), 0.5f);
  std::fill(q.begin(), q.begin() + 16, std::numeric_limits<float>::quiet_NaN());
  std::fill(q.begin() + 16, q.begin() + 32, std::numeric_limits<float>::infinity());
  write_file(in() / "q.npy", npy_file("<f4", layer_shapes().at("q"), bytes_of(q)));
  run(threads(3));
  const NpyArray result = read_npy(out() / "out.npy");
  EXPECT_TRUE(std::isnan(result.values.front()));
  EXPECT_TRUE(std::isfinite(result.values.back()));
}

TEST_F(Run, HelpNamesEveryFlagAndAnExample) {
  const Outcome outcome = run_command(one_rank(), {"run", "--help"});
  EXPECT_EQ(outcome.status, 0);
  for (const char* text : {"--in", "--out", "--device", "--transport", "--ranks", "--partition", "--exchange",
                           "--deadline", "--dtype", "--no-backward", "mpirun -n 4 cpnsa run"})
    EXPECT_THAT(outcome.out, HasSubstr(text));
}

TEST_F(Run, UnderMpirun) {
  const std::optional<Launcher> launcher = processes(2);
  if (!launcher) GTEST_SKIP() << "no MPI in this build";
  run(*launcher, {"--ranks", "2"});
  EXPECT_EQ(names_in(out()), all_results());
  EXPECT_EQ(stats()["transport"], "mpi");
  EXPECT_EQ(stats()["ranks"], 2);
}

}  // namespace
}  // namespace cpnsa::test
