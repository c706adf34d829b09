// The table, the numbers and the picture of a grid.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "grid.hpp"

namespace cpnsa::test {
namespace {

using needle::Grid;
using testing::HasSubstr;
using testing::Not;

Grid example() {
  Grid grid;
  grid.max_trained_length = 512;
  grid.lengths = {1024, 1500};
  grid.bands = 2;
  grid.right = {{2000, 1999}, {0, 500}};
  grid.asked = {2000, 1000};
  grid.seconds = {1.5, 22.25};
  return grid;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

// Every element that is opened is closed, in order; attributes have their quotes.
void expect_well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = xml.find('<'); at != std::string::npos; at = xml.find('<', at + 1)) {
    const std::size_t end = xml.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const std::string tag = xml.substr(at + 1, end - at - 1);
    EXPECT_EQ(tag.find('<'), std::string::npos) << tag;
    EXPECT_EQ(count(tag, "\"") % 2, 0u) << tag;
    const std::string name = tag.substr(tag.starts_with('/'), tag.find_first_of(" /", 1) - tag.starts_with('/'));
    if (tag.starts_with('/')) {
      ASSERT_FALSE(open.empty()) << tag;
      EXPECT_EQ(open.back(), tag.substr(1));
      open.pop_back();
    } else if (!tag.ends_with('/')) {
      open.push_back(name);
    }
  }
  EXPECT_TRUE(open.empty());
}

TEST(NeedleGrid, AccuracyIsOfEachCell) {
  const Grid grid = example();
  EXPECT_EQ(grid.accuracy(0, 0), 1.0);
  EXPECT_EQ(grid.accuracy(0, 1), 0.9995);
  EXPECT_EQ(grid.accuracy(1, 1), 0.5);
  EXPECT_EQ(grid.min_accuracy(), 0.0);
}

TEST(NeedleGrid, CsvHasALineACell) {
  EXPECT_EQ(needle::to_csv(example()),
            "tokens,depth_begin,depth_end,asked,right,accuracy\n"
            "1024,0.0000,0.5000,2000,2000,1.000000\n"
            "1024,0.5000,1.0000,2000,1999,0.999500\n"
            "1500,0.0000,0.5000,1000,0,0.000000\n"
            "1500,0.5000,1.0000,1000,500,0.500000\n");
}

TEST(NeedleGrid, TableHasALineABand) {
  const std::string table = needle::to_table(example());
  EXPECT_THAT(table, HasSubstr("1K"));
  EXPECT_THAT(table, HasSubstr("1500"));
  EXPECT_THAT(table, HasSubstr("\n50 - 100 %"));
  EXPECT_THAT(table, HasSubstr(" 100 %"));
  EXPECT_THAT(table, HasSubstr(" 99.9 %"));  // 1999 of 2000: not all of them
  EXPECT_THAT(table, HasSubstr(" 50.0 %"));
  EXPECT_EQ(count(table, "\n"), 5u);
}

TEST(NeedleGrid, PictureHasACellForEach) {
  const std::string svg = needle::to_heat_map(example());
  expect_well_formed(svg);
  EXPECT_TRUE(svg.starts_with("<svg "));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_EQ(count(svg, "stroke=\"white\""), 4u);  // the cells
  for (const char* label : {">100<", ">99.9<", ">0.0<", ">50.0<", ">1K<", ">1500<"}) EXPECT_EQ(count(svg, label), 1u);
  EXPECT_THAT(svg, HasSubstr(">trained on at most 512 tokens; 1000 \u2013 2000 needles asked for in a cell<"));
  EXPECT_THAT(svg, HasSubstr("#46a05f"));  // all of them
  EXPECT_THAT(svg, HasSubstr("#c83c3c"));  // none of them
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(NeedleGrid, PictureOfOneColumnHasRoomForItsHeadings) {
  Grid grid = example();
  grid.lengths = {1024};
  grid.right.resize(1);
  grid.asked.resize(1);
  const std::string svg = needle::to_heat_map(grid);
  const std::string heading = "trained on at most 512 tokens; 2000 needles asked for in a cell";
  ASSERT_THAT(svg, HasSubstr(heading));
  const double width = std::stod(svg.substr(svg.find("width=\"") + 7));
  EXPECT_GE(width, 16 + 7.2 * static_cast<double>(heading.size()));  // 7.2 pixels per character at 14 pixels
}

}  // namespace
}  // namespace cpnsa::test
