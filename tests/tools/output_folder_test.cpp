#include "tools/output_folder.hpp"

#include <gtest/gtest.h>

#include "cpnsa/error.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

TEST(OutputFolder, AppearsWholeAtTheEnd) {
  const TemporaryFolder folder;
  const fs::path target = folder.path() / "a" / "b";
  {
    tool::OutputFolder output(target);
    output.add_text("one", "1");
    EXPECT_FALSE(fs::exists(target));
    output.add_text("two", "2");
    output.commit({});
  }
  EXPECT_EQ(names_in(target), (Names{"one", "two"}));
  EXPECT_EQ(names_in(folder.path() / "a"), Names{"b"});
}

TEST(OutputFolder, LeavesNothingUnlessCommitted) {
  const TemporaryFolder folder;
  {
    tool::OutputFolder output(folder.path() / "a" / "b" / "c/");
    output.add_text("one", "1");
  }
  EXPECT_EQ(names_in(folder.path()), Names{});
}

TEST(OutputFolder, ReplacesFilesOfAnExistingFolder) {
  const TemporaryFolder folder;
  write_file(folder.path() / "one", "old");
  write_file(folder.path() / "stale", "old");
  write_file(folder.path() / "other", "old");
  {
    tool::OutputFolder output(folder.path());
    output.add_text("one", "new");
    EXPECT_EQ(read_file(folder.path() / "one"), "old");
    output.commit({"stale", "missing"});
  }
  EXPECT_EQ(names_in(folder.path()), (Names{"one", "other"}));
  EXPECT_EQ(read_file(folder.path() / "one"), "new");
}

// The folder is then exchanged for another.
TEST(OutputFolder, AnExistingFolderKeepsWhatIsNotReplaced) {
  const TemporaryFolder folder;
  const fs::path target = folder.path() / "out";
  fs::create_directory(target);
  fs::permissions(target, fs::perms(0750));
  write_file(target / "one", "old");
  write_file(target / "stale", "old");
  write_file(target / "other", "old");
  fs::create_symlink("nowhere", target / "link");
  fs::create_symlink("out", folder.path() / "to_out");
  {
    tool::OutputFolder output(folder.path() / "to_out");
    output.add_text("one", "new");
    output.commit({"stale"});
  }
  EXPECT_EQ(names_in(target), (Names{"link", "one", "other"}));
  EXPECT_EQ(read_file(target / "one"), "new");
  EXPECT_EQ(read_file(target / "other"), "old");
  EXPECT_EQ(fs::read_symlink(target / "link"), "nowhere");
  EXPECT_EQ(fs::status(target).permissions(), fs::perms(0750));
  EXPECT_EQ(names_in(folder.path()), (Names{"out", "to_out"}));
}

// A process that works in the folder must find the results there.
TEST(OutputFolder, TheWorkingFolderIsFilledFileByFile) {
  const TemporaryFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  {
    tool::OutputFolder output(".");
    output.add_text("one", "1");
    output.commit({});
  }
  EXPECT_EQ(read_file("one"), "1");
  EXPECT_EQ(names_in("."), Names{"one"});
  fs::current_path(before);
}

// A file that cannot be moved, after others that were.
TEST(OutputFolder, AnErrorWhileMovingLeavesAllAsItWas) {
  const TemporaryFolder folder;
  for (const char* name : {"one", "three", "stale"}) write_file(folder.path() / name, "old");
  {
    tool::OutputFolder output(folder.path());
    for (const char* name : {"new", "one", "two", "three"}) output.add_text(name, "new");
    fs::create_directory(folder.path() / "two");
    EXPECT_THROW(output.commit({"stale"}), ArgumentError);
  }
  EXPECT_EQ(names_in(folder.path()), (Names{"one", "stale", "three", "two"}));
  for (const char* name : {"one", "three", "stale"}) EXPECT_EQ(read_file(folder.path() / name), "old");
}

TEST(OutputFolder, ATextIsReplacedWholeOrNotAtAll) {
  const TemporaryFolder folder;
  tool::replace_text(folder.path() / "a", "one");
  tool::replace_text(folder.path() / "a", "two");
  EXPECT_EQ(read_file(folder.path() / "a"), "two");
  fs::create_directory(folder.path() / "b");
  EXPECT_THROW(tool::replace_text(folder.path() / "b", "three"), ArgumentError);
  EXPECT_EQ(names_in(folder.path()), (Names{"a", "b"}));
}

TEST(OutputFolder, RefusesWhatIsNoFolder) {
  const TemporaryFolder folder;
  write_file(folder.path() / "file", "");
  EXPECT_THROW(tool::OutputFolder(folder.path() / "file"), ArgumentError);
  EXPECT_THROW(tool::OutputFolder(folder.path() / "file" / "below"), ArgumentError);
  fs::create_symlink("nowhere", folder.path() / "dangling");
  EXPECT_THROW(tool::OutputFolder(folder.path() / "dangling"), ArgumentError);
}

// Before anything is computed, not when some of the results have been moved.
TEST(OutputFolder, RefusesAFolderInAFilesPlace) {
  const TemporaryFolder folder;
  fs::create_directory(folder.path() / "two");
  {
    tool::OutputFolder output(folder.path());
    output.add_text("one", "1");
    EXPECT_THROW(output.add_text("two", "2"), ArgumentError);
  }
  EXPECT_EQ(names_in(folder.path()), Names{"two"});
}

// In a container the next process often has the same number.
TEST(OutputFolder, WhatAKilledRunLeftIsNotInTheWay) {
  const TemporaryFolder folder;
  for (const fs::path& target : {folder.path() / "new", folder.path() / "old"}) {
    fs::create_directory(folder.path() / "old");
    tool::OutputFolder killed(target), next(target);
    EXPECT_NE(next.unfinished(), killed.unfinished());
    next.add_text("one", "1");
    next.commit({});
    EXPECT_EQ(read_file(target / "one"), "1");
  }
}

TEST(OutputFolder, ArraysAreWrittenInPieces) {
  const TemporaryFolder folder;
  const tool::NpyArray array{tool::NpyType::f4, {3, 2}};
  tool::OutputFolder output(folder.path() / "out");
  output.add_array("a.npy", array);
  {
    tool::File file = tool::File::open_to_write(output.unfinished() / "a.npy");
    const std::vector<float> last{5, 6}, first{1, 2, 3, 4};
    tool::write_elements(file, array, 4, 2, last.data());
    tool::write_elements(file, array, 0, 4, first.data());
    file.close();
  }
  output.commit({});
  EXPECT_EQ(read_file(folder.path() / "out/a.npy"), array.header() + bytes_of<float>({1, 2, 3, 4, 5, 6}));
}

}  // namespace
}  // namespace cpnsa::test
