// The worked cases through the command in float64: files in, files out, at several rank counts, partitions, transports
// and exchange modes.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/npy.hpp"
#include "tests/support/tolerance.hpp"
#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;

constexpr double tolerance = 2e-6;     // the truth is stored as float32
constexpr double margin_floor = 1e-8;  // closer scores may be ordered either way

std::vector<fs::path> cases() {
  std::vector<fs::path> folders;
  for (const std::string& name : names_in(CPNSA_TEST_GOLDEN_CASES))
    folders.push_back(fs::path(CPNSA_TEST_GOLDEN_CASES) / name);
  return folders;
}

double norm(const Values& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

void expect_selected(const fs::path& expected_folder, const fs::path& out) {
  const NpyArray expected = read_npy(expected_folder / "selected.npy"), found = read_npy(out / "selected.npy");
  const NpyArray margin = read_npy(expected_folder / "margin.npy");
  ASSERT_EQ(found.shape, expected.shape);
  const auto count = static_cast<std::size_t>(expected.shape.back());
  for (std::size_t row = 0; row < margin.values.size(); ++row) {
    if (!(margin.values[row] > margin_floor)) continue;
    for (std::size_t i = row * count; i < (row + 1) * count; ++i)
      ASSERT_EQ(found.values[i], expected.values[i]) << "row " << row;
  }
}

void expect_golden(const fs::path& expected_folder, const fs::path& out) {
  // Some gradients are exactly zero in truth (a shift of all compressed keys moves no softmax), and rounding alone in
  // float64; they are measured against the largest.
  double largest = 0;
  for (const std::string& name : names_in(expected_folder))
    if (name.starts_with('d')) largest = std::max(largest, norm(read_npy(expected_folder / name).values));

  for (const std::string& name : names_in(expected_folder)) {
    if (name == "margin.npy") continue;
    SCOPED_TRACE(name);
    ASSERT_TRUE(fs::exists(out / name));
    if (name == "selected.npy") {
      expect_selected(expected_folder, out);
      continue;
    }
    const NpyArray expected = read_npy(expected_folder / name), found = read_npy(out / name);
    ASSERT_EQ(found.shape, expected.shape);
    EXPECT_TRUE(within(name, found.values, expected.values, tolerance, 1e-12 * largest));
  }
}

void expect_golden(const Launcher& launcher, const std::vector<std::string>& flags) {
  ASSERT_FALSE(cases().empty());
  for (const fs::path& folder : cases()) {
    SCOPED_TRACE(folder.filename().string() + ", " + launcher.name + " " + testing::PrintToString(flags));
    const TemporaryFolder results;
    std::vector<std::string> arguments{"run",     "--in", folder / "in", "--out", results.path() / "out",
                                       "--dtype", "f64",  "--device",    "cpu"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome outcome = run_command(launcher, arguments);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    expect_golden(folder / "expected", results.path() / "out");
  }
}

TEST(Golden, OneRank) {
  expect_golden(one_rank(), {});
}
TEST(Golden, Fetch) {
  expect_golden(threads(3), {"--exchange", "fetch", "--partition", "zigzag"});
}
TEST(Golden, Gather) {
  expect_golden(threads(2), {"--exchange", "gather", "--partition", "contiguous"});
}
TEST(Golden, ManyRanks) {
  expect_golden(threads(8), {"--partition", "zigzag"});
}
TEST(Golden, ZigzagPerDocument) {
  expect_golden(threads(2), {"--partition", "zigzag_per_document"});
}

TEST(Golden, Processes) {
  const std::optional<Launcher> launcher = processes(2);
  if (!launcher) GTEST_SKIP() << "no MPI in this build";
  expect_golden(*launcher, {"--exchange", "fetch", "--partition", "zigzag"});
  expect_golden(*launcher, {"--exchange", "gather"});
}

}  // namespace
}  // namespace cpnsa::test
