// Every class of wrong input, at one rank, on threads, and under mpirun: a non-zero status, one line of ours on
// standard error that says what was found and expected, and nothing left where --out would be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/tools/bad_input_cases.hpp"
#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

void expect_one_line(const Outcome& outcome, const Launcher& launcher, const std::vector<std::string>& expected) {
  EXPECT_NE(outcome.status, 0);
  EXPECT_LT(outcome.status, 128) << "killed by a signal";
  EXPECT_EQ(outcome.out, "");
  const std::vector<std::string> lines = launcher.by_mpi ? outcome.own_error_lines() : outcome.error_lines();
  ASSERT_EQ(lines.size(), 1u) << outcome.err;
  EXPECT_TRUE(lines[0].starts_with("cpnsa: error: ")) << lines[0];
  for (const std::string& text : expected) EXPECT_THAT(lines[0], HasSubstr(text));
}

void expect_refused(const Launcher& launcher, const std::vector<BadInput>& cases) {
  for (const BadInput& bad : cases) {
    SCOPED_TRACE(bad.name + ", " + launcher.name);
    const TemporaryFolder folder;
    const fs::path in = folder.path() / "in", out = folder.path() / "out";
    write_layer(in);
    bad.spoil(in);
    std::vector<std::string> arguments{"run", "--in", in, "--out", out};
    arguments.insert(arguments.end(), bad.flags.begin(), bad.flags.end());
    expect_one_line(run_command(launcher, arguments), launcher, bad.expected);
    EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"in"});
  }
}

void expect_refused_by_all(const std::vector<BadInput>& cases) {
  expect_refused(one_rank(), cases);
  expect_refused(threads(3), cases);
}

// Starting processes takes longest: a few cases of each kind.
std::vector<BadInput> every(std::size_t step, const std::vector<BadInput>& cases) {
  std::vector<BadInput> some;
  for (std::size_t i = 0; i < cases.size(); i += step) some.push_back(cases[i]);
  return some;
}

TEST(BadInput, Config) {
  expect_refused_by_all(bad_configs());
}
TEST(BadInput, Arrays) {
  expect_refused_by_all(bad_arrays());
}
TEST(BadInput, Shapes) {
  expect_refused_by_all(bad_shapes());
}
TEST(BadInput, Flags) {
  expect_refused_by_all(bad_flags());
}

TEST(BadInput, UnderMpirun) {
  const std::optional<Launcher> launcher = processes(2);
  if (!launcher) GTEST_SKIP() << "no MPI in this build";
  expect_refused(*launcher, every(8, bad_configs()));
  expect_refused(*launcher, every(8, bad_arrays()));
  expect_refused(*launcher, every(8, bad_shapes()));
  expect_refused(*launcher, every(4, bad_flags()));
}

TEST(BadInput, Ranks) {
  const TemporaryFolder folder;
  write_layer(folder.path() / "in");
  const std::vector<std::string> run{"run", "--in", folder.path() / "in", "--out", folder.path() / "out"};
  const auto with = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), run.begin(), run.end());
    return flags;
  };
  for (const char* ranks : {"0", "x", "2.5", "99999999999"})
    expect_one_line(run_command(one_rank(), with({"--ranks", ranks})), one_rank(),
                    {"--ranks", std::string("found ") + ranks, "expected a whole number from 1"});
  for (const char* deadline : {"0", "-1", "soon"})
    expect_one_line(run_command(one_rank(), with({"--deadline", deadline})), one_rank(),
                    {"--deadline", std::string("found ") + deadline, "expected a whole number from 1"});
  if (const std::optional<Launcher> launcher = processes(2)) {
    expect_one_line(run_command(*launcher, with({"--ranks", "3"})), *launcher, {"--ranks", "found 3", "expected 2"});
    expect_one_line(run_command(*launcher, with({"--transport", "threads"})), *launcher,
                    {"--transport", "found threads", "expected auto"});
  }
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"in"});
}

