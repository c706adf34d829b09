#include "tools/npy.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "cpnsa/error.hpp"
#include "tests/tools/test_files.hpp"
#include "tools/npy_header.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using tool::NpyArray;
using tool::NpyFile;
using tool::NpyType;

class NpyTest : public testing::Test {
 protected:
  fs::path file(const std::string& bytes) {
    const fs::path path = folder_.path() / "a.npy";
    write_file(path, bytes);
    return path;
  }
  TemporaryFolder folder_;
};

TEST_F(NpyTest, ReadsFloatsIntoEveryType) {
  const std::vector<double> numbers{1, -2.5, 1.0 / 3, 1e-3};
  const NpyFile wide(file(npy_file("<f8", {2, 2}, bytes_of(numbers))));
  EXPECT_EQ(wide.array().describe(), "f8 [2, 2]");
  std::vector<double> doubles(3);
  wide.read(1, 3, DType::f64, doubles.data());
  EXPECT_EQ(doubles, (std::vector<double>{-2.5, 1.0 / 3, 1e-3}));
  std::vector<float> floats(4);
  wide.read(0, 4, DType::f32, floats.data());
  EXPECT_EQ(floats, (std::vector<float>{1, -2.5f, 1.0f / 3, 1e-3f}));
  std::vector<std::uint16_t> halves(4);
  wide.read(0, 4, DType::f16, halves.data());
  EXPECT_EQ(halves, (std::vector<std::uint16_t>{0x3c00, 0xc100, 0x3555, 0x1419}));
  wide.read(0, 4, DType::bf16, halves.data());
  EXPECT_EQ(halves, (std::vector<std::uint16_t>{0x3f80, 0xc020, 0x3eab, 0x3a83}));

  const NpyFile narrow(file(npy_file("<f2", {3}, bytes_of<std::uint16_t>({0x3c00, 0x0001, 0xfc00}))));
  narrow.read(0, 3, DType::f64, doubles.data());
  EXPECT_EQ(doubles, (std::vector<double>{1, std::ldexp(1.0, -24), -INFINITY}));
}

TEST_F(NpyTest, ReadsIntegersOfBothWidths) {
  EXPECT_EQ(NpyFile(file(npy_file("<i4", {3}, bytes_of<std::int32_t>({0, -7, 9})))).read_integers(),
            (std::vector<std::int64_t>{0, -7, 9}));
  EXPECT_EQ(NpyFile(file(npy_file("<i8", {2}, bytes_of<std::int64_t>({0, std::int64_t{1} << 40})))).read_integers(),
            (std::vector<std::int64_t>{0, std::int64_t{1} << 40}));
}

TEST_F(NpyTest, ReadsEveryFormatVersion) {
  const std::string header = npy_dictionary("<f4", "(1,)"), data = bytes_of<float>({4});
  const std::string magic("\x93NUMPY", 6), length{static_cast<char>(header.size()), '\0'};
  for (const std::string& preamble :
       {magic + std::string("\x01\x00", 2) + length, magic + std::string("\x02\x00", 2) + length + std::string(2, '\0'),
        magic + std::string("\x03\x00", 2) + length + std::string(2, '\0')}) {
    float number = 0;
    NpyFile(file(preamble + header + data)).read(0, 1, DType::f32, &number);
    EXPECT_EQ(number, 4);
  }
}

TEST_F(NpyTest, ReadsHeadersThatAreWrittenDifferently) {
  for (const char* header : {"{\"shape\":(2,),\"fortran_order\":False,\"descr\":\"<f4\"}",
                             "  { 'fortran_order' : False , 'shape' : ( 2 , ) , 'descr' : '<f4' , }  \n\n"}) {
    EXPECT_EQ(tool::parse_npy_header(header).shape, (std::vector<std::int64_t>{2})) << header;
  }
  EXPECT_EQ(tool::parse_npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': ()}").elements(), 1u);
  EXPECT_EQ(tool::parse_npy_header(npy_dictionary("<f8", "(0, 9223372036854775807)")).elements(), 0u);
}

TEST_F(NpyTest, RefusesArraysInFortranOrder) {
  try {
    NpyFile{file(npy_bytes(npy_dictionary("<f4", "(2, 3)", true), std::string(24, 'x')))};
    ADD_FAILURE() << "found no error";
  } catch (const ArgumentError& error) {
    EXPECT_THAT(error.what(), HasSubstr("found Fortran order, expected C order"));
  }
}

TEST_F(NpyTest, WritesHeadersAsNumPyDoes) {
  const std::string header = NpyArray{NpyType::f4, {777, 2, 5}}.header();
  EXPECT_EQ(header.substr(0, 10), std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  EXPECT_EQ(header.substr(10, 60), "{'descr': '<f4', 'fortran_order': False, 'shape': (777, 2, 5");
  EXPECT_EQ(header.size(), 128u);
  EXPECT_EQ(header.back(), '\n');
  EXPECT_THAT((NpyArray{NpyType::i4, {5}}.header()), HasSubstr("'shape': (5,), }"));
}

// No header whatever may do more than throw: every prefix, and random changes of single bytes, of a good file.
TEST_F(NpyTest, DamagedFilesAreRefusedOrReadButNeverCrash) {
  const std::string good = npy_file("<f4", {3, 4}, std::string(48, 'x'));
  for (std::size_t size = 0; size < good.size(); ++size)
    EXPECT_THROW(NpyFile{file(good.substr(0, size))}, ArgumentError) << size;

  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 engine(seed);
  for (int trial = 0; trial < 3000; ++trial) {
    std::string damaged = good;
    for (int change = 0; change < 1 + trial % 3; ++change)
      damaged[engine() % damaged.size()] = static_cast<char>(engine() % 256);
    try {
      const NpyFile read(file(damaged));
      EXPECT_EQ(read.array().elements() * size_of(read.array().type), 48u);
    } catch (const ArgumentError& error) {
      EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("a.npy"), HasSubstr("found"), HasSubstr("expected")));
    }
  }
}

TEST_F(NpyTest, AFileThatShrinksIsAnError) {
  const NpyFile array(file(npy_file("<f4", {4}, std::string(16, '\0'))));
  file(npy_file("<f4", {4}, std::string(8, '\0')));
  std::vector<float> numbers(4);
  EXPECT_THROW(array.read(0, 4, DType::f32, numbers.data()), ArgumentError);
}

}  // namespace
}  // namespace cpnsa::test