TEST(BadInput, CommandLineAlone) {
  const TemporaryFolder folder;
  write_layer(folder.path() / "in");
  const std::string in = folder.path() / "in", out = folder.path() / "out", none = folder.path() / "none";
  const auto expect = [](const std::vector<std::string>& arguments, const std::vector<std::string>& expected) {
    SCOPED_TRACE(testing::PrintToString(arguments));
    expect_one_line(run_command(one_rank(), arguments), one_rank(), expected);
  };
  expect({}, {"found no command", "expected run, decode, bench, info, plan or doctor"});
  expect({"fly"}, {"fly", "expected one command"});
  expect({"--frobnicate"}, {"--frobnicate", "expected"});
  expect({"run"}, {"--in", "found nothing", "expected"});
  expect({"run", "--in", in}, {"--out", "found nothing", "expected"});
  expect({"run", "--in", "", "--out", out}, {"--in", "found nothing", "expected a path"});
  expect({"run", "--in", none, "--out", out}, {none, "no such folder", "expected an input folder"});
  fs::path deep = folder.path();
  for (int i = 0; i < 6; ++i) deep /= std::string(200, 'd');
  expect({"run", "--in", deep, "--out", out}, {deep, "no such folder", "expected an input folder"});
  const std::string loop = folder.path() / "loop", long_name = folder.path() / std::string(300, 'd');
  fs::create_symlink("loop", loop);
  for (const std::string& path : {loop, long_name}) {
    expect({"run", "--in", path, "--out", out}, {path, "found \"", "expected an input folder"});
    expect({"run", "--in", in, "--out", path}, {path, "found", "expected an output folder"});
  }
  expect({"run", "--in", in + "/q.npy", "--out", out}, {"q.npy", "found a file", "expected an input folder"});
}

TEST(BadInput, OutputThatCannotBeWritten) {
  const TemporaryFolder folder;
  const fs::path in = folder.path() / "in", blocker = folder.path() / "file";
  write_layer(in);
  write_file(blocker, "kept");
  for (const Launcher& launcher : {one_rank(), threads(3)}) {
    for (const fs::path& out : {blocker, blocker / "out", fs::path("/proc/cpnsa-test/out")}) {
      SCOPED_TRACE(out.string() + ", " + launcher.name);
      expect_one_line(run_command(launcher, {"run", "--in", in, "--out", out}), launcher,
                      {out.parent_path().string(), "found", "expected an output folder that can be written"});
      EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"file", "in"}));
      EXPECT_EQ(read_file(blocker), "kept");
    }
  }
}

// A limit on the size of files stands for a full disk. The folders above --out that were made are taken back.
TEST(BadInput, FullDisk) {
  const TemporaryFolder folder;
  write_layer(folder.path() / "in");
  const std::string line = "ulimit -f 1; exec " + command_path() + " run --in " + (folder.path() / "in").string() +
                           " --out " + (folder.path() / "deep" / "out").string();
  expect_one_line(run_process({"bash", "-c", line}), one_rank(), {"out.npy", "found \"File too large\"", "expected"});
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"in"});
}

// What an existing folder holds stays as it is.
TEST(BadInput, ExistingOutputStays) {
  const TemporaryFolder folder;
  const fs::path in = folder.path() / "in", out = folder.path() / "out";
  write_layer(in);
  write_file(in / "dout.npy", "not an array");
  fs::create_directory(out);
  write_file(out / "out.npy", "of an earlier run");
  expect_one_line(run_command(threads(2), {"run", "--in", in, "--out", out}), threads(2), {"dout.npy"});
  EXPECT_EQ(names_in(out), std::vector<std::string>{"out.npy"});
  EXPECT_EQ(read_file(out / "out.npy"), "of an earlier run");
}

TEST(BadInput, DeviceOrTransportThatIsNotThere) {
  const TemporaryFolder folder;
  write_layer(folder.path() / "in");
  const std::vector<std::string> run{"run", "--in", folder.path() / "in", "--out", folder.path() / "out"};
  // On a machine with a GPU and a build for it, f64 is what the device refuses.
  std::vector<std::string> arguments = run;
  arguments.insert(arguments.end(), {"--device", "cuda", "--dtype", "f64"});
  expect_one_line(run_command(threads(2), arguments), threads(2), {"found", "expected"});
  arguments = run;
  arguments.insert(arguments.end(), {"--device", "cpu", "--transport", "nccl"});
  expect_one_line(run_command(one_rank(), arguments), one_rank(), {"--transport", "found nccl", "expected"});
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"in"});
}

// mpirun starts the two ranks with arguments of their own.
class RanksThatDisagree : public testing::Test {
 protected:
  void SetUp() override {
    if (!processes(2)) GTEST_SKIP() << "no MPI in this build";
    for (const char* name : {"in", "other"}) write_layer(folder_.path() / name);
  }

  void expect_refused(std::vector<std::string> first, std::vector<std::string> second,
                      const std::vector<std::string>& expected) {
    std::vector<std::string> command{CPNSA_TEST_MPIEXEC, "-n", "1", command_path()};
    command.insert(command.end(), first.begin(), first.end());
    command.insert(command.end(), {":", "-n", "1", command_path()});
    command.insert(command.end(), second.begin(), second.end());
    expect_one_line(run_process(command), *processes(2), expected);
    EXPECT_EQ(names_in(folder_.path()), (std::vector<std::string>{"in", "other"}));
  }

  std::vector<std::string> run(const std::string& in, const std::vector<std::string>& flags = {}) const {
    std::vector<std::string> arguments{"run", "--in", folder_.path() / in, "--out", folder_.path() / "out"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return arguments;
  }

  TemporaryFolder folder_;
};

TEST_F(RanksThatDisagree, AboutTheConfig) {
  write_file(folder_.path() / "other/config.json", layer_config("select_count", "3"));
  expect_refused(run("in"), run("other"), {"rank 1", "found \"select_count=3\"", "expected \"select_count=4\""});
}

TEST_F(RanksThatDisagree, AboutTheLength) {
  for (const auto& [name, shape] : layer_shapes()) {
    std::vector<std::int64_t> shorter = shape;
    if (shape[0] == layer_tokens) shorter[0] = 64;
    write_random_tensor(folder_.path() / "other" / (name + ".npy"), shorter);
  }
  fs::remove(folder_.path() / "other/cu_seqlens.npy");
  expect_refused(run("in"), run("other"), {"rank 1", "found \"T=64\"", "expected \"T=70\""});
}

TEST_F(RanksThatDisagree, AboutTheDocuments) {
  write_file(folder_.path() / "other/cu_seqlens.npy",
             npy_file("<i4", {4}, bytes_of<std::int32_t>({0, 40, 42, layer_tokens})));
  expect_refused(run("in"), run("other"), {"rank 1", "cu_seqlens", "expected"});
}

TEST_F(RanksThatDisagree, AboutFlags) {
  expect_refused(run("in"), run("in", {"--partition", "zigzag"}), {"rank 1", "found \"--partition=zigzag\""});
  expect_refused(run("in"), run("in", {"--dtype", "f64"}), {"rank 1", "found \"dtype=f64\""});
  expect_refused(run("in"), {"bench"}, {"rank 1", "command=bench"});
}

// Help needs no other rank, but the others would wait for this one.
TEST_F(RanksThatDisagree, WhenOneOfThemIsAskedForHelp) {
  expect_refused(run("in"), {"--help"}, {"rank 1", "found \"command=help\"", "expected \"command=run\""});
  expect_refused({"--version"}, run("in"), {"rank 1", "found \"command=run\"", "expected \"command=help\""});
}

TEST_F(RanksThatDisagree, WhenOneOfThemIsWrong) {
  expect_refused(run("in"), run("in", {"--frobnicate"}), {"rank 1", "--frobnicate", "expected"});
  fs::remove(folder_.path() / "other/gate.npy");
  expect_refused(run("in"), run("other"), {"rank 1", "gate.npy", "expected"});
}

}  // namespace
}  // namespace cpnsa::test
